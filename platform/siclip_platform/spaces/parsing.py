"""A search-space file's text → `SearchSpace`, or every problem of the file with its line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, Literal, cast, get_args

import yaml

from siclip_platform.metrics import metric_mode
from siclip_platform.recipes.fields import path_problem, read_value
from siclip_platform.spaces.conditions import read_conditions
from siclip_platform.spaces.definition import (
    LOG,
    WHOLE,
    Condition,
    Distribution,
    Parameter,
    Scalar,
    SearchSpace,
    divides,
    same,
)
from siclip_platform.spaces.document import Document, Problem, closest
from siclip_platform.spaces.strategy import PARTS, StrategyReader

CheckValue = Callable[[str, Any], str | None]

SPACE_KEYS = ("name", "metric", "mode", "parameters")
DISTRIBUTIONS: tuple[str, ...] = get_args(Distribution)
OWN_KEYS = {name: ("values",) if name == "choice" else ("low", "high") for name in DISTRIBUTIONS}
STEPPED = ("uniform", "int_uniform")


def parse_space(text: str, place: str, metrics: Collection[str], check_value: CheckValue | None) -> SearchSpace:
    """Read a search space from YAML text; ``place`` names the file in messages.

    Raises:
        UserError: one line ``place:line: problem; remedy`` for each problem.
    """
    document = Document(text, place)
    reader = _SpaceReader(document, metrics, check_value)
    with document.noting():
        reader.read()
    document.raise_problems()
    parameters = tuple(parameter for parameter in reader.parameters.values() if parameter)
    space = SearchSpace(name=reader.name, metric=reader.metric, mode=reader.mode, parameters=parameters)
    strategy = StrategyReader(document, space, metrics)
    with document.noting():
        strategy.read(reader.parts)
    document.raise_problems()
    return replace(space, **strategy.parts)


class _SpaceReader:
    """Reads the parts of the space in the file's order; what is wrong ends up in the document's problems."""

    def __init__(self, document: Document, metrics: Collection[str], check_value: CheckValue | None) -> None:
        self.document = document
        self.metrics = metrics
        self.check_value = check_value
        self.name = ""
        self.metric = ""
        self.mode: Literal["max", "min"] = "max"
        self.parameters: dict[str, Parameter | None] = {}  # None: there was a problem with it
        self.parts: dict[str, yaml.Node] = {}

    def read(self) -> None:
        known = (*SPACE_KEYS, *PARTS)
        fields = self.document.fields(self.document.root, "the search space", known, SPACE_KEYS)
        self.parts = {key: node for key, node in fields.items() if key in PARTS}
        for key, node in fields.items():
            if key in PARTS:
                continue
            with self.document.noting():
                if key == "parameters":
                    self._read_parameters(node)
                else:
                    self._read_head(key, node, self.document.text(node, key))
        with self.document.noting():
            if self.metric and "mode" in fields and self.mode != metric_mode(self.metric):
                right = metric_mode(self.metric)
                raise Problem(fields["mode"], f"mode {self.mode} looks for the worst {self.metric}; write {right}")

    def _read_head(self, key: str, node: yaml.Node, value: str) -> None:
        if key == "name":
            if not re.fullmatch(r"[\w.-]+", value):
                raise Problem(node, f"name {value!r} is not plain; use letters, digits, '_', '-' and '.'")
            self.name = value
        elif key == "metric":
            if value.startswith("test/"):
                raise Problem(node, f"metric {value!r} would choose on the test split; use a 'validation/' one")
            if value not in self.metrics:
                allowed = [metric for metric in self.metrics if not metric.startswith("test/")]
                hint = closest(value, allowed) or f"; choose one of {', '.join(allowed)}"
                raise Problem(node, f"unknown metric {value!r}{hint}")
            self.metric = value
        else:
            if value not in {"max", "min"}:
                raise Problem(node, f"unknown mode {value!r}; write max or min")
            self.mode = cast('Literal["max", "min"]', value)

    def _read_parameters(self, node: yaml.Node) -> None:
        items = self.document.items(node, "parameters")
        if not items:
            raise Problem(node, "parameters is empty; name at least one config path to search")
        paths = [path for path, _, _ in items]
        for path, key_node, value_node in items:
            before = len(self.document.problems)
            parameter: Parameter | None = None
            problem = path_problem(path)
            with self.document.noting():
                if problem:
                    raise Problem(key_node, problem)
            with self.document.noting():
                parameter = self._read_parameter(path, value_node, paths)
            self.parameters[path] = parameter if len(self.document.problems) == before else None

    def _read_parameter(self, path: str, node: yaml.Node, paths: list[str]) -> Parameter:
        distribution = self._read_distribution(path, node)
        own = OWN_KEYS[distribution]
        step = ("step",) if distribution in STEPPED else ()
        fields = self.document.fields(node, path, ("distribution", *own, *step, "when"), ("distribution", *own))
        when: tuple[Condition, ...] = ()
        if "when" in fields:
            with self.document.noting():
                when = read_conditions(self.document, path, fields["when"], paths, self.parameters)
        if not fields.keys() >= set(own):
            return Parameter(path=path, distribution=distribution)
        if distribution == "choice":
            values = self._read_values(path, fields["values"])
            return Parameter(path=path, distribution=distribution, values=values, when=when)
        low, high = (self._read_end(path, distribution, fields[end], end) for end in ("low", "high"))
        if low is not None and high is not None and low >= high:
            raise Problem(fields["low"], f"low {low!r} of {path} is not below high {high!r}; swap or widen them")
        distance = high - low if low is not None and high is not None else None
        stride = self._read_step(path, distribution, fields["step"], distance) if "step" in fields else None
        return Parameter(path=path, distribution=distribution, low=low, high=high, step=stride, when=when)

    def _read_distribution(self, path: str, node: yaml.Node) -> Distribution:
        """The distribution's name, which decides on the other keys.

        Raises:
            Problem: it is missing or misspelt.
        """
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        value_node = next((value for key, value in pairs if key.value == "distribution"), None)
        if value_node is None:
            known = ("distribution", "low", "high", "step", "values", "when")
            self.document.fields(node, path, known, ("distribution",))
            raise Problem(node, f"{path} has no distribution; choose one of {', '.join(DISTRIBUTIONS)}")
        name = self.document.text(value_node, f"distribution of {path}")
        if name not in DISTRIBUTIONS:
            hint = closest(name, DISTRIBUTIONS) or f"; choose one of {', '.join(DISTRIBUTIONS)}"
            raise Problem(value_node, f"unknown distribution {name!r} of {path}{hint}")
        return cast(Distribution, name)

    def _read_values(self, path: str, node: yaml.Node) -> tuple[Scalar, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise Problem(node, f"values of {path} is not a list; write [one, another]")
        if not node.value:
            raise Problem(node, f"values of {path} is empty; list what may be chosen")
        values: list[Scalar] = []
        for item in node.value:
            with self.document.noting():
                value = self._checked(path, item, "value", self.document.scalar(item, f"a value of {path}"))
                if any(same(value, other) for other in values):
                    raise Problem(item, f"value {value!r} of {path} stands twice; remove one")
                values.append(value)
        return tuple(values)

    def _read_end(self, path: str, distribution: Distribution, node: yaml.Node, end: str) -> float | int | None:
        """One end of a range; None, with the problem noted, if it is wrong."""
        with self.document.noting():
            value = self.document.scalar(node, f"{end} of {path}")
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise Problem(node, f"{end} {value!r} of {path} is not a finite number; write one without quotes")
            if distribution in WHOLE and not isinstance(value, int):
                raise Problem(node, f"{end} {value!r} of {path} is not whole; write an integer or use uniform")
            if distribution in LOG and value <= 0:
                raise Problem(node, f"{end} {value!r} of {path} is not above 0, as {distribution} needs; raise it")
            if distribution not in WHOLE:
                value = float(value)
            self._checked(path, node, end, value)
            return cast("float | int", value)
        return None

    def _read_step(
        self, path: str, distribution: Distribution, node: yaml.Node, distance: float | None
    ) -> float | int | None:
        """The step of a range; None, with the problem noted, if it is wrong."""
        with self.document.noting():
            step = self.document.scalar(node, f"step of {path}")
            if isinstance(step, bool) or not isinstance(step, int | float) or not 0 < step < math.inf:
                raise Problem(node, f"step {step!r} of {path} is not a number above 0; write one, or leave it out")
            if distribution in WHOLE and not isinstance(step, int):
                raise Problem(node, f"step {step!r} of {path} is not whole; write an integer or use uniform")
            if distance is not None and not divides(step, distance):
                raise Problem(node, f"step {step!r} of {path} does not divide high - low, {distance!r}; change one")
            return step
        return None

    def _checked(self, path: str, node: yaml.Node, what: str, value: Any) -> Any:
        """The value as the recipe's field holds it.

        Raises:
            Problem: the field or the caller's hook refuses it.
        """
        if path_problem(path):
            return value  # noted already; there is no field to ask
        held, refusal = read_value(path, value)
        if refusal is None and self.check_value is not None:
            refusal = self.check_value(path, held)
        if refusal is not None:
            raise Problem(node, f"{what} {value!r} does not fit {path}: {refusal}; change or remove it")
        return held
