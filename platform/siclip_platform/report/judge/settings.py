"""Settings of a study with their seeds, compared with the baseline seed by seed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from siclip_platform.report.judge.statistics import (
    ALPHA,
    Difference,
    Estimate,
    deviation,
    holm,
    paired_difference,
    seeds_needed,
    t_interval,
)
from siclip_platform.report.read.runs import Run, Study

Verdict = Literal[
    "baseline", "better", "worse", "not distinguishable", "equal", "no interval", "no pair", "no figures"
]


@dataclass(frozen=True)
class Setting:
    """One setting of a study.

    Attributes:
        order: Position among the study's settings.
        trial: The trial whose parameters and link represent the setting.
        by_seed: Seed → run.
    """

    name: str
    order: int
    trial: Run
    by_seed: Mapping[int, Run]

    def values(self, metric: str) -> dict[int, float]:
        """Seed → last value of a metric, for completed runs where it is finite."""
        found = {seed: run.value(metric) for seed, run in self.by_seed.items() if run.state == "completed"}
        return {seed: value for seed, value in found.items() if value is not None}


@dataclass(frozen=True)
class Comparison:
    """A setting compared with the baseline.

    Attributes:
        estimate: Mean of the setting over its seeds.
        difference: Setting minus baseline, paired by seed; None without a common seed.
        p: p value of the difference, Holm-corrected over the study's settings.
        standardized: The difference in standard deviations of the paired differences.
        level: The strictest level of Holm's correction, that of the smallest p.
    """

    setting: Setting
    estimate: Estimate
    difference: Difference | None
    p: float
    verdict: Verdict
    standardized: float = math.nan
    level: float = ALPHA

    @cached_property
    def more(self) -> int | None:
        """Additional seeds that would detect the measured difference with 80 % power; None if unknown or too many."""
        if self.verdict != "not distinguishable" or self.difference is None:
            return None
        needed = seeds_needed(self.standardized, self.level)
        return max(1, needed - self.difference.pairs) if needed else None

    @property
    def verdict_text(self) -> str:
        """The verdict with a symbol, so that it does not depend on colour."""
        seeds = self.difference.pairs if self.difference else self.estimate.count
        with_seeds = f"{seeds} {'seed' if seeds == 1 else 'seeds'}"
        if self.verdict == "not distinguishable":
            more = f"about {self.more} more needed" if self.more else "no practical number would be enough"
            return f"≈ not distinguishable with {with_seeds}; {more}"
        return {
            "baseline": "● baseline",
            "better": f"▲ better ({with_seeds})",
            "worse": f"▼ worse ({with_seeds})",
            "equal": f"≈ equal at {'all ' if seeds > 1 else ''}{with_seeds}",
            "no interval": f"? cannot be judged with {with_seeds}",
            "no pair": "? no seed in common with the baseline",
            "no figures": "? no completed run with a value",
        }[self.verdict]


def settings(study: Study) -> list[Setting]:
    """The study's settings in order. Trials of one setting without seed runs are distinguished by their own seed."""
    children: dict[str | None, list[Run]] = {}
    for run in study.seeds:
        children.setdefault(run.parent, []).append(run)
    grouped: dict[str, list[Run]] = {}
    trials: dict[str, Run] = {}
    for trial in study.trials:
        trials.setdefault(trial.label, trial)
        grouped.setdefault(trial.label, []).extend(children.get(trial.run_id, [trial]))
    unordered = [
        Setting(name, _order(trials[name], index), trials[name], _by_seed(runs))
        for index, (name, runs) in enumerate(grouped.items())
    ]
    return sorted(unordered, key=lambda setting: setting.order)


def _by_seed(runs: Iterable[Run]) -> dict[int, Run]:
    """Seed → run; of several runs with one seed the completed one, else the newest."""
    found: dict[int, Run] = {}
    for index, run in enumerate(runs):
        # A run without a seed gets a negative number, so that it pairs with no other run.
        seed = run.seed if run.seed is not None else -1 - index
        if seed not in found or found[seed].state != "completed" or run.state == "completed":
            found[seed] = run
    return found


