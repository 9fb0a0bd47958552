"""What a run that diverged leaves behind, whichever way it ran."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from siclip.training.diverged import TrainingDiverged, write_ids


@contextmanager
def keeping_ids(folder: Path | None, name: str) -> Iterator[None]:
    """Where training inside diverges, its batches' ids go to ``folder/NAME-diverged-at-STEP.csv``.

    Without a folder nothing is written, and the exception still holds them. Every worker of a run may do this: each
    has the ids of all, and the file is the same.

    Raises:
        TrainingDiverged: the one raised inside, with the file's path in its message.
    """
    try:
        yield
    except TrainingDiverged as error:
        if folder is None or not error.batches:
            raise
        folder.mkdir(parents=True, exist_ok=True)
        raise write_ids(error, folder / f"{name}-diverged-at-{error.batches[-1].step}.csv") from None
