"""Diverged runs, whose loss or gradient stays non-finite, and the samples of the skipped steps."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from siclip.data.batch import Batch
from siclip.training.workers import joined


@dataclass(frozen=True)
class SkippedBatch:
    """The ids, in order, of the samples of all workers in a skipped step."""

    step: int
    image_ids: tuple[int, ...]
    caption_ids: tuple[int, ...]

    @classmethod
    def of(cls, step: int, batch: Batch) -> SkippedBatch:
        """From this worker's batch. Every worker must call it, because their ids are gathered."""

        def numbers(ids: Tensor) -> tuple[int, ...]:
            return tuple(joined([ids]).tolist())

        return cls(step, numbers(batch.image_ids), numbers(batch.caption_ids))

    def as_plain(self) -> tuple[Any, ...]:
        """As numbers and lists, for a checkpoint."""
        return self.step, list(self.image_ids), list(self.caption_ids)

    @classmethod
    def from_plain(cls, plain: Iterable[Any]) -> SkippedBatch:
        step, image_ids, caption_ids = plain
        return cls(int(step), tuple(image_ids), tuple(caption_ids))


class TrainingDiverged(RuntimeError):
    """Loss or gradient were not finite for ``max_skipped_steps`` consecutive steps.

    It can be pickled, so that it reaches another process with its ``batches``, those of the skipped steps.
    """

    def __init__(self, message: str, batches: Iterable[SkippedBatch] = ()) -> None:
        super().__init__(message)
        self.batches = tuple(batches)


def write_ids(error: TrainingDiverged, path: Path) -> TrainingDiverged:
    """Write the samples of the skipped batches as CSV with columns step, image_id and caption_id.

    The file is written atomically, under a temporary name that is then renamed.

    Returns:
        The exception to raise, whose message names the file.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "image_id", "caption_id"])
        for batch in error.batches:
            pairs = zip(batch.image_ids, batch.caption_ids, strict=True)
            writer.writerows((batch.step, image, caption) for image, caption in pairs)
    temporary.replace(path)
    return TrainingDiverged(f"{error}; the ids of their samples are in {path}", error.batches)
