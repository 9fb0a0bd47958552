"""What is planned."""

from __future__ import annotations

from dataclasses import dataclass

from siclip_platform.plan.calibration import Calibration, TeacherSource
from siclip_platform.plan.cards import Card
from siclip_platform.plan.storage import RowBytes
from siclip_platform.recipes.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be trained, on what. ``decode_rate``: images a second that all cores decode together. ``numbers``:
    of stored embeddings, bf16 or int8. ``seconds_measured``: a calibration in place of the card's peak figures.
    ``kilowatts``: of the calibrated machine, where its card is not in the table."""

    recipe: Recipe
    pairs: int
    epochs: float
    teacher: TeacherSource
    rows: RowBytes
    disk_bytes: int
    card: Card | None = None
    measured: Calibration | None = None
    cards: int = 1
    decode_rate: float
    augmentations: int = 10
    captions: int = 6
    numbers: str = "bf16"
    trunk_cache: bool = False
