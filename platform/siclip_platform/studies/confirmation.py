"""Fresh seeds at the end of a study: the seeds that selected the best overestimate it (the winner's curse)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from siclip_platform.recipes.recipe import Recipe

if TYPE_CHECKING:
    from siclip_platform.search.result import StudyResult
    from siclip_platform.studies.experiment import Experiment

BASELINE = "baseline"
"""What the report calls the fresh runs of a search's starting recipe."""


def confirm(
    experiment: Experiment,
    best: Recipe,
    rival: Recipe,
    seeds: int,
    trial: str,
    *,
    setting: str | None = None,
    against: str = "control",
    start: Recipe | None = None,
) -> None:
    """Train the recipes with seeds that the study has not used, and measure them on the study's `final_split`.

    Args:
        seeds: how many; 0 trains nothing.
        trial: the one that was selected.
        setting: what the report calls ``best``; None: the trial.
        against: what the report calls ``rival``.
        start: the starting recipe, if it is neither of the two: only a lead over it is a gain of the search.
    """
    if not seeds:
        return
    used = best.training.seed + experiment.options.seeds
    jobs: dict[str, tuple[Recipe, dict[str, str]]] = {}
    for seed in range(used, used + seeds):
        roles = [("best", best, setting), ("rival", rival, against)]
        if start is not None and start not in (best, rival):
            roles.append(("start", start, BASELINE))
        for role, recipe, name in roles:
            tags = {"best_trial": trial, "seed": str(seed)} | ({"setting": name} if name else {})
            jobs[f"confirm-{trial}-{role}-{seed}"] = (recipe.updated({"training.seed": seed}), tags)
    with experiment.timeline.span("confirmation"):
        experiment.train_all(jobs)


def confirm_search(experiment: Experiment, study: StudyResult, base: Recipe, seeds: int) -> None:
    """Train the best trial of a search and its starting recipe with fresh seeds."""
    best = study.best
    if not seeds:
        return
    if best.recipe == base:
        experiment.display.say("the best trial is the recipe itself: there is nothing to confirm")
        return
    confirm(experiment, best.recipe, base, seeds, best.trial_id, against=BASELINE)
