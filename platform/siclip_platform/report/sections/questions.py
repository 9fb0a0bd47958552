"""The questions that the method leaves open, each answered by the study that carries its tag."""

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
from siclip_platform.report.read.runs import HEADLINE, Run, Study
from siclip_platform.report.sections.ablation import MEASURED, higher_or_lower
from siclip_platform.report.sections.scaling import scaling
from siclip_platform.report.sections.training import DIVERGENCE, shares_weights
from siclip_platform.report.sections.varied import against_number, varied_number

RATIOS = ("data.synthetic_share",)
PAIR_WEIGHT = "loss.pair_matching"
RETRIEVAL = ("retrieval", "mean_recall@1")


def question(study: Study) -> Section | None:
    """The section of the study's question; None without one that is known."""
    found = _ANSWERS.get(study.question or "")
    if found is None:
        return None
    title, answer = found
    return Section("question", title, answer(study))


def _sharing(study: Study) -> list[Block]:
    """Settings by mean, with parameters and the paired verdict."""
    rows = sorted(
        (row for row in compare_settings(study) if row.estimate.count),
        key=lambda row: -study.gain(row.estimate.mean),
    )
    if not rows:
        return [Text("No pattern has a completed run.")]
    parts = [" ".join(row.words.split()[1:]) for row in rows]
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
                Cell(row.words, row.verdict),
            ]
            for rank, row in enumerate(rows, 1)
        ],
        numeric=[True, False, True, True, True, False],
        sortable=True,
    )
    led = f"Highest mean: {rows[0].setting.name} ({parts[0]})."
    led += " Ranks of settings that are not distinguishable mean nothing."
    return [Text(led), table]


def _first(setting: Setting, metric: str) -> float | None:
    return next((value for run in setting.by_seed.values() if (value := run.value(metric)) is not None), None)


def _pair_matching(study: Study) -> list[Block]:
    names = sorted({name for run in study.leaves for name in run.metrics if name.startswith(MEASURED)})
    beyond = [
        name for name in names if not any(part in name for part in RETRIEVAL) and not name.endswith(("acc1", "acc5"))
    ]
    if not beyond:
        return [Text("No figure beyond retrieval and classification was logged: evaluate composition or re-ranking.")]
    pairs = _with_and_without(settings(study))
    if not pairs:
        return [Text(f"No setting trains with pair matching beside one without: {PAIR_WEIGHT} tells which do.")]
    table = _pair_table(pairs, beyond[:12])
    known = [(row[0].text, row[1].text, row[2].text, row[7].text) for row in table.rows]
    told = []
    for sign, verb in (("▲", "raises"), ("▼", "lowers")):
        found = [f"{figure} ({one} against {other})" for figure, one, other, verdict in known if verdict[:1] == sign]
        told += [f"Pair matching {verb} {'; '.join(found)}."] if found else []
    return [Text(" ".join(told) or "No difference beyond retrieval is shown by these seeds."), table]


def _with_and_without(found: Sequence[Setting]) -> list[tuple[Setting, Setting]]:
    """Each setting with pair matching beside that without it from which it differs in the fewest parameters, of
    equals the nearest above it."""

    def weight(setting: Setting) -> float | None:
        return number(setting.trial.params.get(PAIR_WEIGHT))

    def apart(one: Setting, other: Setting) -> tuple[int, int]:
        mine, theirs = one.trial.params, other.trial.params
        return sum(mine.get(path) != theirs.get(path) for path in {*mine, *theirs}), abs(one.order - other.order)

    without = [setting for setting in found if weight(setting) == 0]
    having = [setting for setting in found if (weight(setting) or 0) > 0]
    return [(one, min(without, key=lambda other: apart(one, other))) for one in having if without]


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
    return Table(
        key="beyond", title="Beyond retrieval and classification", rows=rows, sortable=True,
        columns=["figure", "with", "without", "mean with", "difference", "its 95 % interval", "Holm p", "verdict"],
        numeric=[False, False, False, True, True, False, True, False],
        note="Each setting with pair matching against the one without it that is nearest to it in its parameters. "
        "Paired by seed; p is corrected by Holm over all rows of this table.",
    )  # fmt: skip