def _order(trial: Run, index: int) -> int:
    text = trial.tag("setting_order") or ""
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else index


def baseline_of(study: Study, found: list[Setting]) -> Setting | None:
    return next((setting for setting in found if setting.name == study.baseline), None)


def compare_settings(study: Study, metric: str | None = None) -> list[Comparison]:
    """Compare every setting with the baseline, with Holm's correction over the settings.

    Args:
        study: The study.
        metric: The metric to compare by (default: the study's).
    """
    metric = metric or study.metric
    found = settings(study)
    baseline = baseline_of(study, found)
    base = baseline.values(metric) if baseline else {}
    others = [setting for setting in found if setting is not baseline]
    # NaN for a setting without a pair, so that Holm's correction still counts it.
    differences = {setting.name: paired_difference(setting.values(metric), base) for setting in others}
    raw = [gap.p if (gap := differences[setting.name]) else math.nan for setting in others]
    corrected = dict(zip((setting.name for setting in others), holm(raw), strict=True))
    # The level of Holm's first step: sample sizes planned with it hold for every setting.
    level = ALPHA / max(len(others), 1)
    sign = -1 if metric == study.metric and not study.higher_is_better else 1
    rows = []
    for setting in found:
        estimate = t_interval(list(setting.values(metric).values()))
        if setting is baseline:
            rows.append(Comparison(setting, estimate, None, math.nan, "baseline"))
            continue
        difference, p = differences[setting.name], corrected[setting.name]
        verdict = judge(estimate, difference, p, sign, have_baseline=bool(base))
        size = _standardized(setting.values(metric), base)
        rows.append(Comparison(setting, estimate, difference, p, verdict, size, level))
    return rows


def indistinguishable_from(study: Study, leader: str) -> list[str]:
    """Settings that the study's seeds do not distinguish from ``leader``: paired t tests with Holm's correction."""
    found = settings(study)
    values = {setting.name: setting.values(study.metric) for setting in found}
    others = [name for name in values if name not in (leader, study.baseline) and values[name]]
    gaps = [paired_difference(values.get(leader, {}), values[name]) for name in others]
    corrected = holm([gap.p if gap else math.nan for gap in gaps])
    return [name for name, p in zip(others, corrected, strict=True) if not p < ALPHA]


def seeds_to_separate(one: Mapping[int, float], other: Mapping[int, float]) -> int | None:
    """Additional seeds that would detect the measured difference of two settings in one test with 80 % power."""
    pairs = len(one.keys() & other.keys())
    needed = seeds_needed(_standardized(one, other)) if pairs > 1 else None
    return max(1, needed - pairs) if needed else None


def judge(
    estimate: Estimate, difference: Difference | None, p: float, sign: int = 1, *, have_baseline: bool = True
) -> Verdict:
    """Return the verdict that a corrected p and the sign of a difference allow.

    Args:
        estimate: Mean of the setting.
        difference: Its difference from the baseline.
        p: Corrected p value of the difference.
        sign: 1 if higher values are better, else -1.
        have_baseline: Whether the baseline has any value.
    """
    if not estimate.count:
        return "no figures"
    if difference is None:
        return "no pair" if have_baseline else "no interval"
    if math.isnan(p):
        return "no interval"
    if p < ALPHA:
        return "better" if sign * difference.mean > 0 else "worse"
    return "equal" if difference.mean == 0 and difference.low == 0 else "not distinguishable"


def _standardized(values: Mapping[int, float], base: Mapping[int, float]) -> float:
    """Mean over standard deviation of the paired differences; NaN with fewer than two or without spread."""
    gaps = [values[seed] - base[seed] for seed in values.keys() & base.keys()]
    spread = deviation(gaps) if len(gaps) > 1 else 0.0
    return math.fsum(gaps) / len(gaps) / spread if spread else math.nan
