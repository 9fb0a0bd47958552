"""What a study gained: over the recipe that it began with, over the control, and below the teacher.

A gain has up to two uncertainties, which cover different things: an interval over seeds of the training, and one over
the items of the evaluation (`siclip_platform.report.judge.items`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from siclip_platform.report.judge.items import ItemGap, item_gap
from siclip_platform.report.judge.pools import pool_of
from siclip_platform.report.judge.settings import indistinguishable_from, settings
from siclip_platform.report.judge.statistics import paired_difference
from siclip_platform.report.judge.winner import Winner, over_control
from siclip_platform.report.read.items import CONTROL, LEADING, START, TEACHER, Items, read_items
from siclip_platform.report.read.runs import HEADLINE, Run, Study, measured

Over = Literal["start", "baseline", "control", "teacher"]
EQUAL = 1e-9  # relative size of a difference that is only rounding


@dataclass(frozen=True, kw_only=True)
class Gain:
    """The leading setting minus another one.

    Attributes:
        over: What it is compared with.
        name: The other one in words.
        metric: The metric.
        mean: The difference.
        values: The metric of both, if each is one value.
        low: Lower end of the 95 % interval over seeds; NaN without one.
        high: Upper end of it.
        seeds: Number of seeds.
        fresh: Whether the seeds were not used to choose the setting.
        items: The difference on the items of the final split, with its interval; None if they are not recorded.
    """

    over: Over
    name: str
    metric: str
    mean: float
    values: tuple[float, float] | None = None
    low: float = math.nan
    high: float = math.nan
    seeds: int = 1
    fresh: bool = False
    items: ItemGap | None = None

    @property
    def shown(self) -> bool:
        """Whether an interval of the seeds excludes 0; with one seed that of the items."""
        low, high = self.low, self.high
        if self.seeds < 2 and self.items is not None:
            low, high = self.items.low, self.items.high
        return low > 0 or high < 0


@dataclass(frozen=True)
class Tie:
    """Trials that are not separated from the leading one.

    Attributes:
        trials: The trials, the best first.
        margin: How far their values may lie from the leader's; 0 for equal values, None if seeds were compared.
    """

    trials: tuple[Run, ...]
    margin: float | None

    def __contains__(self, run: Run | None) -> bool:
        return run is not None and any(each.run_id == run.run_id for each in self.trials)


def gains(study: Study, winner: Winner) -> dict[Over, Gain]:
    """The gains that the store shows, by what they are over."""
    found = [_over_start(study, winner), _over_control(study), _over_teacher(study)]
    recorded = _items(study, winner)
    return {gain.over: _with_items(gain, recorded) for gain in found if gain is not None}


def start_leads(study: Study, winner: Winner) -> bool:
    """Whether the starting recipe itself leads the search."""
    return winner.trial is not None and study.start is not None and winner.trial.run_id == study.start.run_id


def tie(study: Study, winner: Winner) -> Tie:
    """Completed trials of a search that may be as good as the leading one.

    With several seeds those that the paired tests do not separate. With one seed, of a share of known images, those
    within one standard error (Breiman et al. 1984), else those with the same value.
    """
    leader = winner.trial
    value = leader.value(study.metric) if leader else None
    if study.type != "search" or leader is None or value is None:
        return Tie((), None)
    others = [run for run in study.ranked if run.run_id != leader.run_id]
    if len(_seeds(study, leader)) > 1:
        names = indistinguishable_from(study, winner.name)
        return Tie(tuple(run for run in others if run.label in names), None)
    pool = pool_of(study, study.metric)
    margin = EQUAL * max(1.0, abs(value))
    if pool is not None and pool.images and pool.chance(study.metric) is not None and 0 <= value <= 1:
        # Images, not queries, because the two directions share the images.
        margin = max(margin, math.sqrt(value * (1 - value) / pool.images))
    near = tuple(run for run in others if abs(run.metrics[study.metric] - value) <= margin)
    return Tie(near, margin)


def _seeds(study: Study, trial: Run) -> dict[int, float]:
    found = next((setting for setting in settings(study) if setting.name == trial.label), None)
    return found.values(study.metric) if found else {}


def _over_start(study: Study, winner: Winner) -> Gain | None:
    """From the strongest evidence to the weakest: fresh seeds, the study's seeds, one run of each."""
    start, row = study.start, winner.comparison
    over: Over = "baseline" if study.type == "ablation" else "start"
    if study.type == "ablation":
        name = study.baseline or "the baseline"
    else:
        name = f"the starting recipe ({start.label})" if start else "the starting recipe"
    gap = winner.difference
    if gap is not None and winner.reference in ("start", "baseline"):
        return Gain(
            over=over,
            name=winner.against if over == "baseline" else name,
            metric=winner.metric,
            mean=gap.mean,
            low=gap.low,
            high=gap.high,
            seeds=gap.pairs,
            fresh=True,
        )
    if row is not None and row.difference is not None:
        gap = row.difference
        return Gain(
            over=over, name=name, metric=study.metric, mean=gap.mean, low=gap.low, high=gap.high, seeds=gap.pairs
        )
    if start is None or winner.trial is None:
        return None
    gap = paired_difference(_seeds(study, winner.trial), _seeds(study, start))
    if gap is not None and gap.pairs > 1:
        return Gain(
            over=over, name=name, metric=study.metric, mean=gap.mean, low=gap.low, high=gap.high, seeds=gap.pairs
        )
    return _single(over, name, study.metric, winner.trial, start)


def _over_control(study: Study) -> Gain | None:
    fresh = over_control(study) if study.type == "search" else None
    if fresh is not None:
        metric, gap = fresh
        return Gain(
            over="control",
            name="the control",
            metric=metric,
            mean=gap.mean,
            low=gap.low,
            high=gap.high,
            seeds=gap.pairs,
            fresh=True,
        )
    best, control = study.best, study.control
    if best is None or control is None:
        return None
    # Test metrics before the study's own, by which the setting was chosen.
    names = (*measured(HEADLINE, best, control), study.metric)
    return next((found for name in names if (found := _single("control", "the control", name, best, control))), None)


def _over_teacher(study: Study) -> Gain | None:
    best, teacher = study.best, study.teacher
    if best is None or teacher is None:
        return None
    names = (*measured(HEADLINE, best, teacher), study.metric)
    return next((found for name in names if (found := _single("teacher", "the teacher", name, best, teacher))), None)


def _single(over: Over, name: str, metric: str, one: Run, other: Run) -> Gain | None:
    mine, theirs = one.value(metric), other.value(metric)
    if mine is None or theirs is None:
        return None
    return Gain(over=over, name=name, metric=metric, mean=mine - theirs, values=(mine, theirs))


def _items(study: Study, winner: Winner) -> Items | None:
    """The recorded outcomes, if they are of the trial that leads now."""
    found = read_items(study.items)
    if found is None or isinstance(found, str) or LEADING not in found.models or winner.trial is None:
        return None
    known = (winner.trial.label, winner.trial.tag("trial"), winner.trial.run_id)
    return found if found.models[LEADING].trial in known else None


def _with_items(gain: Gain, items: Items | None) -> Gain:
    keys = {"start": START, "control": CONTROL, "teacher": TEACHER}
    if items is None or gain.over not in keys:
        return gain
    name = gain.metric.partition("/")[2]
    return replace(gain, items=item_gap(items, LEADING, keys[gain.over], f"{items.split}/{name}"))