def _ratio(study: Study) -> list[Block]:
    path = varied_number(study, RATIOS)
    if path is None:
        return [Text("The settings do not differ in one number, so there is no curve over the ratio.")]
    better = [row.setting.name for row in compare_settings(study) if row.verdict == "better"]
    words = (
        f"Better than the baseline: {', '.join(better)}."
        if better
        else "No ratio is shown to be better than the baseline."
    )
    return [Text(words), against_number(study, path, "ratio")]


def _divergence(study: Study) -> list[Block]:
    """Whether pairs that share weights stay close: the mean change of a run's pairs through training, over runs."""
    told = []
    for shared, name in ((True, "Pairs that share weights"), (False, "Pairs that do not")):
        runs = [(setting.trial, run) for setting in settings(study) for run in setting.by_seed.values()]
        found = t_interval([change for trial, run in runs if (change := _change(trial, run, shared)) is not None])
        if found.count < 2:
            continue
        side = "drift apart" if found.mean > 0 else "draw closer"
        side = "stay level within noise" if found.low <= 0 <= found.high else side
        told.append(
            f"{name} {side}: change {found.mean:+.3g} nats, 95 % interval {found.low:+.3g} to {found.high:+.3g}, "
            f"{found.count} runs."
        )
    return [Text(words) for words in told] or [Text("Too few divergence curves to answer it.")]


def _change(trial: Run, run: Run, shared: bool) -> float | None:
    """Mean over a run's pairs, which are no replicates of each other, of last minus first divergence."""
    changes = [
        curve[-1][1] - curve[0][1]
        for name, curve in run.curves.items()
        if name.startswith(DIVERGENCE) and len(curve) > 1
        if shares_weights(trial, *name.removeprefix(DIVERGENCE).split("/", 1)) is shared
    ]
    return math.fsum(changes) / len(changes) if changes else None


def _teacher(study: Study) -> list[Block]:
    """The student's quality by setting, and the teachers' own."""
    compared = compare_settings(study)
    known = [row.estimate.mean for row in compared if row.estimate.count]
    words = "No setting has a completed run."
    if known:
        spread = points(study.metric, max(known) - min(known))
        words = f"Between the settings the student's mean {metric_label(study.metric)} spreads over {spread}."
    rows = [
        [
            Cell(row.setting.name, row.setting.name, row.setting.trial.link),
            Cell(_teacher_name(row.setting.trial)),
            metric_cell(study.metric, row.estimate.mean) if row.estimate.count else Cell("—"),
            Cell(row.words, row.verdict),
        ]
        for row in compared
    ]
    columns = ["setting", "teacher", f"student's {metric_label(study.metric)}", "verdict"]
    student = Table(key="students", title="Student by teacher", columns=columns, rows=rows,
                    numeric=[False, False, True, False], sortable=True)  # fmt: skip
    own = [
        [
            Cell(run.name, run.name, run.link),
            count_cell(run.steps),
            *(metric_cell(m, run.metrics.get(m)) for m in HEADLINE),
        ]
        for run in study.teachers
    ]
    titles = ["teacher", "steps", *map(metric_label, HEADLINE)]
    teachers = Table(key="teachers", title="The teachers themselves", columns=titles, rows=own,
                     numeric=[False, *[True] * (len(titles) - 1)])  # fmt: skip
    return [Text(words), student, teachers]


def _teacher_name(trial: Run) -> str:
    """The files' names alone: folders are of the machine that trained."""
    names = trial.params.get("distil_from") or ""
    text = names if names not in ("", "()", "[]") else trial.params.get("teacher") or "None"
    return "none" if text == "None" else text.rpartition("/")[2]


_ANSWERS: dict[str, tuple[str, Callable[[Study], list[Block]]]] = {
    "scaling": ("How quality scales with the number of pairs", scaling),
    "sharing": ("Which sharing pattern is best", _sharing),
    "pair_matching": ("Whether pair matching helps beyond retrieval", _pair_matching),
    "caption_ratio": ("What ratio of synthetic captions", _ratio),
    "divergence": ("Whether shared blocks stay close through training", _divergence),
    "teacher": ("How much depends on the teacher", _teacher),
}
