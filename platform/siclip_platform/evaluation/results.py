"""Results of an evaluation: of each set and of the whole suite."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from siclip.evaluation.bootstrap import Interval
from siclip.evaluation.suite import Average

SetState = Literal["measured", "missing", "failed"]


@dataclass(frozen=True)
class Sampling:
    """The bootstrap.

    Attributes:
        resamples: how many samples with replacement are drawn.
        confidence: of the intervals.
        seed: of the drawing.
    """

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0


STANDARD = Sampling()


@dataclass
class SetResult:
    """The result of one set.

    Attributes:
        name: the set's name.
        title: its name as it is shown.
        state: whether it was measured.
        main: the metric that the set is compared by.
        reason: why it was not measured.
        units: the number of samples measured.
        captions: the number of captions of a retrieval set.
        unreadable: keys of images that could not be read.
        note: a remark on the result.
        prompts: the source of class names and templates.
        kept: whether an earlier run measured it.
        seconds: the time it took.
        metrics: model → metric → value with interval.
        differences: the same for each further model minus the first, paired.
    """

    name: str
    title: str
    state: SetState
    main: str = ""
    reason: str = ""
    units: int = 0
    captions: int = 0
    unreadable: tuple[str, ...] = ()
    note: str = ""
    prompts: str = ""
    kept: bool = False
    seconds: float = 0.0
    metrics: dict[str, dict[str, Interval]] = field(default_factory=dict)
    differences: dict[str, dict[str, Interval]] = field(default_factory=dict)

    def main_value(self, model: str) -> float | None:
        """Return the main metric of a model; None if it was not measured."""
        found = self.metrics.get(model, {}).get(self.main)
        return found.value if found else None


@dataclass
class SuiteResult:
    """The result of a suite.

    Attributes:
        models: their names; differences are to the first.
        sets: the result of each set.
        averages: model → the mean over those of DataComp's 38 sets that were measured; empty for other sets.
    """

    models: list[str]
    sets: list[SetResult]
    averages: dict[str, Average]
