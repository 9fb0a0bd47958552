"""Which samplers and schedulers can search a space, and a space with others than its file names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

from siclip.config import LossTerm
from siclip.errors import UserError
from siclip_platform.recipes.problems import closest
from siclip_platform.spaces.definition import SearchSpace
from siclip_platform.spaces.finite import check_sampler
from siclip_platform.spaces.policy import SAMPLERS, SCHEDULERS, SamplerConfig, SchedulerConfig

SCHEDULED: tuple[str, ...] = tuple(f"loss.{name}" for name in get_args(LossTerm))
"""What may change during a training."""
COSTS = ("cost/seconds", "cost/parameters_trainable", "cost/parameters_image", "cost/parameters_text")
"""What a trial reports in addition to the metrics of its evaluations."""


def conflicts(space: SearchSpace) -> Iterator[tuple[str, str]]:
    """What the space's scheduler cannot work with: (the parameter's path, or "" for the scheduler; message)."""
    name = space.scheduler.name
    if space.objectives and name != "none":
        what = "compares" if name == "pbt" else "stops"
        yield "", f"{name!r} {what} trials by one metric and this space has several objectives; choose none"
    if name != "pbt":
        return
    if space.constraints:
        yield "", "'pbt' ignores constraints; remove them, or choose another scheduler"
    if space.sampler.name == "grid":
        yield "", "'pbt' starts with one setting per trial, not with a grid; choose sampler random"
    for parameter in space.parameters:
        numbers = parameter.numeric and all(value > 0 for value in parameter.sample_values)
        if parameter.path not in SCHEDULED:
            yield (
                parameter.path,
                f"scheduler 'pbt' changes settings during the training, where this cannot change; set it in the "
                f"recipe and search only {', '.join(SCHEDULED)}",
            )
        elif parameter.when or not numbers:
            yield (
                parameter.path,
                "scheduler 'pbt' changes this weight during the training, where a loss cannot be added or removed; "
                "give it numbers above 0 and no `when`",
            )


def with_policy(space: SearchSpace, sampler: str | None, scheduler: str | None) -> SearchSpace:
    """The space with another sampler or scheduler.

    Args:
        space: a space as its file has it.
        sampler: ``--sampler``; a name that the space has already keeps the space's options, as does None.
        scheduler: ``--scheduler``; likewise.

    Raises:
        UserError: there is no such sampler or scheduler, or it cannot search the space.
    """
    for what, name, names in (("sampler", sampler, SAMPLERS), ("scheduler", scheduler, SCHEDULERS)):
        if name is not None and name not in names:
            hint = closest(name, names) or f"; choose one of {', '.join(names)}"
            raise UserError(f"--{what}: unknown {what} {name!r}{hint}")
    if sampler and sampler != space.sampler.name:
        space = replace(space, sampler=SamplerConfig.model_validate({"name": sampler}))
    if scheduler and scheduler != space.scheduler.name:
        space = replace(space, scheduler=SchedulerConfig.model_validate({"name": scheduler}))
    if sampler or scheduler:
        problems = [
            f"space {space.name!r}: {f'parameters.{path}' if path else 'scheduler'}: {problem}"
            for path, problem in conflicts(space)
        ]
        if problems:
            raise UserError("\n".join(problems))
        check_sampler(space.sampler, space)
    return space
