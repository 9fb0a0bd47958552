"""What the files of search spaces and of ablations have in common: names, metrics, values of recipe fields."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, field_validator

from siclip.config import Config
from siclip.errors import UserError
from siclip_platform.metrics import METRICS
from siclip_platform.recipes.fields import path_problem, read_value
from siclip_platform.recipes.problems import closest, refusal, short
from siclip_platform.recipes.yaml_file import LONGEST_TEXT

CheckValue = Callable[[str, Any], str | None]
"""(recipe path, value) → why the value is wrong, or None; called for values that the recipe's field accepts."""


class FilePart(Config):
    """Base of the models of files: read in strict mode, and defaults are not validated."""

    model_config = ConfigDict(validate_default=False)

    @field_validator("*", mode="after")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Strict mode refuses it, and pydantic allows no validator before the one that chooses a union's member.
        return value


@dataclass(frozen=True, kw_only=True)
class Checks:
    """What a file is checked against; the validation context of its model.

    Attributes:
        metrics: names of the metrics of evaluations.
        check_value: a further check of the values of recipe fields.
    """

    metrics: Collection[str] = METRICS
    check_value: CheckValue | None = None

    @property
    def selectable(self) -> list[str]:
        """The metrics that a study may select by: not those of the test split."""
        return [metric for metric in self.metrics if not metric.startswith("test/")]

    def fit(self, path: str, value: Any) -> Any:
        """The value as the recipe's field holds it, for example 1 as 1.0. Without a field, the value itself.

        Raises:
            PydanticCustomError: it is a list or a mapping, or the field or ``check_value`` refuses it.
        """
        value = one_value(value)
        if path_problem(path):  # reported at the key; there is no field to ask
            return value
        held, refused = read_value(path, value)
        if refused is None and self.check_value is not None and (reason := self.check_value(path, held)):
            refused = f"{reason}; change or remove it"
        if refused is not None:
            raise refusal(f"{short(value)} does not fit {path}: {refused}")
        return held


def one_value(value: Any) -> Any:
    """The value, unless it is a list or a mapping."""
    if isinstance(value, list | dict):
        raise refusal("a list or a mapping; write one value")
    return value


def _plain_name(name: str) -> str:
    if not re.fullmatch(r"[\w.-]+", name):
        raise refusal(f"{name!r} is not plain; use letters, digits, '_', '-' and '.'")
    return name


def _selectable_metric(metric: str, info: ValidationInfo[Checks]) -> str:
    if metric.startswith("test/"):
        raise refusal(f"{metric!r} would select on the test split; use a 'validation/' metric")
    return one_of(metric, info.context.selectable, "metric")


def one_of(name: str, choices: Collection[str], what: str) -> str:
    """The name, if it is among the choices.

    Raises:
        PydanticCustomError: it is not, with the nearest choices or all of them.
    """
    if name not in choices:
        raise refusal(f"unknown {what} {name!r}{closest(name, choices) or f'; choose one of {commas(choices)}'}")
    return name


def commas(names: Collection[str]) -> str:
    return ", ".join(names)


Text = Annotated[str, Field(min_length=1)]
PlainName = Annotated[str, AfterValidator(_plain_name)]
Metric = Annotated[str, AfterValidator(_selectable_metric)]
OneValue = Annotated[Any, AfterValidator(one_value)]


def read_text(source: Traversable, what: str) -> str:
    """The text of a file; of one that is too large its beginning, which the reader of YAML refuses.

    Raises:
        UserError: it cannot be read or is not UTF-8.
    """
    try:
        with source.open(encoding="utf-8") as file:
            return file.read(LONGEST_TEXT + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {source} cannot be read: {error}; it must be a UTF-8 text file") from None
