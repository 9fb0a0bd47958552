"""An ablation's settings compared with its baseline, and the fresh seeds of its leader."""

from __future__ import annotations

import math
from collections.abc import Sequence

from siclip_platform.report.draw.blocks import Block, Section, Text
from siclip_platform.report.draw.looks import BEST, CONTROL
from siclip_platform.report.draw.plots import Plot, Series
from siclip_platform.report.draw.values import (
    MISSING,
    Cell,
    Table,
    interval,
    is_share,
    metric_cell,
    metric_label,
    points,
    probability,
    short,
)
from siclip_platform.report.judge.pools import pool_of
from siclip_platform.report.judge.settings import Comparison, Verdict, compare_settings, judge
from siclip_platform.report.judge.statistics import Estimate, holm
from siclip_platform.report.judge.winner import find_winner
from siclip_platform.report.read.runs import Study

EXPLANATION = (
    "Each mean is over seeds, with its 95 % Student t interval. Differences are from the baseline, paired by seed. p "
    "is that of the paired t test with Holm's correction for the number of settings; it decides the verdict. g is "
    "Hedges' effect size, in standard deviations of the difference. “About m more needed”: with m additional seeds "
    "the measured difference would be detected with 80 % power at the corrected level."
)

MEASURED = ("test/", "eval/", "validation/")


def ablation(study: Study) -> Section | None:
    """The settings of an ablation compared with its baseline."""
    if study.type != "ablation":
        return None
    rows = compare_settings(study)
    if not rows:
        return Section("ablation", "Ablation", [Text("The ablation has no runs yet.")])
    pool = pool_of(study, study.metric)
    where = f" {metric_label(study.metric)}: {pool.words(study.metric)}." if pool else ""
    blocks: list[Block] = [Text(EXPLANATION + where, soft=True), comparison_table(study, rows), *_forest(study, rows)]
    others = other_metrics(study)
    if others:
        blocks += [effects_table(study, others, "effects", "Differences from the baseline in other metrics")]
    return Section("ablation", "Ablation", blocks)


def confirmation(study: Study) -> Section | None:
    """The fresh seeds of the leading setting, if it has any."""
    winner = find_winner(study)
    if not winner.fresh:
        return None
    rows = [
        [
            Cell(run.label, run.label, run.link),
            Cell("" if run.seed is None else str(run.seed), run.seed),
            Cell(run.state),
            metric_cell(winner.metric, run.metrics.get(winner.metric)),
        ]
        for run in study.confirms
    ]
    gap = winner.difference
    text = "There is nothing to compare the fresh seeds with."
    if gap is not None:
        known = interval(winner.metric, gap.low, gap.high) or "not known"
        text = (
            f"{winner.name} minus {winner.against}: {points(winner.metric, gap.mean)} "
            f"{metric_label(winner.metric)}, 95 % interval {known}, p {probability(gap.p)}, "
            f"{'paired by seed' if gap.paired else 'not paired (pooled t test)'}: {winner.status}."
        )
    table = Table(
        key="confirmation",
        title="Runs with fresh seeds",
        columns=["setting", "seed", "state", metric_label(winner.metric)],
        rows=rows,
        numeric=[False, True, False, True],
        sortable=True,
    )
    return Section("fresh", "Fresh seeds", [Text(text), table])


def comparison_table(study: Study, rows: Sequence[Comparison]) -> Table:
    """One row per setting, with its difference from the baseline and the verdict."""
    metric = study.metric
    return Table(
        key="ablation",
        title=f"Settings by {metric_label(metric)}",
        columns=[
            "setting",
            "seeds",
            "mean",
            "95 % interval",
            "difference",
            "95 % interval of difference",
            "Holm p",
            "g",
            "verdict",
        ],
        rows=[_row(metric, row) for row in rows],
        numeric=[False, True, True, False, True, False, True, True, False],
        sortable=True,
        marked=frozenset(index for index, row in enumerate(rows) if row.verdict == "better"),
    )


def _row(metric: str, row: Comparison) -> list[Cell]:
    gap = row.difference
    gap_interval = interval(metric, gap.low, gap.high) if gap else ""
    return [
        Cell(row.setting.name, row.setting.name, row.setting.trial.link),
        Cell(str(row.estimate.count), row.estimate.count),
        metric_cell(metric, row.estimate.mean) if row.estimate.count else Cell(MISSING),
        Cell(_plain_interval(metric, row.estimate)),
        Cell(points(metric, gap.mean), gap.mean) if gap else Cell("—"),
        Cell(gap_interval or "—"),
        Cell(probability(row.p), None if math.isnan(row.p) else row.p),
        Cell(f"{gap.effect:+.2f}".replace("-", "−"), gap.effect) if gap and math.isfinite(gap.effect) else Cell("—"),
        Cell(row.verdict_text, row.verdict),
    ]


