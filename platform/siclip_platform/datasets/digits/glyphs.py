"""Handwritten digits: the UCI set that scikit-learn contains (1,797 images of 8×8 pixels, ink 0..16)."""

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
    """Return ink (N, 8, 8) in 0..16 and digit (N,), in the order of ``sklearn.datasets.load_digits``.


    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
        FileNotFoundError: this version of scikit-learn has its digits elsewhere.
    """
    # Without importing scikit-learn, which takes five seconds in every worker process.
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "scikit-learn is not installed: install it, because the default dataset uses its digits"
        )
    with gzip.open(Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz") as file:
        values = np.loadtxt(file, delimiter=",")
    return values[:, :-1].reshape(-1, 8, 8).astype(np.uint8), values[:, -1].astype(np.int64)


@cache
def split_instances(seed: int) -> dict[str, tuple[npt.NDArray[np.int64], ...]]:
    """Return split → for each digit 0..9 the indices of its glyphs; the splits share no glyph."""
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
    """Return the share of each pixel that a glyph covers, (side, side) in 0..1, smoothly upscaled."""
    # A margin of half a source pixel: strokes then end round instead of at the edge of the box.
    ink = Image.fromarray(np.pad(load_glyphs()[0][instance].astype(np.float32) / 16, 1))
    scaled = ink.resize((side, side), Image.Resampling.BICUBIC, box=(0.5, 0.5, 9.5, 9.5))
    mask: npt.NDArray[np.float32] = np.clip((np.asarray(scaled, dtype=np.float32) - 0.12) * 1.35, 0, 1)
    mask.setflags(write=False)
    return mask
