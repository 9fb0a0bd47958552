"""A search-space file's text → `SearchSpace`, or every problem of the file with its line."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, cast

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    ValidationInfo,
    field_validator,
    model_validator,
)

from siclip_platform.recipes.fields import path_problem
from siclip_platform.recipes.problems import KEY, Problems, closest, refusal, short
from siclip_platform.recipes.yaml_file import read_model
from siclip_platform.spaces.conditions import read_conditions
from siclip_platform.spaces.definition import (
    LOG,
    WHOLE,
    Condition,
    Constraint,
    Distribution,
    Mode,
    Objective,
    Parameter,
    Scalar,
    SearchSpace,
    divides,
    same,
)
from siclip_platform.spaces.file_parts import (
    Checks,
    CheckValue,
    FilePart,
    Metric,
    OneValue,
    PlainName,
    one_of,
)
from siclip_platform.spaces.policy import SamplerConfig, SchedulerConfig
from siclip_platform.spaces.strategy import COSTS, conflicts

REMEDY = "compare with search_spaces/wikd.yaml"


def parse_space(text: str, where: str, metrics: Collection[str], check_value: CheckValue | None) -> SearchSpace:
    """Read a search space from YAML text.

    Args:
        text: the file's text.
        where: the file's name, for messages.
        metrics: names of the metrics of evaluations.
        check_value: see `siclip_platform.spaces.file_parts.CheckValue`.

    Raises:
        UserError: one line ``where:line: path: problem; remedy`` for each problem.
    """
    checks = Checks(metrics=metrics, check_value=check_value)
    return read_model(text, where, _SpaceFile, remedy=REMEDY, strict=True, context=checks).space()


@dataclass(frozen=True, kw_only=True)
class _Around:
    """What a parameter's entry in the file is checked against.

    Attributes:
        path: the parameter's own path.
        paths: all paths of the space.
        above: the parameters before this one; None for one that is itself wrong.
    """

    checks: Checks
    path: str
    paths: tuple[str, ...]
    above: Mapping[str, Parameter | None]


class _Entry(FilePart):
    """The part of a parameter's entry that all distributions share."""

    distribution: Distribution
    when: tuple[Condition, ...] = ()

    @field_validator("when", mode="plain")
    @classmethod
    def _conditions(cls, when: Any, info: ValidationInfo[_Around]) -> tuple[Condition, ...]:
        around = info.context
        return read_conditions(around.path, when, around.paths, around.above)

    def parameter(self, path: str) -> Parameter:
        return Parameter(path=path, **{name: getattr(self, name) for name in type(self).model_fields})


class _Choice(_Entry):
    distribution: Literal["choice"]
    values: tuple[Scalar, ...]

    @field_validator("values", mode="plain")
    @classmethod
    def _fitting(cls, values: Any, info: ValidationInfo[_Around]) -> tuple[Scalar, ...]:
        if not isinstance(values, list):
            raise refusal("not a list; write [one, another]")
        if not values:
            raise refusal("empty; list what may be chosen")
        problems = Problems()
        held: list[Scalar] = []
        for index, value in enumerate(values):
            with problems.at(index):
                fitting = info.context.checks.fit(info.context.path, value)
                if any(same(fitting, other) for other in held):
                    raise refusal(f"value {short(value)} is given twice; remove one")
                held.append(fitting)
        problems.check()
        return tuple(held)


class _Range(_Entry):
    distribution: Literal["log_uniform", "log_int_uniform"]
    low: float | int
    high: float | int

    @field_validator("low", "high", mode="plain")
    @classmethod
    def _end(cls, value: Any, info: ValidationInfo[_Around]) -> float | int:
        distribution = info.data["distribution"]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            what = "a list or a mapping; write one value" if isinstance(value, list | dict) else ""
            raise refusal(what or f"{short(value)} is not a finite number; write one without quotes")
        if distribution in WHOLE and not isinstance(value, int):
            raise refusal(f"{value!r} is not whole; write an integer or use uniform")
        if distribution in LOG and value <= 0:
            raise refusal(f"{value!r} is not above 0, as {distribution} requires; raise it")
        # Stored hashes and Optuna's databases have floats for continuous ranges, also where the file has integers.
        if distribution not in WHOLE:
            value = float(value)
        info.context.checks.fit(info.context.path, value)
        if info.field_name == "high" and info.data.get("low", -math.inf) >= value:
            raise refusal(f"low {info.data['low']!r} is not below high {value!r}; swap or widen them")
        return cast("float | int", value)


class _SteppedRange(_Range):
    distribution: Literal["uniform", "int_uniform"]  # type: ignore[assignment]
    step: float | int | None = None

    @field_validator("step", mode="plain")
    @classmethod
    def _stride(cls, step: Any, info: ValidationInfo[_Around]) -> float | int:
        if isinstance(step, bool) or not isinstance(step, int | float) or not 0 < step < math.inf:
            raise refusal(f"{short(step)} is not a number above 0; write one, or remove the step")
        if info.data["distribution"] in WHOLE and not isinstance(step, int):
            raise refusal(f"{step!r} is not whole; write an integer or use uniform")
        if {"low", "high"} <= info.data.keys() and not divides(step, info.data["high"] - info.data["low"]):
            raise refusal(
                f"{step!r} does not divide high - low, {info.data['high'] - info.data['low']!r}; change one"
            )
        return step


