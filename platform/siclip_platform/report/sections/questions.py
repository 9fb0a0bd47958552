"""The questions that the method leaves open, each answered by the study that carries its tag."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from siclip_platform.report.blocks import Block, Section, Text
from siclip_platform.report.looks import BEST, CONTROL
from siclip_platform.report.numbers import is_log, number
from siclip_platform.report.plots import Plot, Series
from siclip_platform.report.power_law import PowerLaw, fit_power_law
from siclip_platform.report.runs import HEADLINE, Run, Study
from siclip_platform.report.sections.ablation import effects_table
from siclip_platform.report.sections.training import DIVERGENCE, shares_weights
from siclip_platform.report.settings import Setting, compare_settings, settings
from siclip_platform.report.statistics import t_interval
from siclip_platform.report.values import (
    Cell,
    Table,
    count_cell,
    is_share,
    metric_cell,
    metric_label,
    plural,
    points,
    short,
)

SIZES = ("data.pairs", "data.samples", "data.limit", "data.max_samples", "data.train_samples", "data.first")
RATIOS = ("data.synthetic_share",)
RETRIEVAL = ("retrieval", "mean_recall@1")
FURTHER = 10


def question(study: Study) -> Section | None:
    """The section of the study's question; None without one that is known."""
    found = _ANSWERS.get(study.question or "")
    if found is None:
        return None
    title, answer = found
    return Section("question", title, answer(study))


def _varied(study: Study, preferred: Sequence[str]) -> str | None:
    """The numeric parameter that the settings are about: a preferred one, else the only numeric one that varies."""
    made = settings(study)

    def numeric(path: str) -> bool:
        values = [number(setting.trial.params.get(path)) for setting in made]
        return None not in values and len(set(values)) > 1

    wanted = next((path for path in preferred if numeric(path)), None)
    if wanted:
        return wanted
    paths = {path for setting in made for path in setting.trial.params if path != "training.seed"}
    found = [path for path in sorted(paths) if numeric(path) and not path.startswith("study.")]
    return found[0] if len(found) == 1 else None


def _positions(study: Study, path: str) -> list[tuple[float, Setting]]:
    pairs = [(number(setting.trial.params.get(path)), setting) for setting in settings(study)]
    return sorted(((x, setting) for x, setting in pairs if x is not None), key=lambda pair: pair[0])


def _against(study: Study, path: str, key: str) -> Plot:
    """The metric's mean over seeds, with intervals, against a numeric parameter."""
    found = [(x, t_interval(list(setting.values(study.metric).values()))) for x, setting in _positions(study, path)]
    known = [(x, each) for x, each in found if each.count]
    low, high = (min(x for x, _ in known), max(x for x, _ in known)) if known else (0.0, 0.0)
    shown = ", ".join(f"{short(x)}: {metric_cell(study.metric, each.mean).text}" for x, each in known)
    return Plot(
        key=key,
        title=f"{metric_label(study.metric)} against {path}",
        description=f"Mean over seeds with its 95 % interval. {shown or 'No completed run.'}",
        x_label=path,
        y_label=metric_label(study.metric),
        x_log=is_log(low, high),
        percent=is_share(study.metric),
        series=[
            Series(
                name="mean and 95 % interval",
                x=[x for x, _ in known],
                y=[each.mean for _, each in known],
                low=[each.low if math.isfinite(each.low) else None for _, each in known],
                high=[each.high if math.isfinite(each.high) else None for _, each in known],
                style="points",
                look=BEST,
            )
        ],
    )


def _scaling(study: Study) -> list[Block]:
    path = _varied(study, SIZES)
    if path is None:
        return [Text("The settings do not differ in one number, so there is no scaling curve.")]
    by_size: dict[float, list[float]] = {}
    for size, setting in _positions(study, path):
        if size > 0:  # a limit of 0 means all, and its number is not in the recipe
            by_size.setdefault(size, []).extend(setting.values(study.metric).values())
    if not by_size:
        return [Text(f"No setting has a number above 0 for {path}, so there is no scaling curve.")]
    share = is_share(study.metric)
    if study.higher_is_better and not share:
        return [
            _against(study, path, "scaling"),
            Text(f"{study.metric} is not an error or a share, so no law is fitted."),
        ]
    errors = {
        x: [1 - value if share and study.higher_is_better else value for value in values]
        for x, values in by_size.items()
    }
    law = fit_power_law({x: values for x, values in errors.items() if values})
    if law is None:
        few = f"A power law needs three sizes with a figure; there are {sum(bool(v) for v in errors.values())}."
        return [_against(study, path, "scaling"), Text(few)]
    return [
        Text(_law_words(law, errors, path, share)),
        _law_plot(study, law, errors, path, share),
        _against(study, path, "sizes"),
    ]


