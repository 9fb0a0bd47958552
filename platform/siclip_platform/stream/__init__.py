"""Read Parquet into batches: threads and Ray Data give the same samples in the same order.

A sample passes through `source` (shards and their order), `windows` (row groups read and shuffled together),
`decoder` (decode, augment), `stream` (choose a caption, tokenize), and `threads` (batches, ahead of the training).
With Ray Data `parts` reads the windows in tasks, and `ray_reader` receives them. `reading` decides between the two.

Public names are imported on first use: tasks of Ray Data import `parts` alone, and no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from siclip_platform.stream.columns import Columns
    from siclip_platform.stream.evaluation_set import load_evaluation_set, original_captions, validation_set
    from siclip_platform.stream.source import StreamSource
    from siclip_platform.stream.stream import Stream
    from siclip_platform.stream.threads import thread_batches

__all__ = [
    "Columns",
    "Stream",
    "StreamSource",
    "load_evaluation_set",
    "original_captions",
    "thread_batches",
    "validation_set",
]

_MODULE_OF_NAME = {
    "Columns": "columns",
    "Stream": "stream",
    "StreamSource": "source",
    "load_evaluation_set": "evaluation_set",
    "original_captions": "evaluation_set",
    "thread_batches": "threads",
    "validation_set": "evaluation_set",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF_NAME[name]}"), name)
