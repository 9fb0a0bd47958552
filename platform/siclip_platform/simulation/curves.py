"""Recorded learning curves of a study, and an estimate of the scores of any setting in its space."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from siclip.config import Config
from siclip.errors import UserError
from siclip_platform.spaces.definition import LOG, Parameter, Scalar, SearchSpace
from siclip_platform.spaces.load import load_space, space_folders

FOLDER = "curves"
TREES = 100
INACTIVE = -1.0
"""The number that encodes a range whose condition is not met: outside 0 to 1, where active ranges are."""


class Curve(Config):
    """One recorded setting.

    Attributes:
        scores: step → score at each evaluation; None where it was not finite.
        seconds: training time up to each evaluation from the one before.
        costs: what the trial reported in addition.
        reason: why it failed, if it did.
    """

    values: dict[str, Scalar]
    scores: dict[int, float | None]
    seconds: tuple[float, ...]
    costs: dict[str, float] = Field(default_factory=dict)
    reason: str = ""


class Curves(Config):
    """A recorded study.

    Attributes:
        space: name of the space that was searched.
        mode: the metric is always maximised; files recorded by earlier versions state it.
        made_by: the command that recorded it.
        dataset: what it trained on.
    """

    name: str
    space: str
    metric: str
    mode: Literal["max"] = "max"
    steps: int = Field(ge=1)
    curves: tuple[Curve, ...] = Field(min_length=10)
    made_by: str = ""
    dataset: str = ""
    machine: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)

    @property
    def milestones(self) -> list[int]:
        """The steps at which every setting was evaluated."""
        return sorted(next(iter(self.whole)).scores)

    @property
    def whole(self) -> list[Curve]:
        """The curves that reach the last step and have finite scores throughout."""
        return [curve for curve in self.curves if None not in curve.scores.values() and self.steps in curve.scores]

    @property
    def stretch_seconds(self) -> list[float]:
        """Seconds up to each milestone from the one before."""
        # The median ignores the outliers of a busy machine.
        return [statistics.median(times) for times in zip(*(curve.seconds for curve in self.whole), strict=True)]


def load_curves(name_or_path: str) -> Curves:
    """Read curves from a file, or by name from ``curves/`` of the folders in which spaces are looked for.

    Raises:
        UserError: there are none of this name, or the file does not contain curves.
    """
    candidates: list[Traversable] = [Path(name_or_path)]
    candidates += [folder / FOLDER / f"{name_or_path}.json" for folder in space_folders()]
    source = next((candidate for candidate in candidates if candidate.is_file()), None)
    if source is None:
        raise UserError(
            f"no curves {name_or_path!r}: give the path of a file or one of: {', '.join(_names()) or 'none'}"
        )
    try:
        curves = Curves.model_validate_json(source.read_text())
        if not curves.whole:
            raise UserError(f"curves {source}: none of them reaches step {curves.steps}; record the study again")
        return curves
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"curves {source} cannot be read: {error}; record them again") from None


def _names() -> list[str]:
    folders = [folder / FOLDER for folder in space_folders()]
    return sorted({Path(item.name).stem for folder in folders if folder.is_dir() for item in folder.iterdir()})


class Landscape:
    """The estimated score of any setting at each milestone: extremely randomised trees fitted to recorded curves.

    The estimate of a recorded setting is close to its own curve. Between settings the trees interpolate, without
    noise and never beyond the recorded range.
    """

    def __init__(self, curves: Curves, space: SearchSpace | None = None) -> None:
        """Fit the trees.

        Args:
            curves: the recorded study.
            space: the space to search: the recorded one, which is the default, or a part of it.

        Raises:
            UserError: the space is not a part of the recorded one.
        """
        from sklearn.ensemble import ExtraTreesRegressor

        self.curves = curves
        self.recorded = load_space(curves.space)
        self.space = space or self.recorded
        self._fixed = _fixed_values(self.recorded, self.space)
        self._model = ExtraTreesRegressor(TREES, min_samples_leaf=1, random_state=0)
        self._x, self._y = _table(self.recorded, curves)
        self._model.fit(self._x, self._y)

    def scores(self, values: Mapping[str, Any]) -> list[float]:
        """One score per milestone."""
        row = encode(self.recorded, self._fixed | dict(values))
        return [float(score) for score in self._model.predict([row])[0]]

    def fit_quality(self, folds: int = 10) -> float:
        """R² of the last score, cross-validated: each fold's settings are predicted by a fit without them."""
        from sklearn.base import clone
        from sklearn.metrics import r2_score
        from sklearn.model_selection import KFold, cross_val_predict

        split = KFold(min(folds, len(self._x)), shuffle=True, random_state=0)
        predicted = cross_val_predict(clone(self._model), self._x, self._y, cv=split)
        return float(r2_score(self._y[:, -1], predicted[:, -1]))


def _table(space: SearchSpace, curves: Curves) -> tuple[np.ndarray, np.ndarray]:
    x = np.array([encode(space, curve.values) for curve in curves.whole])
    y = np.array([[curve.scores[step] for step in curves.milestones] for curve in curves.whole], dtype=float)
    return x, y


def encode(space: SearchSpace, values: Mapping[str, Any]) -> list[float]:
    """A setting as numbers: ranges from 0 to 1 (by the logarithm for log ranges), choices as indicators."""
    row: list[float] = []
    for parameter in space.parameters:
        row += _encode(parameter, values.get(parameter.path, None), parameter.path in values)
    return row


def _encode(parameter: Parameter, value: Any, active: bool) -> Sequence[float]:
    if parameter.distribution == "choice":
        return [float(active and value == choice) for choice in parameter.values]
    if not active:
        return [INACTIVE]
    low, high = map(float, parameter.sample_values)
    if parameter.distribution in LOG:
        return [math.log(value / low) / math.log(high / low)]
    return [(value - low) / (high - low)]


def _fixed_values(recorded: SearchSpace, searched: SearchSpace) -> dict[str, Any]:
    """The method's defaults for what was recorded and is not searched.

    Raises:
        UserError: the space is for another metric, searches more paths, or has wider ranges.
    """
    from siclip_platform.search.policy.searcher import paper_point

    if searched.metric != recorded.metric or searched.objectives:
        raise UserError(
            f"the curves contain {recorded.metric} alone and space {searched.name!r} searches for "
            f"{', '.join(searched.directions)}; give it this one metric"
        )
    known = {parameter.path: parameter for parameter in recorded.parameters}
    for parameter in searched.parameters:
        wider = known.get(parameter.path)
        if wider is None or not all(map(wider.contains, parameter.sample_values)):
            raise UserError(
                f"space {searched.name!r} searches {parameter.path} where no curve was recorded: keep to the paths "
                f"and ranges of space {recorded.name!r}, or record curves of this one"
            )
    return {path: value for path, value in paper_point(recorded).items() if path not in searched.paths}
