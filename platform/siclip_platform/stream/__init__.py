"""Read Parquet into batches: threads and Ray Data tasks give the same samples in the same order.

A sample passes through `source` (shards and their order), `windows` (row groups read and shuffled together), `stream`
(decode, augment, choose a caption, tokenize), and `threads` or `ray_reader` (batches, ahead of the training).
"""

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
