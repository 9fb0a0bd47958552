"""Suggestions for the next step. Each is a rule that states the value it is based on."""

from __future__ import annotations

from siclip_platform.report.draw.values import metric_label, plural, points, short
from siclip_platform.report.judge.numbers import number, numeric_range
from siclip_platform.report.judge.settings import (
    compare_settings,
    indistinguishable_from,
    seeds_to_separate,
    settings,
)
from siclip_platform.report.judge.statistics import t_interval
from siclip_platform.report.judge.winner import find_winner
from siclip_platform.report.read.runs import Curve, Run, Study

FRESH_SEEDS = 5  # they detect a gain of 1.7 standard deviations of the paired difference with 80 % power
FAILED_SHARE = 0.2  # some failures are normal in a search, such as diverging learning rates
RISE = 0.02  # of a single run, whose noise is not known: a gain of a fiftieth counts as rising
OTHERWISE = "Try other data or another teacher: seeds cannot show what those would change."


def next_steps(study: Study) -> list[str]:
    """Sentences of the form ``WHAT: WHY.``, most useful first; empty for runs of no study."""
    if study.type == "runs":
        return []
    # A study that is unfinished or fails often makes all further advice premature, so these come first.
    steps = [*_unfinished(study), *_failures(study), *_confirm(study), *_separate(study), *_more_seeds(study)]
    return [*steps, *_edges(study), *_rising(study)] or [OTHERWISE]


def _unfinished(study: Study) -> list[str]:
    running = [run for run in study.runs if run.state == "running"]
    if not running:
        return []
    return [f"Let it finish: {len(running)} of {plural(len(study.runs), 'run')} still running or interrupted."]


def _failures(study: Study) -> list[str]:
    failed = [run for run in study.leaves if run.state == "failed"]
    if not failed or len(failed) < FAILED_SHARE * len(study.leaves):
        return []
    return [
        f"Check the failures: {len(failed)} of {plural(len(study.leaves), 'run')} failed; their reasons are below."
    ]


def _confirm(study: Study) -> list[str]:
    winner = find_winner(study)
    if winner.status == "not repeated":
        return [
            f"Re-run with fresh seeds: train {winner.name} and the baseline with {FRESH_SEEDS} unused seeds each "
            "before calling it the best."
        ]
    if winner.status == "not confirmed":
        return [f"Add fresh seeds: {plural(len(winner.fresh), 'fresh run')} of {winner.name} decided nothing."]
    if winner.status == "contradicted":
        return [f"Drop it: with fresh seeds {winner.name} is worse than {winner.against}."]
    return []


def _separate(study: Study) -> list[str]:
    """Seeds that would separate the leading setting from an indistinguishable one; the pair that needs fewest."""
    winner = find_winner(study)
    # Only a leader that beats the baseline is worth the compute.
    if study.type != "ablation" or winner.comparison is None or winner.comparison.verdict != "better":
        return []
    values = {setting.name: setting.values(study.metric) for setting in settings(study)}
    needed = {
        name: seeds_to_separate(values[winner.name], values[name])
        for name in indistinguishable_from(study, winner.name)
    }
    known = {name: count for name, count in needed.items() if count}
    if not known:
        return []
    name = min(known, key=known.__getitem__)
    return [
        f"Separate {winner.name} from {name}: about {known[name]} more seeds of each if the measured gap is real."
    ]


def _rising(study: Study) -> list[str]:
    """Whether the leader's metric still improved in the last fifth of its steps.

    With several seeds the interval of the gain must lie above 0; a single run must have gained by `RISE`.
    """
    winner = find_winner(study)
    by_name = {setting.name: setting for setting in settings(study)}
    if winner.name not in by_name:
        return []
    curves = [run.curves.get(study.metric, ()) for run in by_name[winner.name].by_seed.values()]
    ends = [(curve[-1][1], gain) for curve in curves if (gain := _late_gain(study, curve)) is not None]
    found = t_interval([gain for _, gain in ends])
    if not found.count:
        return []
    rises = found.low > 0 if found.count > 1 else found.mean > RISE * abs(ends[0][0])
    if not rises:
        return []
    return [
        f"Train longer: {metric_label(study.metric)} of {winner.name} still changed by "
        f"{points(study.metric, study.gain(found.mean))} in the last fifth of its steps."
    ]


def _late_gain(study: Study, curve: Curve) -> float | None:
    """Gain from the last value in the first four fifths of the steps to the end; positive is better."""
    before = [value for step, value in curve if step <= 0.8 * curve[-1][0]]
    return study.gain(curve[-1][1] - before[-1]) if before else None


def _more_seeds(study: Study) -> list[str]:
    if study.type != "ablation":
        return []
    rows = [row for row in compare_settings(study) if row.verdict == "not distinguishable" and row.more]
    nearest = min(rows, key=lambda row: row.more or 0, default=None)
    if nearest is None:
        return []
    return [f"Add seeds: about {nearest.more} more would decide {nearest.setting.name} if its measured gain is real."]


def _edges(study: Study) -> list[str]:
    """Searched numbers whose best value lies at an end of the range tried."""
    trial = study.best_trial
    if trial is None or len(study.ranked) < 5:
        return []
    found = [text for path in study.searched if (text := _edge(study, trial, path))]
    return [f"Widen the search: {'; '.join(found)}."] if found else []


def _edge(study: Study, trial: Run, path: str) -> str | None:
    # Of fewer than five values, half or more lie at an end.
    value, bounds = number(trial.params.get(path)), numeric_range(study.trials, path)
    if value is None or bounds is None or len({run.params.get(path) for run in study.trials}) < 5:
        return None
    low, high = bounds
    for edge, side in ((low, "lowest"), (high, "highest")):
        if value == edge:
            return f"the leader has the {side} {path} tried ({short(edge)})"
    return None
