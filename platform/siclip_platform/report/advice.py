"""What to try next, from what the store shows: rules, each with the figure that it rests on."""

from __future__ import annotations

from siclip_platform.report.numbers import number, numeric_range
from siclip_platform.report.runs import Run, Study
from siclip_platform.report.settings import compare_settings
from siclip_platform.report.values import plural, short
from siclip_platform.report.winner import find_winner

FRESH_SEEDS = 5
FAILED_SHARE = 0.2


def next_steps(study: Study) -> list[str]:
    """Sentences ``WHAT: WHY.``, the most useful first."""
    if study.type == "runs":
        return []
    return [*_unfinished(study), *_failures(study), *_confirm(study), *_more_seeds(study), *_edges(study)]


def _unfinished(study: Study) -> list[str]:
    running = [run for run in study.runs if run.state == "running"]
    if not running:
        return []
    return [f"Let it finish: {plural(len(running), 'run')} of {len(study.runs)} have not ended, or were cut off."]


def _failures(study: Study) -> list[str]:
    failed = [run for run in study.leaves if run.state == "failed"]
    if not failed or len(failed) < FAILED_SHARE * len(study.leaves):
        return []
    return [f"Look at the failures: {len(failed)} of {plural(len(study.leaves), 'run')} failed, see their reasons."]


def _confirm(study: Study) -> list[str]:
    winner = find_winner(study)
    if winner.status == "not repeated":
        return [
            f"Re-run with fresh seeds: {winner.name} and the baseline, {FRESH_SEEDS} seeds each that no run has "
            "used, before it is called best."
        ]
    if winner.status == "not confirmed":
        return [f"Add fresh seeds: {plural(len(winner.fresh), 'fresh run')} of {winner.name} do not decide."]
    if winner.status == "contradicted":
        return [f"Drop it: with fresh seeds {winner.name} is worse than {winner.against}."]
    return []


def _more_seeds(study: Study) -> list[str]:
    if study.type != "ablation":
        return []
    rows = [row for row in compare_settings(study) if row.verdict == "not distinguishable" and row.more]
    nearest = min(rows, key=lambda row: row.more or 0, default=None)
    if nearest is None:
        return []
    return [
        f"Add seeds: {nearest.more} more would decide {nearest.setting.name}, if its true gain is the measured one."
    ]


def _edges(study: Study) -> list[str]:
    """Searched numbers whose best trials lie at an end of what was tried."""
    trial = study.best_trial
    if trial is None or len(study.ranked) < 5:
        return []
    found = [words for path in study.searched if (words := _edge(study, trial, path))]
    return [f"Widen the search: {'; '.join(found)}."] if found else []


def _edge(study: Study, trial: Run, path: str) -> str | None:
    value, bounds = number(trial.params.get(path)), numeric_range(study.trials, path)
    if value is None or bounds is None or len({run.params.get(path) for run in study.trials}) < 5:
        return None
    low, high = bounds
    for edge, side in ((low, "lowest"), (high, "highest")):
        if value == edge:
            return f"the leader has the {side} {path} that was tried ({short(edge)})"
    return None
