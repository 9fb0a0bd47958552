"""Reads the optional parts of a space's file: objectives, constraints, points, sampler and scheduler."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any, cast, get_args

import yaml
from pydantic import ValidationError

from siclip.config import Config, LossTerm
from siclip.errors import UserError
from siclip_platform.spaces.definition import Constraint, Mode, Objective, Scalar, SearchSpace
from siclip_platform.spaces.document import Document, Problem, closest
from siclip_platform.spaces.finite import check_sampler
from siclip_platform.spaces.policy import SAMPLERS, SCHEDULERS, SamplerConfig, SchedulerConfig

PARTS = ("objectives", "constraints", "points", "sampler", "scheduler")
SCHEDULED: tuple[str, ...] = tuple(f"loss.{name}" for name in get_args(LossTerm))
"""What may change while a training runs."""
COSTS = ("cost/seconds", "cost/parameters_trainable", "cost/parameters_image", "cost/parameters_text")
"""What a trial reports beside the metrics of its evaluations."""


class StrategyReader:
    """Reads the parts of one space, whose parameters are read already; ``parts`` are what `SearchSpace` takes."""

    def __init__(self, document: Document, space: SearchSpace, metrics: Collection[str]) -> None:
        self.document = document
        self.space = space
        self.figures = [*(metric for metric in metrics if not metric.startswith("test/")), *COSTS]
        self.parts: dict[str, Any] = {}

    def read(self, nodes: dict[str, yaml.Node]) -> None:
        readers: dict[str, Callable[[yaml.Node], Any]] = {
            "objectives": self._objectives,
            "constraints": self._constraints,
            "points": self._points,
            "sampler": lambda node: self._config(node, "sampler", SamplerConfig, SAMPLERS),
            "scheduler": lambda node: self._config(node, "scheduler", SchedulerConfig, SCHEDULERS),
        }
        for key, node in nodes.items():
            with self.document.noting():
                self.parts[key] = readers[key](node)
        if self.parts.get("objectives"):
            self.parts.setdefault("scheduler", SchedulerConfig(name="none"))
        if "scheduler" in nodes and "scheduler" in self.parts:
            for path, conflict in conflicts(replace(self.space, **self.parts)):
                with self.document.noting():
                    raise Problem(self._place(path) or nodes["scheduler"], conflict)

    def _place(self, path: str) -> yaml.Node | None:
        """Where a parameter's name stands in the file."""
        parts = {key: value for key, _, value in self.document.items(self.document.root, "the search space")}
        found = {key: node for key, node, _ in self.document.items(parts["parameters"], "parameters")}
        return found.get(path)

    def _metric(self, name: str, node: yaml.Node) -> str:
        if name not in self.figures:
            hint = closest(name, self.figures) or f"; choose one of {', '.join(self.figures)}"
            raise Problem(node, f"unknown metric {name!r}{hint}")
        return name

    def _objectives(self, node: yaml.Node) -> tuple[Objective, ...]:
        objectives: list[Objective] = []
        for name, key_node, value_node in self.document.items(node, "objectives"):
            with self.document.noting():
                metric = self._metric(name, key_node)
                if metric == self.space.metric:
                    raise Problem(key_node, f"{metric!r} is the space's metric already; name another, or remove it")
                mode = self.document.text(value_node, f"mode of {name}")
                if mode not in ("max", "min"):
                    raise Problem(value_node, f"unknown mode {mode!r} of {name}; write max or min")
                objectives.append(Objective(metric=metric, mode=cast(Mode, mode)))
        return tuple(objectives)

    def _constraints(self, node: yaml.Node) -> tuple[Constraint, ...]:
        constraints: list[Constraint] = []
        for name, key_node, value_node in self.document.items(node, "constraints"):
            with self.document.noting():
                metric = self._metric(name, key_node)
                text = self.document.text(value_node, f"constraint on {name}")
                comparison, bound = text[:2], _number(text[2:])
                if comparison not in ("<=", ">=") or not math.isfinite(bound):
                    raise Problem(value_node, f'constraint {text!r} on {name}: write "<= NUMBER" or ">= NUMBER"')
                constraints.append(Constraint(metric=metric, comparison=cast(Any, comparison), bound=bound))
        return tuple(constraints)

    def _points(self, node: yaml.Node) -> tuple[dict[str, Scalar], ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise Problem(node, "points is not a list; write `- {path: value}` lines")
        points: list[dict[str, Scalar]] = []
        for number, item in enumerate(node.value, start=1):
            with self.document.noting():
                points.append(self._point(f"point {number}", item))
        return tuple(points)

    def _point(self, what: str, node: yaml.Node) -> dict[str, Scalar]:
        values: dict[str, Scalar] = {}
        nodes: dict[str, yaml.Node] = {}
        for path, key_node, value_node in self.document.items(node, what):
            with self.document.noting():
                if path not in self.space.paths:
                    hint = closest(path, self.space.paths) or "; name one of its parameters"
                    raise Problem(key_node, f"{what} names {path!r}, which the space does not search{hint}")
                values[path] = self.document.scalar(value_node, f"{path} of {what}")
                nodes[path] = value_node
        inside = self.space.restrict(values)
        for path, value in values.items():
            with self.document.noting():
                if path not in inside:
                    raise Problem(
                        nodes[path],
                        f"{path}: {value!r} of {what} cannot be suggested: outside the range, or its "
                        "condition is not met; change or remove it",
                    )
        return inside

    def _config(self, node: yaml.Node, what: str, kind: type[Config], names: Collection[str]) -> Config:
        fields = self.document.fields(node, what, tuple(kind.model_fields), ("name",))
        values: dict[str, Any] = {}
        for key, value_node in fields.items():
            values[key] = self.document.scalar(value_node, f"{key} of {what}")
            if key == "name" and values[key] not in names:
                hint = closest(str(values[key]), names) or f"; choose one of {', '.join(names)}"
                raise Problem(value_node, f"unknown {what} {values[key]!r}{hint}")
        try:
            return kind.model_validate(values, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            place = fields.get(str(first["loc"][0]), node) if first["loc"] else node
            raise Problem(place, f"{'.'.join(map(str, first['loc']))} of {what}: {first['msg']}; change it") from None


def conflicts(space: SearchSpace) -> Iterator[tuple[str, str]]:
    """What keeps the space's scheduler from its work, with the remedy; before each its path in the recipe, or ""."""
    name = space.scheduler.name
    if space.objectives and name != "none":
        what = "compares" if name == "pbt" else "stops"
        yield "", f"scheduler {name!r} {what} trials by one figure and this space has several objectives; write none"
    if name != "pbt":
        return
    if space.constraints:
        yield "", "scheduler 'pbt' does not look at constraints; leave them out, or choose another"
    if space.sampler.name == "grid":
        yield "", "scheduler 'pbt' begins with as many settings as there are trials, not with a grid; choose random"
    for parameter in space.parameters:
        numbers = parameter.numeric and all(value > 0 for value in parameter.sample_values)
        if parameter.path not in SCHEDULED:
            yield (
                parameter.path,
                f"scheduler 'pbt' changes settings in mid-training, and {parameter.path!r} must stay as it is there; "
                f"search only {', '.join(SCHEDULED)}, and set it in the recipe",
            )
        elif parameter.when or not numbers:
            yield (
                parameter.path,
                f"scheduler 'pbt' changes {parameter.path!r} in mid-training, where no part may come or go; give it "
                "numbers above 0 and no `when`",
            )


def with_policy(space: SearchSpace, sampler: str | None, scheduler: str | None) -> SearchSpace:
    """The space with another sampler or scheduler, as the options name them; of the same name it keeps its own.

    Raises:
        UserError: there is no such one, or it cannot work on the space.
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
        problems = [f"space {space.name!r}: {problem}" for _, problem in conflicts(space)]
        if problems:
            raise UserError("\n".join(problems))
        check_sampler(space.sampler, space)
    return space


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