def _law_words(law: PowerLaw, errors: dict[float, list[float]], path: str, share: bool) -> str:
    further = FURTHER * max(errors)
    low, high = law.interval(further)
    what = "1 − share" if share else "error"
    sure = "Its interval excludes 0: more data helps." if law.low > 0 else "Its interval holds 0: no gain is shown."
    return (
        f"{what} = {law.scale:.3g} · N^−{law.exponent:.3f}, N = {path}; 95 % bootstrap interval of the exponent "
        f"{law.low:.3f} to {law.high:.3f}. {sure} Were the law to hold, {short(further)} would give "
        f"{law.at(further):.3g} ({low:.3g} to {high:.3g}); {law.sizes} sizes cannot show whether it does beyond them."
    )


def _law_plot(study: Study, law: PowerLaw, errors: dict[float, list[float]], path: str, share: bool) -> Plot:
    sizes = sorted(errors)
    grid = [sizes[0] * (FURTHER * sizes[-1] / sizes[0]) ** (index / 64) for index in range(65)]
    edges = [law.interval(size) for size in grid]
    label = f"1 − {metric_label(study.metric)}" if share and study.higher_is_better else metric_label(study.metric)
    measured = [(size, error) for size in sizes for error in errors[size]]
    return Plot(
        key="scaling",
        title=f"{label} against {path}",
        description=f"Measured {plural(len(measured), 'run')} and the fitted power law with exponent "
        f"{law.exponent:.3f}, drawn on to {FURTHER} times the largest size.",
        x_label=path,
        y_label=label,
        x_log=True,
        y_log=True,
        series=[
            Series(name="power law, 95 % interval", x=grid, y=[law.at(size) for size in grid],
                   low=[low for low, _ in edges], high=[high for _, high in edges], look=CONTROL, group="law"),
            Series(name="runs", x=[x for x, _ in measured], y=[y for _, y in measured], style="points", look=BEST),
        ],
    )  # fmt: skip


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
    names = sorted({name for run in study.leaves for name in run.metrics if name.startswith(("test/", "eval/"))})
    beyond = [
        name for name in names if not any(part in name for part in RETRIEVAL) and not name.endswith(("acc1", "acc5"))
    ]
    if not beyond:
        return [Text("No figure beyond retrieval and classification was logged: evaluate composition or re-ranking.")]
    table = effects_table(study, beyond[:12], "beyond", "Beyond retrieval and classification")
    known = [(row[0].text, row[1].text, row[6].text) for row in table.rows]
    higher = [f"{figure} with {setting}" for figure, setting, verdict in known if verdict.startswith("▲")]
    words = (
        f"Pair matching raises {'; '.join(higher)}."
        if higher
        else "No gain beyond retrieval is shown by these seeds."
    )
    return [Text(words), table]


def _ratio(study: Study) -> list[Block]:
    path = _varied(study, RATIOS)
    if path is None:
        return [Text("The settings do not differ in one number, so there is no curve over the ratio.")]
    better = [row.setting.name for row in compare_settings(study) if row.verdict == "better"]
    words = (
        f"Better than the baseline: {', '.join(better)}."
        if better
        else "No ratio is shown to be better than the baseline."
    )
    return [Text(words), _against(study, path, "ratio")]


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
    "scaling": ("How quality scales with the number of pairs", _scaling),
    "sharing": ("Which sharing pattern is best", _sharing),
    "pair_matching": ("Whether pair matching helps beyond retrieval", _pair_matching),
    "caption_ratio": ("What ratio of synthetic captions", _ratio),
    "divergence": ("Whether shared blocks stay close through training", _divergence),
    "teacher": ("How much depends on the teacher", _teacher),
}
