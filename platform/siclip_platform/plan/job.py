"""The input of a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from siclip_platform.plan.cards import Card
from siclip_platform.plan.measured import DECODE_RATE, Calibration
from siclip_platform.plan.storage import RowBytes
from siclip_platform.recipes.recipe import Recipe

if TYPE_CHECKING:
    from siclip.diagnostics.memory import StepMemory

TeacherSource = Literal["none", "online", "shared trunk", "stored"]


def teacher_source(recipe: Recipe) -> TeacherSource:
    """Where a recipe's targets come from."""
    if not recipe.loss.needs_teacher:
        return "none"
    if recipe.data.teacher_embeddings:
        return "stored"
    return "online" if recipe.distil_from or not recipe.model.inherit else "shared trunk"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training and the machine that it is to run on.

    Attributes:
        recipe: the training.
        pairs: samples of the dataset.
        pairs_source: where their number is from; empty: it was given.
        epochs: passes over the dataset.
        teacher: where the targets of distillation come from.
        rows: bytes per sample on disk.
        disk_bytes: disk budget.
        card: the graphics card, with its memory, peak performance and power; None where only ``measured`` is known.
        measured: timed steps; the speed is computed from them instead of from the card's peak performance.
        cards: number of cards, each with an equal share of the batch.
        cores: that decode.
        core_rate: images per second that one of them decodes.
        core_rate_is_measured: on this machine; otherwise it is `DECODE_RATE`.
        exact: the memory of a step, counted on fake tensors; None: it is computed from `Work`.
        augmentations: stored augmentations per image, if the teacher is ``stored``.
        captions: captions per image with stored embeddings, if the teacher is ``stored``.
        numbers: format of stored embeddings, ``bf16`` or ``int8``.
        trunk_cache: the outputs of the frozen trunk are stored on disk.
    """

    recipe: Recipe
    pairs: int
    epochs: float
    teacher: TeacherSource
    rows: RowBytes
    disk_bytes: int
    pairs_source: str = ""
    card: Card | None = None
    measured: Calibration | None = None
    cards: int = 1
    cores: int = 16
    core_rate: float = DECODE_RATE
    core_rate_is_measured: bool = False
    exact: StepMemory | None = None
    augmentations: int = 10
    captions: int = 6
    numbers: str = "bf16"
    trunk_cache: bool = False

    @property
    def decode_rate(self) -> float:
        """Images per second that all cores decode together."""
        return self.cores * self.core_rate