def _plain_interval(metric: str, estimate: Estimate) -> str:
    if not math.isfinite(estimate.low):
        return "one seed" if estimate.count else "—"
    if is_share(metric):
        return f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f} %".replace("-", "−")
    return f"{short(estimate.low)} to {short(estimate.high)}".replace("-", "−")


def _forest(study: Study, rows: Sequence[Comparison]) -> list[Plot]:
    """A forest plot: one difference with its interval per line."""
    # The y axis points up, so the first setting comes last to be at the top.
    known = [row for row in rows if row.difference][::-1]
    if not known:
        return []
    gaps = [row.difference for row in known if row.difference]
    significant = [row.verdict in ("better", "worse") for row in known]
    series = [
        Series(
            name=name,
            x=[gap.mean for gap, flag in zip(gaps, significant, strict=True) if flag is group],
            y=[float(index) for index, flag in enumerate(significant) if flag is group],
            low=[_known(gap.low) for gap, flag in zip(gaps, significant, strict=True) if flag is group],
            high=[_known(gap.high) for gap, flag in zip(gaps, significant, strict=True) if flag is group],
            labels=[row.setting.name for row, flag in zip(known, significant, strict=True) if flag is group],
            style="points",
            look=look,
            sideways=True,
        )
        for name, group, look in (("distinguishable", True, CONTROL), ("not distinguishable", False, BEST))
        if group in significant
    ]
    spread = ", ".join(
        f"{row.setting.name} {points(study.metric, gap.mean)}" for row, gap in zip(known, gaps, strict=True)
    )
    return [
        Plot(
            key="forest",
            title=f"Difference from the baseline ({study.baseline})",
            description=f"Difference of {metric_label(study.metric)} from the baseline, 95 % intervals: {spread}.",
            x_label=f"difference in {metric_label(study.metric)}",
            y_label="",
            series=series,
            y_ticks=[row.setting.name for row in known],
            percent_x=is_share(study.metric),
            zero_line="x",
            height=min(900, 170 + 34 * len(known)),
        )
    ]


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def other_metrics(study: Study) -> list[str]:
    """Up to 12 metrics other than the study's own, summary metrics preferred."""
    names = sorted({name for run in study.leaves for name in run.metrics if name.startswith(MEASURED)})
    others = [name for name in names if name != study.metric]
    preferred = [name for name in others if name.endswith(("mean_recall@1", "beats_all_negatives", "acc1", "acc"))]
    return (preferred or others)[:12]


def effects_table(study: Study, metrics: Sequence[str], key: str, title: str) -> Table:
    """Every setting compared with the baseline on several metrics."""
    pairs = [
        (metric, row) for metric in metrics for row in compare_settings(study, metric) if row.verdict != "baseline"
    ]
    # The reader scans the whole table for small p values, so all its rows are one family of comparisons.
    corrected = holm([_raw_p(row) for _, row in pairs])
    rows = []
    for (metric, row), p in zip(pairs, corrected, strict=True):
        gap = row.difference
        rows.append(
            [
                Cell(metric_label(metric), metric),
                Cell(row.setting.name, row.setting.name),
                metric_cell(metric, row.estimate.mean) if row.estimate.count else Cell(MISSING),
                Cell(points(metric, gap.mean), gap.mean) if gap else Cell("—"),
                Cell(interval(metric, gap.low, gap.high) or "—") if gap else Cell("—"),
                Cell(probability(p), None if math.isnan(p) else p),
                higher_or_lower(judge(row.estimate, gap, p)),
            ]
        )
    return Table(
        key=key,
        title=title,
        columns=["metric", "setting", "mean", "difference", "95 % interval of difference", "Holm p", "verdict"],
        rows=rows,
        numeric=[False, False, True, True, False, True, False],
        sortable=True,
        note="Paired by seed; Holm's correction of p is over all rows of this table.",
    )


def higher_or_lower(verdict: Verdict) -> Cell:
    """The verdict on a metric other than the study's, for which higher is not always better."""
    signs = {"better": "▲ higher", "worse": "▼ lower", "no figures": "? no figures"}
    return Cell(signs.get(verdict, "≈ no difference shown"), verdict)


def _raw_p(row: Comparison) -> float:
    return row.difference.p if row.difference else math.nan
