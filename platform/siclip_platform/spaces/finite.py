"""Which samplers can search a space, and every setting of a finite one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from siclip.errors import UserError
from siclip_platform.spaces.definition import Parameter, SearchSpace
from siclip_platform.spaces.policy import SamplerConfig

GRID_LIMIT = 10_000
"""Settings of a grid: more than any study trains, and few enough to shuffle in memory."""


def check_sampler(config: SamplerConfig, space: SearchSpace) -> None:
    """Check that a sampler can search a space.

    Raises:
        UserError: a grid over an infinite or very large space; CMA-ES for several objectives, for constraints, or
            with fewer than two numeric ranges that are always active.
    """
    if config.name == "grid":
        check_grid(space)
    if config.name == "cmaes":
        if space.objectives or space.constraints:
            raise UserError(
                f"sampler cmaes takes one objective without constraints and space {space.name!r} has more; "
                "choose tpe or gp"
            )
        if len(always_numeric(space)) < 2:
            raise UserError(
                f"sampler cmaes needs two or more numeric ranges without `when` and space {space.name!r} has "
                f"{len(always_numeric(space))}; choose tpe"
            )


def check_grid(space: SearchSpace) -> None:
    """Check that a grid over the space is finite and at most `GRID_LIMIT` settings.

    Raises:
        UserError: it is not.
    """
    infinite = [parameter.path for parameter in space.parameters if parameter.size == float("inf")]
    if infinite:
        raise UserError(
            f"sampler grid needs a finite space: give {', '.join(infinite)} of {space.name!r} a step, or values to "
            "choose from; or choose tpe"
        )
    if space.size_hint > GRID_LIMIT and sum(1 for _ in grid(space, GRID_LIMIT + 1)) > GRID_LIMIT:
        raise UserError(
            f"space {space.name!r} has more than {GRID_LIMIT:,} settings, too many for a grid; choose random or tpe"
        )


def always_numeric(space: SearchSpace) -> list[Parameter]:
    """The parameters that CMA-ES searches jointly; it draws choices and conditional parameters independently."""
    return [p for p in space.parameters if p.distribution != "choice" and not p.when and p.size > 1]


def grid(space: SearchSpace, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """Every setting of a finite space once, with its conditions met; at most ``limit`` of them."""

    def extend(chosen: dict[str, Any], rest: tuple[Parameter, ...]) -> Iterator[dict[str, Any]]:
        if not rest:
            yield chosen
            return
        first, *others = rest
        for value in values_of(first) if first.active(chosen) else [None]:
            yield from extend(chosen | ({first.path: value} if first.active(chosen) else {}), tuple(others))

    for number, values in enumerate(extend({}, space.parameters)):
        if number == limit:
            return
        yield values


def values_of(parameter: Parameter) -> list[Any]:
    """Every value of a finite parameter, as Optuna would suggest it."""
    if parameter.distribution == "choice":
        return list(parameter.values)
    low = parameter.sample_values[0]
    step = parameter.step or 1
    return [low + number * step for number in range(int(parameter.size))]


def shuffled_grid(space: SearchSpace, seed: int) -> list[dict[str, Any]]:
    """Every setting, in an order that depends only on the seed."""
    settings = list(grid(space))
    random.Random(seed).shuffle(settings)
    return settings