_ParameterEntry = Annotated[_Choice | _Range | _SteppedRange, Field(discriminator="distribution")]


def _figure(name: str, info: ValidationInfo[Checks]) -> str:
    return one_of(name, [*info.context.selectable, *COSTS], "metric")


class _Bound(NamedTuple):
    comparison: Literal["<=", ">="]
    bound: float


def _bound(text: Any) -> _Bound:
    if not isinstance(text, str):
        raise refusal(f'{short(text)} is not text; write "<= NUMBER" or ">= NUMBER"')
    try:
        bound = float(text[2:])
    except ValueError:
        bound = math.nan
    if text[:2] not in ("<=", ">=") or not math.isfinite(bound):
        raise refusal(f'{text!r} is not a bound; write "<= NUMBER" or ">= NUMBER"')
    return _Bound("<=" if text[:2] == "<=" else ">=", bound)


def _named(policy: Any) -> Any:
    # The models have a default name, for spaces without a sampler; a file that configures one must name it.
    if isinstance(policy, dict) and "name" not in policy and not closest("name", policy):
        raise refusal("lacks name; add it")
    return policy


_Figure = Annotated[str, AfterValidator(_figure)]


class _SpaceFile(FilePart):
    """The file as a whole. Fields that refer to others come after them."""

    REMOVED: ClassVar[dict[str, str]] = {"mode": "the metric is always maximised; remove this line"}

    name: PlainName
    metric: Metric
    parameters: tuple[Parameter, ...]
    objectives: dict[_Figure, Mode] = Field({})
    constraints: dict[_Figure, Annotated[_Bound, PlainValidator(_bound)]] = Field({})
    points: list[dict[str, OneValue]] = Field([])
    sampler: Annotated[SamplerConfig, BeforeValidator(_named)] = SamplerConfig()
    scheduler: Annotated[SchedulerConfig, BeforeValidator(_named)] | None = None

    @field_validator("parameters", mode="plain")
    @classmethod
    def _read_parameters(cls, entries: Any, info: ValidationInfo[Checks]) -> tuple[Parameter, ...]:
        if not isinstance(entries, dict):
            raise refusal("not a mapping; write `path: {distribution: …}` lines")
        if not entries:
            raise refusal("empty; name at least one path of the recipe to search")
        # One by one, not as a dict of models: an entry is checked against its path and the entries above it.
        problems = Problems()
        read: dict[str, Parameter | None] = {}
        for path, entry in entries.items():
            refused = path_problem(path)
            if refused:
                problems.add(refused, path, KEY)
            around = _Around(checks=info.context, path=path, paths=tuple(entries), above=dict(read))
            valid = problems.validated(_ParameterEntry, entry, path, context=around)
            read[path] = valid.parameter(path) if valid and not refused else None
        problems.check()
        return tuple(parameter for parameter in read.values() if parameter)

    @field_validator("objectives", mode="after")
    @classmethod
    def _others(cls, objectives: dict[str, Mode], info: ValidationInfo) -> dict[str, Mode]:
        problems = Problems()
        for metric in objectives:
            if metric == info.data.get("metric"):
                problems.add("this is the space's metric already; name another, or remove it", metric, KEY)
        problems.check()
        return objectives

    @field_validator("points", mode="after")
    @classmethod
    def _within(cls, points: list[dict[str, Scalar]], info: ValidationInfo) -> list[dict[str, Scalar]]:
        if "parameters" not in info.data:
            return points
        space = SearchSpace(name="", metric="", parameters=info.data["parameters"])
        problems = Problems()
        for index, point in enumerate(points):
            inside = space.restrict(point)
            for path, value in point.items():
                if path not in space.paths:
                    hint = closest(path, space.paths) or "; name one of its parameters"
                    problems.add(f"{path!r} is not searched by the space{hint}", index, path, KEY)
                elif path not in inside:
                    reason = "it is outside the range, or its condition is not met"
                    problems.add(f"{short(value)} cannot be suggested: {reason}; change or remove it", index, path)
        problems.check()
        return [space.restrict(point) for point in points]

    @model_validator(mode="after")
    def _policy_fits(self) -> _SpaceFile:
        problems = Problems()
        if self.scheduler:
            for path, conflict in conflicts(self.space()):
                problems.add(conflict, *(("parameters", path, KEY) if path else ("scheduler",)))
        problems.check()
        return self

    def space(self) -> SearchSpace:
        # Schedulers compare trials by one metric, so with several objectives the default is none.
        scheduler = self.scheduler or SchedulerConfig(name="none" if self.objectives else "asha")
        return SearchSpace(
            name=self.name,
            metric=self.metric,
            parameters=self.parameters,
            objectives=tuple(Objective(metric=metric, mode=mode) for metric, mode in self.objectives.items()),
            constraints=tuple(
                Constraint(metric=metric, comparison=comparison, bound=bound)
                for metric, (comparison, bound) in self.constraints.items()
            ),
            points=tuple(self.points),
            sampler=self.sampler,
            scheduler=scheduler,
        )
