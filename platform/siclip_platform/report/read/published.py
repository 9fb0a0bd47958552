"""Published figures of other models, from ``report/published.yaml``."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import yaml
from pydantic import model_validator

from siclip.config import Config

NAMED = ("model", "data", "source")


class Column(Config):
    """An evaluation set's figure: the metric as `evaluate` logs it, and a heading."""

    metric: str
    title: str


class Source(Config):
    """Where figures were published."""

    title: str
    link: str


class PublishedModel(Config):
    """A model and its figures.

    Attributes:
        model: its name.
        data: what it was trained on.
        source: key of `Published.sources`.
        figures: column → per cent; a column that the source does not give is missing.
    """

    model: str
    data: str
    source: str
    figures: dict[str, float]

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, values: Any) -> Any:
        """In the file the figures stand beside the names."""
        if not isinstance(values, Mapping) or "figures" in values:
            return values
        named = {name: values[name] for name in NAMED if name in values}
        return {**named, "figures": {name: value for name, value in values.items() if name not in NAMED}}


class Published(Config):
    """The whole file."""

    columns: dict[str, Column]
    sources: dict[str, Source]
    models: tuple[PublishedModel, ...]

    @model_validator(mode="after")
    def _names_exist(self) -> Published:
        for each in self.models:
            unknown = each.figures.keys() - self.columns.keys()
            if unknown or each.source not in self.sources:
                raise ValueError(f"{each.model}: no column or source {', '.join(unknown) or each.source}")
        return self


@functools.cache
def published() -> Published:
    """The figures that come with this version."""
    text = files("siclip_platform.report").joinpath("published.yaml").read_text(encoding="utf-8")
    return Published.model_validate(yaml.safe_load(text))
