"""Fresh seeds at the end of a study: only those can call what it selected the best (the winner's curse)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from siclip_platform.recipes.recipe import Recipe

if TYPE_CHECKING:
    from siclip_platform.search.study import StudyResult
    from siclip_platform.studies.experiment import Experiment


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
