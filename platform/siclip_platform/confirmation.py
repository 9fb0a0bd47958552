"""Fresh seeds at the end of a study: only those can call what it selected the best (the winner's curse)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from siclip_platform.recipe import Recipe

if TYPE_CHECKING:
    from siclip_platform.experiment import Experiment
    from siclip_platform.search.ablation import Ablation, Setting
    from siclip_platform.search.study import StudyResult, TrialOutcome


def confirm(
    experiment: Experiment, best: Recipe, rival: Recipe, seeds: int, trial: str, *, setting: str | None = None,
    against: str = "control",
) -> None:  # fmt: skip
    """Train both anew with so many seeds that the study has not used, and measure them on the test split.

    ``trial``: the one that was selected; ``setting`` and ``against``: what the report calls both.
    """
    used = best.training.seed + experiment.options.seeds
    jobs: dict[str, tuple[Recipe, dict[str, str]]] = {}
    for seed in range(used, used + seeds):
        for role, recipe, name in (("best", best, setting), ("rival", rival, against)):
            tags = {"best_trial": trial, "seed": str(seed)} | ({"setting": name} if name else {})
            jobs[f"confirm-{trial}-{role}-{seed}"] = (recipe.updated({"training.seed": seed}), tags)
    with experiment.timeline.span("confirmation"):
        experiment.train_all(jobs)


def confirm_search(experiment: Experiment, study: StudyResult, base: Recipe, seeds: int) -> None:
    """The best trial of a search against the recipe that it began with."""
    best = study.best
    if not seeds:
        return
    if best.recipe == base:
        experiment.display.say("the best trial is the recipe itself: there is nothing to confirm")
        return
    confirm(experiment, best.recipe, base, seeds, best.trial_id, against="baseline")


def confirm_ablation(
    experiment: Experiment, ablation: Ablation, settings: Sequence[Setting], result: StudyResult, seeds: int
) -> None:
    """The setting with the best mean against the ablation's baseline."""
    if not seeds:
        return
    names = trial_settings(settings, result)
    done = {name: trial for name, trial in names.items() if trial.state == "completed" and math.isfinite(trial.value)}
    sign = 1 if result.mode == "max" else -1
    leader = max(done, key=lambda name: sign * done[name].value, default=ablation.baseline)
    if leader == ablation.baseline or ablation.baseline not in done:
        why = "no setting is above the baseline" if leader == ablation.baseline else "the baseline did not end"
        experiment.display.say(f"{why}: there is nothing to confirm")
        return
    best, rival = done[leader], done[ablation.baseline]
    confirm(experiment, best.recipe, rival.recipe, seeds, best.trial_id, setting=leader, against=ablation.baseline)


def trial_settings(settings: Sequence[Setting], result: StudyResult) -> dict[str, TrialOutcome]:
    """Setting → its trial, of those that are over; trials are numbered in the order of the settings."""
    by_number = {int(trial.trial_id.rpartition("-")[2]): trial for trial in result.trials}
    return {setting.name: by_number[n] for n, setting in enumerate(settings) if n in by_number}
