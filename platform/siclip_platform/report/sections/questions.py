"""Open questions of the method: a study with the tag ``siclip.question`` gets a section that answers it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from siclip_platform.report.draw.blocks import Block, Section, Text
from siclip_platform.report.draw.values import (
    Cell,
    Table,
    count_cell,
    interval,
    metric_cell,
    metric_label,
    points,
    probability,
)
from siclip_platform.report.judge.numbers import number
from siclip_platform.report.judge.settings import Setting, compare_settings, judge, settings
from siclip_platform.report.judge.statistics import holm, paired_difference, t_interval
from siclip_platform.report.read.runs import HEADLINE, Run, Study, measured
from siclip_platform.report.sections.ablation import MEASURED, higher_or_lower
from siclip_platform.report.sections.scaling import scaling
from siclip_platform.report.sections.training import DIVERGENCE, shares_weights
from siclip_platform.report.sections.varied import against_number, varied_number

RATIOS = ("data.synthetic_share",)
PAIR_WEIGHT = "loss.pair_matching"
RETRIEVAL = ("retrieval", "mean_recall@1")


def question(study: Study) -> Section | None:
    """The section of the study's question; None without a known question."""
    found = _ANSWERS.get(study.question or "")
    if found is None:
        return None
    title, answer = found
    return Section("question", title, answer(study))


def _sharing(study: Study) -> list[Block]:
    """Patterns ranked by mean, with their parameters and the paired verdict."""
    rows = sorted(
        (row for row in compare_settings(study) if row.estimate.count),
        key=lambda row: -study.gain(row.estimate.mean),
    )
    if not rows:
        return [Text("No pattern has a completed run.")]
    table = Table(
        key="ranked",
        title="Patterns ranked",
        columns=["rank", "setting", metric_label(study.metric), "image parameters", "text parameters", "verdict"],
        rows=[
            [
                Cell(str(rank), rank),
                Cell(row.setting.name, row.setting.name, row.setting.trial.link),
                metric_cell(study.metric, row.estimate.mean),
                count_cell(_first(row.setting, "cost/parameters_image")),
                count_cell(_first(row.setting, "cost/parameters_text")),
                Cell(row.verdict_text, row.verdict),
            ]
            for rank, row in enumerate(rows, 1)
        ],
        numeric=[True, False, True, True, True, False],
        sortable=True,
    )
    verdict = rows[0].verdict_text.partition(" ")[2]
    text = f"Highest mean: {rows[0].setting.name}, {verdict}. Ranks of indistinguishable settings mean nothing."
    return [Text(text), table]


def _first(setting: Setting, metric: str) -> float | None:
    return next((value for run in setting.by_seed.values() if (value := run.value(metric)) is not None), None)


def _pair_matching(study: Study) -> list[Block]:
    """Metrics beyond retrieval and classification, with and without pair matching."""
    names = sorted({name for run in study.leaves for name in run.metrics if name.startswith(MEASURED)})
    beyond = [
        name for name in names if not any(part in name for part in RETRIEVAL) and not name.endswith(("acc1", "acc5"))
    ]
    if not beyond:
        return [Text("No metric beyond retrieval and classification was logged: evaluate composition or re-ranking.")]
    pairs = _with_and_without(settings(study))
    if not pairs:
        return [Text(f"No setting with pair matching can be compared with one without it, judging by {PAIR_WEIGHT}.")]
    table = _pair_table(pairs, beyond[:12])
    known = [(row[0].text, row[1].text, row[2].text, row[7].text) for row in table.rows]
    sentences = []
    for sign, verb in (("▲", "raises"), ("▼", "lowers")):
        found = [f"{metric} ({one} against {other})" for metric, one, other, verdict in known if verdict[:1] == sign]
        sentences += [f"Pair matching {verb} {'; '.join(found)}."] if found else []
    return [Text(" ".join(sentences) or "These seeds show no difference beyond retrieval."), table]


def _with_and_without(found: Sequence[Setting]) -> list[tuple[Setting, Setting]]:
    """Each setting with pair matching and the most similar one without it.

    That is the one that differs in the fewest parameters, and of equals the nearest in the order of settings.
    """

    def weight(setting: Setting) -> float | None:
        return number(setting.trial.params.get(PAIR_WEIGHT))

    def distance(one: Setting, other: Setting) -> tuple[int, int]:
        mine, theirs = one.trial.params, other.trial.params
        return sum(mine.get(path) != theirs.get(path) for path in {*mine, *theirs}), abs(one.order - other.order)

    without = [setting for setting in found if weight(setting) == 0]
    having = [setting for setting in found if (weight(setting) or 0) > 0]
    return [(one, min(without, key=lambda other: distance(one, other))) for one in having if without]


