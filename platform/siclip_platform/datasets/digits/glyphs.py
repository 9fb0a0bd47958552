"""Real handwritten digits: the UCI set that scikit-learn ships (1,797 images of 8×8, ink 0..16)."""

from __future__ import annotations

import gzip
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from siclip_platform.datasets.digits.scenes import random_stream

SPLIT_SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


@cache
def load_glyphs() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Ink (N, 8, 8) in 0..16 and digit (N,), as ``sklearn.datasets.load_digits`` orders them.

    The file is read without importing scikit-learn, which would cost every worker process five seconds.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
        FileNotFoundError: its digits are not where this version expects them.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("scikit-learn is not installed; its digits are the default dataset's source")
    with gzip.open(Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz") as file:
        values = np.loadtxt(file, delimiter=",")
    return values[:, :-1].reshape(-1, 8, 8).astype(np.uint8), values[:, -1].astype(np.int64)


@cache
def split_instances(seed: int) -> dict[str, tuple[npt.NDArray[np.int64], ...]]:
    """Split → for each digit 0..9 its glyph indices; the splits share no glyph."""
    _, digits = load_glyphs()
    pools: dict[str, list[npt.NDArray[np.int64]]] = {split: [] for split in SPLIT_SHARES}
    for digit in range(10):
        indices = random_stream(seed, "instances", digit).permutation(np.flatnonzero(digits == digit))
        ends = np.cumsum([round(share * len(indices)) for share in SPLIT_SHARES.values()])[:-1]
        for split, part in zip(SPLIT_SHARES, np.split(indices, ends), strict=True):
            pools[split].append(part)
    return {split: tuple(parts) for split, parts in pools.items()}


@cache
def coverage(instance: int, side: int) -> npt.NDArray[np.float32]:
    """How much of each pixel the glyph covers, (side, side) in 0..1, upscaled smoothly.

    The glyph gets an empty rim of half a source pixel, so that strokes end round and not at the box's edge.
    """
    ink = Image.fromarray(np.pad(load_glyphs()[0][instance].astype(np.float32) / 16, 1))
    scaled = ink.resize((side, side), Image.Resampling.BICUBIC, box=(0.5, 0.5, 9.5, 9.5))
    mask: npt.NDArray[np.float32] = np.clip((np.asarray(scaled, dtype=np.float32) - 0.12) * 1.35, 0, 1)
    mask.setflags(write=False)
    return mask
