"""The searcher, the scheduler and the population that a space asks for, for a search around a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from siclip_platform.recipes.recipe import Recipe
from siclip_platform.search.policy.population import Population, generation_ends, make_population
from siclip_platform.search.policy.schedulers import make_scheduler, rungs
from siclip_platform.search.policy.searcher import make_searcher
from siclip_platform.spaces.definition import SearchSpace
from siclip_platform.spaces.finite import check_sampler


def searcher_of(space: SearchSpace, base: Recipe, *, name: str, trials: int, seed: int, folder: Path) -> Any:
    """The space's sampler, with its storage in the study's folder; the starting recipe's setting comes first."""
    return make_searcher(
        space,
        seed=seed,
        num_trials=trials,
        max_steps=base.training.steps,
        study_name=name,
        storage=folder / "optuna.db",
        points_to_evaluate=[space.restrict(base.flat())],
    )


def scheduler_of(space: SearchSpace, base: Recipe, seed: int) -> Any:
    """The space's scheduler on the recipe's steps."""
    return make_scheduler(space.scheduler, space, steps=base.training.steps, seed=seed)


def population_of(space: SearchSpace, base: Recipe, *, trials: int, seed: int, backend: str) -> Population | None:
    """The population of a space with scheduler ``pbt``, else None; see `make_population`."""
    if space.scheduler.name != "pbt":
        return None
    return make_population(space, base, trials=trials, seed=seed, backend=backend)


def check_strategy(space: SearchSpace, base: Recipe, *, trials: int, seed: int, backend: str) -> None:
    """Check that the sampler and the scheduler fit the space and the recipe, before anything is computed.

    Raises:
        UserError: they do not.
    """
    check_sampler(space.sampler, space)
    population_of(space, base, trials=trials, seed=seed, backend=backend)
    make_scheduler(space.scheduler, space, steps=base.training.steps, seed=seed)


def rungs_of(space: SearchSpace, base: Recipe) -> list[int]:
    """The steps at which a trial may be stopped or copy another one, and its last step."""
    if space.scheduler.name == "pbt":
        return generation_ends(space.scheduler, base.training)
    return rungs(space.scheduler, base.training.steps)