def _pair_table(pairs: Sequence[tuple[Setting, Setting]], metrics: Sequence[str]) -> Table:
    compared = [(metric, one, other) for metric in metrics for one, other in pairs]
    gaps = [paired_difference(one.values(metric), other.values(metric)) for metric, one, other in compared]
    corrected = holm([gap.p if gap else math.nan for gap in gaps])
    rows = []
    for (metric, one, other), gap, p in zip(compared, gaps, corrected, strict=True):
        estimate = t_interval(list(one.values(metric).values()))
        rows.append(
            [
                Cell(metric_label(metric), metric),
                Cell(one.name, one.name, one.trial.link),
                Cell(other.name, other.name, other.trial.link),
                metric_cell(metric, estimate.mean if estimate.count else None),
                Cell(points(metric, gap.mean), gap.mean) if gap else Cell("—"),
                Cell(interval(metric, gap.low, gap.high) or "—") if gap else Cell("—"),
                Cell(probability(p), None if math.isnan(p) else p),
                higher_or_lower(judge(estimate, gap, p)),
            ]
        )
    difference = ["difference", "95 % interval of difference", "Holm p", "verdict"]
    return Table(
        key="beyond",
        title="Beyond retrieval and classification",
        columns=["metric", "with", "without", "mean with", *difference],
        rows=rows,
        numeric=[False, False, False, True, True, False, True, False],
        sortable=True,
        note="Each setting with pair matching is compared with the one without it that has the most similar "
        "parameters. Paired by seed; Holm's correction of p is over all rows of this table.",
    )


def _ratio(study: Study) -> list[Block]:
    """The study's metric against the share of synthetic captions."""
    path = varied_number(study, RATIOS)
    if path is None:
        return [Text("The settings do not differ in exactly one number, so there is no curve over the ratio.")]
    better = [row.setting.name for row in compare_settings(study) if row.verdict == "better"]
    text = "No ratio is shown to be better than the baseline."
    if better:
        text = f"Better than the baseline: {', '.join(better)}."
    return [Text(text), against_number(study, path, "ratio")]


def _divergence(study: Study) -> list[Block]:
    """Whether blocks that share weights stay similar: the mean change of divergence in a run, over runs."""
    sentences = []
    for shared, name in ((True, "Pairs that share weights"), (False, "Pairs that do not share weights")):
        runs = [(setting.trial, run) for setting in settings(study) for run in setting.by_seed.values()]
        found = t_interval([change for trial, run in runs if (change := _change(trial, run, shared)) is not None])
        if found.count < 2:
            continue
        trend = "drift apart" if found.mean > 0 else "move closer"
        trend = "show no change beyond noise" if found.low <= 0 <= found.high else trend
        sentences.append(
            f"{name} {trend}: change {found.mean:+.3g} nats, 95 % interval {found.low:+.3g} to {found.high:+.3g}, "
            f"{found.count} runs."
        )
    return [Text(text) for text in sentences] or [Text("Too few divergence curves to answer this.")]


def _change(trial: Run, run: Run, shared: bool) -> float | None:
    """Last minus first divergence of a run, as the mean over its pairs of blocks."""
    # The pairs of one run share its seed, so they are not replicates: each run counts as one value.
    changes = [
        curve[-1][1] - curve[0][1]
        for name, curve in run.curves.items()
        if name.startswith(DIVERGENCE) and len(curve) > 1
        if shares_weights(trial, *name.removeprefix(DIVERGENCE).split("/", 1)) is shared
    ]
    return math.fsum(changes) / len(changes) if changes else None


def _teacher(study: Study) -> list[Block]:
    """The student's metric by setting, and the teachers' own metrics."""
    compared = compare_settings(study)
    known = [row.estimate.mean for row in compared if row.estimate.count]
    text = "No setting has a completed run."
    if known:
        spread = points(study.metric, max(known) - min(known))
        text = f"The student's mean {metric_label(study.metric)} differs by up to {spread} between settings."
    rows = [
        [
            Cell(row.setting.name, row.setting.name, row.setting.trial.link),
            Cell(_teacher_name(row.setting.trial)),
            metric_cell(study.metric, row.estimate.mean) if row.estimate.count else Cell("—"),
            Cell(row.verdict_text, row.verdict),
        ]
        for row in compared
    ]
    columns = ["setting", "teacher", f"student's {metric_label(study.metric)}", "verdict"]
    student = Table(
        key="students",
        title="Student by teacher",
        columns=columns,
        rows=rows,
        numeric=[False, False, True, False],
        sortable=True,
    )
    shown = measured(HEADLINE, *study.teachers)
    own = [
        [
            Cell(run.name, run.name, run.link),
            count_cell(run.steps),
            *(metric_cell(m, run.metrics.get(m)) for m in shown),
        ]
        for run in study.teachers
    ]
    titles = ["teacher", "steps", *map(metric_label, shown)]
    numeric = [False, *[True] * (len(titles) - 1)]
    teachers = Table(key="teachers", title="The teachers themselves", columns=titles, rows=own, numeric=numeric)
    return [Text(text), student, teachers]


def _teacher_name(trial: Run) -> str:
    """The teacher's file name."""
    names = trial.params.get("distil_from") or ""
    text = names if names not in ("", "()", "[]") else trial.params.get("teacher") or "None"
    # Without the folder, which exists only on the machine that trained.
    return "none" if text == "None" else text.rpartition("/")[2]


_ANSWERS: dict[str, tuple[str, Callable[[Study], list[Block]]]] = {
    "scaling": ("How quality scales with the number of pairs", scaling),
    "sharing": ("Which sharing pattern is best", _sharing),
    "pair_matching": ("Whether pair matching helps beyond retrieval", _pair_matching),
    "caption_ratio": ("Which ratio of synthetic captions is best", _ratio),
    "divergence": ("Whether shared blocks stay similar during training", _divergence),
    "teacher": ("How much depends on the teacher", _teacher),
}
