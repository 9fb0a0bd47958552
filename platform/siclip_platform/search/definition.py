"""What a search space is: parameters, each a config path with a distribution and the condition it needs."""

from __future__ import annotations

import hashlib
import json
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import optuna

Scalar = float | int | str | bool | None
Distribution = Literal["uniform", "log_uniform", "int_uniform", "choice"]
Comparison = Literal["<", "<=", ">", ">=", "in"]

COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def same(left: Scalar, right: Scalar) -> bool:
    """Equality of config values: 1 is 1.0, but neither is ``true``."""
    return left == right and isinstance(left, bool) == isinstance(right, bool)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """``path`` is active and its value compares so with ``operands`` (one number, or for "in" any values)."""

    path: str
    comparison: Comparison
    operands: tuple[Scalar, ...]

    def accepts(self, value: Scalar) -> bool:
        if self.comparison == "in":
            return any(same(value, operand) for operand in self.operands)
        return COMPARE[self.comparison](value, self.operands[0])


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One searched config path. Ranges include both ends; ``values`` belong to ``choice`` alone."""

    path: str
    distribution: Distribution
    low: float | int | None = None
    high: float | int | None = None
    values: tuple[Scalar, ...] = ()
    when: tuple[Condition, ...] = ()

    def active(self, chosen: Mapping[str, Any]) -> bool:
        """Whether every condition holds, given the values of the parameters before this one."""
        return all(condition.path in chosen and condition.accepts(chosen[condition.path]) for condition in self.when)

    def suggest(self, trial: optuna.Trial) -> Any:
        if self.distribution == "choice":
            return trial.suggest_categorical(self.path, self.values)
        if self.distribution == "int_uniform":
            return trial.suggest_int(self.path, self.low, self.high)
        return trial.suggest_float(self.path, self.low, self.high, log=self.distribution == "log_uniform")

    def contains(self, value: Any) -> bool:
        """Whether `suggest` can return this value."""
        if self.distribution == "choice":
            return any(same(value, choice) for choice in self.values)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        whole = self.distribution != "int_uniform" or float(value).is_integer()
        return whole and self.sample_values[0] <= value <= self.sample_values[-1]

    @property
    def sample_values(self) -> tuple[Any, ...]:
        """Every value of a choice; the two ends of a range."""
        return self.values if self.distribution == "choice" else (self.low, self.high)

    @property
    def numeric(self) -> bool:
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.sample_values)

    @property
    def size(self) -> float:
        """How many values there are; infinite for a continuous range."""
        if self.distribution == "int_uniform":
            return float(self.sample_values[1] - self.sample_values[0] + 1)
        return float(len(self.values)) if self.distribution == "choice" else math.inf


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """A validated search space; `siclip_platform.search.load_space` reads one from a file.

    A conditional parameter stands after the parameters it depends on.
    """

    name: str
    metric: str
    mode: Literal["max", "min"]
    parameters: tuple[Parameter, ...]

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Define-by-run: dotted path → value; an inactive parameter is neither asked for nor returned."""
        chosen: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.active(chosen):
                chosen[parameter.path] = parameter.suggest(trial)
        return chosen

    def restrict(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The part of these values (say, ``recipe.flat()``) that the space could suggest.

        What is left out is what the space does not search, what lies outside its range, and what is inactive.
        """
        inside: dict[str, Any] = {}
        for parameter in self.parameters:
            path = parameter.path
            if path in values and parameter.active(inside) and parameter.contains(values[path]):
                inside[path] = values[path]
        return inside

    def sample_values(self, path: str) -> tuple[Any, ...]:
        """Every value of a choice, or the low and high end of a range.

        Raises:
            KeyError: the space does not search this path.
        """
        return {parameter.path: parameter.sample_values for parameter in self.parameters}[path]

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(parameter.path for parameter in self.parameters)

    @property
    def size_hint(self) -> float:
        """Upper bound on the number of distinct settings; infinite as soon as one range is continuous."""
        return math.prod(parameter.size for parameter in self.parameters)

    @property
    def hash(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical JSON: layout and comments do not count."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]
