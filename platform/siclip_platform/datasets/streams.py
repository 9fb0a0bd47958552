"""Independent random streams of one seed, told apart by what they are for."""

from __future__ import annotations

import zlib

import numpy as np


def random_stream(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """The same arguments always give the same stream, in any process and order of calls."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *numbers])
