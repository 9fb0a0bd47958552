"""A search space: parameters, each a path of the recipe with a distribution and its conditions."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from siclip_platform.spaces.policy import SamplerConfig, SchedulerConfig
from siclip_platform.storage.hashing import canonical_hash

if TYPE_CHECKING:
    import optuna

Scalar = float | int | str | bool | None
Mode = Literal["max", "min"]
Distribution = Literal["uniform", "log_uniform", "int_uniform", "log_int_uniform", "choice"]
WHOLE = ("int_uniform", "log_int_uniform")
LOG = ("log_uniform", "log_int_uniform")
Comparison = Literal["<", "<=", ">", ">=", "in"]

COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def same(left: Scalar, right: Scalar) -> bool:
    """Equality of config values: 1 equals 1.0, but neither equals ``true``."""
    return left == right and isinstance(left, bool) == isinstance(right, bool)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A parameter above is active, and its value compares with the operands.

    Attributes:
        path: the parameter above.
        operands: one number; for "in" any values.
    """

    path: str
    comparison: Comparison
    operands: tuple[Scalar, ...]

    def accepts(self, value: Scalar) -> bool:
        if self.comparison == "in":
            return any(same(value, operand) for operand in self.operands)
        return COMPARE[self.comparison](value, self.operands[0])


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One searched path of the recipe.

    Attributes:
        low: smallest value of a range.
        high: largest value of a range.
        step: distance between the values of a ``uniform`` or ``int_uniform`` range; it divides high - low.
        values: of a ``choice``.
        when: conditions that must all hold for the parameter to be searched.
    """

    path: str
    distribution: Distribution
    low: float | int | None = None
    high: float | int | None = None
    step: float | int | None = None
    values: tuple[Scalar, ...] = ()
    when: tuple[Condition, ...] = ()

    def active(self, chosen: Mapping[str, Any]) -> bool:
        """Whether every condition holds, given the values of the parameters above this one."""
        return all(condition.path in chosen and condition.accepts(chosen[condition.path]) for condition in self.when)

    def suggest(self, trial: optuna.Trial) -> Any:
        if self.distribution == "choice":
            return trial.suggest_categorical(self.path, self.values)
        log = self.distribution in LOG
        if self.distribution in WHOLE:
            return trial.suggest_int(self.path, self.low, self.high, step=self.step or 1, log=log)
        return trial.suggest_float(self.path, self.low, self.high, step=self.step, log=log)

    def contains(self, value: Any) -> bool:
        """Whether `suggest` can return this value."""
        if self.distribution == "choice":
            return any(same(value, choice) for choice in self.values)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low, high = self.sample_values
        whole = self.distribution not in WHOLE or float(value).is_integer()
        return whole and low <= value <= high and (self.step is None or divides(self.step, value - low))

    @property
    def sample_values(self) -> tuple[Any, ...]:
        """Every value of a choice; both ends of a range."""
        return self.values if self.distribution == "choice" else (self.low, self.high)

    @property
    def numeric(self) -> bool:
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.sample_values)

    @property
    def size(self) -> float:
        """Number of values; infinite for a continuous range."""
        if self.distribution == "choice":
            return float(len(self.values))
        low, high = self.sample_values
        step = self.step or (1 if self.distribution in WHOLE else 0)
        return round((high - low) / step) + 1.0 if step else math.inf


def divides(step: float, distance: float) -> bool:
    """Whether a distance is a multiple of a step, up to rounding."""
    # Decimal steps are rounded in binary: 0.3 / 0.1 is 2.9999999999999996.
    return abs(distance / step - round(distance / step)) < 1e-9 * max(1.0, abs(distance / step))


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A metric to maximise or minimise in addition to the study's."""

    metric: str
    mode: Mode


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """A bound on a metric that the best setting must meet."""

    metric: str
    comparison: Literal["<=", ">="]
    bound: float

    def violation(self, value: float) -> float:
        """By how much the bound is missed; 0 or less where it is met."""
        return value - self.bound if self.comparison == "<=" else self.bound - value


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """A validated search space; `siclip_platform.spaces.load_space` reads one from a file.

    Attributes:
        metric: the study's metric, which is maximised.
        parameters: a conditional parameter comes after the parameters that it depends on.
        objectives: further objectives.
        points: settings to try first; each may leave parameters open.
    """

    name: str
    metric: str
    parameters: tuple[Parameter, ...]
    objectives: tuple[Objective, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    points: tuple[Mapping[str, Scalar], ...] = ()
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Define-by-run: dotted path → value; an inactive parameter is neither suggested nor returned."""
        chosen: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.active(chosen):
                chosen[parameter.path] = parameter.suggest(trial)
        return chosen

    def restrict(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The part of these values, for example of ``recipe.flat()``, that the space could suggest.

        Paths that are not searched, values outside their range and inactive parameters are omitted.
        """
        inside: dict[str, Any] = {}
        for parameter in self.parameters:
            path = parameter.path
            if path in values and parameter.active(inside) and parameter.contains(values[path]):
                inside[path] = values[path]
        return inside

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(parameter.path for parameter in self.parameters)

    @property
    def directions(self) -> dict[str, Mode]:
        """Every metric that is optimised, the study's first, with its mode."""
        others: dict[str, Mode] = {objective.metric: objective.mode for objective in self.objectives}
        return {self.metric: "max", **others}

    @property
    def size_hint(self) -> float:
        """Upper bound on the number of distinct settings; infinite if a range is continuous."""
        return math.prod(parameter.size for parameter in self.parameters)

    @property
    def hash(self) -> str:
        """First 12 hex digits of the SHA-256 of what is searched; studies with equal hashes can be one study."""
        # Studies store the hash: "mode", which can only be max, stays in it.
        tree = {
            "name": self.name,
            "metric": self.metric,
            "mode": "max",
            **{
                part: [asdict(item) for item in getattr(self, part)]
                for part in ("parameters", "objectives", "constraints")
            },
        }
        return canonical_hash(tree, digits=12)
