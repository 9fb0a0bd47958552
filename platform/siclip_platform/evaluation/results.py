"""What an evaluation gives: of each set and of the whole suite."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from siclip.evaluation.bootstrap import Interval
from siclip.evaluation.suite import Average

SetState = Literal["measured", "missing", "failed"]


@dataclass(frozen=True)
class Sampling:
    """Of the bootstrap."""

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0


STANDARD = Sampling()


@dataclass
class SetResult:
    """One set. ``metrics``: model → metric → figure with interval; ``differences``: the same of each further model
    minus the first, paired. ``units``: samples measured, with ``captions`` in a retrieval set. ``unreadable``: keys
    of images that could not be read. ``note``: what to know beside the figure. ``kept``: by an earlier run."""

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
        found = self.metrics.get(model, {}).get(self.main)
        return found.value if found else None


@dataclass
class SuiteResult:
    """``averages``: model → the mean over the 38 or over those of them that were measured; empty for other sets."""

    models: list[str]
    sets: list[SetResult]
    averages: dict[str, Average]
