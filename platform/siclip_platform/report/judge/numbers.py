"""Parse parameters as numbers: MLflow stores them as strings."""

from __future__ import annotations

import math
from collections.abc import Iterable

from siclip_platform.report.read.runs import Run

LOG_RATIO = 30.0  # about one and a half decades


def number(text: str | None) -> float | None:
    """A parameter as a finite number, or None."""
    try:
        found = float(text or "")
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def numeric_range(runs: Iterable[Run], path: str) -> tuple[float, float] | None:
    """Lowest and highest value of a parameter, or None unless it is a number in every run that has it."""
    texts = [run.params[path] for run in runs if path in run.params]
    found = [number(text) for text in texts]
    known = [value for value in found if value is not None]
    return (min(known), max(known)) if known and len(known) == len(found) else None


def is_log(low: float, high: float) -> bool:
    """Whether a range is drawn and modelled on a logarithmic scale."""
    return low > 0 and high / low >= LOG_RATIO
