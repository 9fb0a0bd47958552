"""Reads a parameter's ``when``: the conditions on parameters above it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import cast

import yaml

from siclip_platform.spaces.definition import Comparison, Condition, Parameter, Scalar
from siclip_platform.spaces.document import Document, Problem, closest

COMPARISON = re.compile(r"(<=|>=|<|>)\s*([-+.\deE]+)")


def read_conditions(
    document: Document,
    path: str,
    node: yaml.Node,
    paths: Sequence[str],
    above: Mapping[str, Parameter | None],
) -> tuple[Condition, ...]:
    """The conditions of the parameter at ``path``; what is wrong with one is noted in the document.

    ``paths``: all parameters of the space. ``above``: those before it, None for one that is itself wrong.

    Raises:
        Problem: the node is not a mapping.
    """
    conditions: list[Condition] = []
    for other, key_node, value_node in document.items(node, f"when of {path}"):
        with document.noting():
            if other not in paths:
                hint = closest(other, paths) or "; name one of its parameters"
                raise Problem(key_node, f"when of {path} names {other!r}, which the space does not search{hint}")
            if other == path:
                raise Problem(key_node, f"when of {path} names itself; name a parameter above it")
            if other not in above:
                raise Problem(key_node, f"when of {path} names {other!r}, which comes after it; move that above")
            parent = above[other]
            if parent is not None:
                conditions.append(_read_condition(document, path, parent, value_node))
    return tuple(conditions)


def _read_condition(document: Document, path: str, parent: Parameter, node: yaml.Node) -> Condition:
    """One condition, checked to hold for some value of its parent.

    Raises:
        Problem: it cannot be read or can never hold.
    """
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    operands: list[Scalar] = [document.scalar(item, f"when of {path}") for item in items]
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
        kind = "one of" if parent.distribution == "choice" else "a number between"
        values = ", ".join(map(repr, parent.sample_values))
        stated = ", ".join(map(repr, operands)) or "an empty list"
        remedy = 'write a comparison such as ">0"' if parent.numeric else "write one of these, or a list of them"
        raise Problem(
            node, f"when of {path} can never hold: {parent.path} is {kind} {values}, not {stated}; {remedy}"
        )
    return condition


def _number(text: str) -> float:
    """NaN for what is not a number: it compares false, so the condition is refused as one never met."""
    try:
        return float(text)
    except ValueError:
        return math.nan
