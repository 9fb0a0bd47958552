"""Which sources are too small for Ray."""

from __future__ import annotations

from siclip_platform.datasets.importing.sources.find import ImportSource
from siclip_platform.datasets.importing.sources.part import Layout

SMALL_BYTES = 64 * 2**20
"""About 4,000 images of 256 pixels: one core imports them in about the time in which Ray starts."""
WITH_IMAGES: tuple[Layout, ...] = ("webdataset", "datacompdr", "folder")
"""Layouts whose files contain the images; rows of tables and lists may name images elsewhere."""


def is_small(source: ImportSource) -> bool:
    """Whether one process imports a source as soon as Ray would: it is a single task, or at most `SMALL_BYTES`."""
    if len(source.parts) == 1:
        return True
    return source.layout in WITH_IMAGES and sum(size for _, size in source.files) <= SMALL_BYTES
