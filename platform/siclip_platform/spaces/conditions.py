"""A parameter's ``when``: the conditions on parameters above it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from siclip_platform.recipes.problems import KEY, Problems, closest, refusal
from siclip_platform.spaces.definition import Comparison, Condition, Parameter, Scalar
from siclip_platform.spaces.file_parts import one_value

COMPARISON = re.compile(r"(<=|>=|<|>)\s*([-+.\deE]+)")


def read_conditions(
    path: str, when: Any, paths: Sequence[str], above: Mapping[str, Parameter | None]
) -> tuple[Condition, ...]:
    """The conditions of one parameter.

    Args:
        path: the parameter's path.
        when: what the file has under ``when``.
        paths: all parameters of the space.
        above: the parameters before this one; None for one that is itself wrong, whose conditions are not checked.

    Raises:
        ValidationError: with every condition that is wrong.
        PydanticCustomError: ``when`` is not a mapping.
    """
    if not isinstance(when, dict):
        raise refusal("not a mapping; write {PATH: VALUE}")
    problems = Problems()
    conditions: list[Condition] = []
    for other, value in when.items():
        if other not in paths:
            hint = closest(other, paths) or "; name one of its parameters"
            problems.add(f"{other!r} is not searched by the space{hint}", other, KEY)
        elif other == path:
            problems.add(f"{path} cannot depend on itself; name a parameter above it", other, KEY)
        elif other not in above:
            problems.add(f"{other!r} comes after {path}; move it above", other, KEY)
        elif (parent := above[other]) is not None:
            with problems.at(other):
                conditions.append(_read_condition(parent, value))
    problems.check()
    return tuple(conditions)


def _read_condition(parent: Parameter, value: Any) -> Condition:
    """One condition, checked to hold for some value of its parent.

    Raises:
        PydanticCustomError: it cannot be read or can never hold.
    """
    operands: list[Scalar] = [one_value(item) for item in (value if isinstance(value, list) else [value])]
    first = operands[0] if len(operands) == 1 else None
    match = COMPARISON.fullmatch(first) if isinstance(first, str) and parent.numeric else None
    if match:
        number = _number(match[2])
        condition = Condition(path=parent.path, comparison=cast(Comparison, match[1]), operands=(number,))
        possible = any(condition.accepts(value) for value in parent.sample_values)
    else:
        condition = Condition(path=parent.path, comparison="in", operands=tuple(operands))
        possible = bool(operands) and parent.size < math.inf and all(map(parent.contains, operands))
    if not possible:
        takes = "one of" if parent.distribution == "choice" else "a number between"
        values = ", ".join(map(repr, parent.sample_values))
        stated = ", ".join(map(repr, operands)) or "an empty list"
        remedy = 'write a comparison such as ">0"' if parent.numeric else "write one of these, or a list of them"
        raise refusal(f"it can never hold: {parent.path} is {takes} {values}, not {stated}; {remedy}")
    return condition


def _number(text: str) -> float:
    """NaN for what is not a number: it compares false, so the condition is refused as one that never holds."""
    try:
        return float(text)
    except ValueError:
        return math.nan
