"""Read damaged images with every reader; print how many were refused, and the memory at the peak.

A process of its own, because memory is counted per process: ``python image_fuzz.py SEED COUNT``.
"""

from __future__ import annotations

import json
import resource
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from siclip.data.images import decode_as_pillow, decode_image, image_size
from siclip.errors import UserError
from siclip_platform.datasets.importing.images import ImageRules, prepare_image
from siclip_platform.datasets.importing.sources.sample import Rejection
from tests.support.pictures import bombs, deep, exif, jpeg, oriented, picture, saved, xmp_segment

READERS: tuple[Callable[[bytes], Any], ...] = (
    decode_image,
    image_size,
    decode_as_pillow,
    lambda data: prepare_image(data, ImageRules()),
)


def seeds() -> list[bytes]:
    """Small whole files of every format and kind."""
    pixels = picture()
    files = [data for _, data, _ in (*oriented(pixels, 6), *deep(pixels))]
    files += [jpeg(pixels, exif(8), xmp_segment(5), progressive=True), *bombs().values()]
    frames = {"save_all": True, "append_images": []}
    return files + [saved(pixels, form, **frames) for form in ("GIF", "WEBP", "TIFF", "MPO")]


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """The file with one to three mistakes, a third of them within its first 200 bytes, where headers are."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        end = max(1, min(len(out), 200) if rng.random() < 0.3 else len(out))
        at, size = int(rng.integers(end)), int(rng.integers(1, 9))
        kind = rng.integers(5)
        if kind == 0:
            del out[at:]
        elif kind == 1:
            out[at : at + size] = rng.bytes(size)
        elif kind == 2:
            out[at : at + size] = b"\xff" * size if rng.random() < 0.5 else bytes(size)
        elif kind == 3:
            del out[at : at + size]
        else:
            out[at:at] = out[: int(rng.integers(1, len(out) + 1))] if out else b"\0"
    return bytes(out)


def main(seed: int, count: int) -> None:
    """Read ``count`` damaged files. Whatever is not a `UserError` or a `Rejection` ends the process."""
    warnings.simplefilter("ignore")
    rng, files, outcomes = np.random.default_rng(seed), seeds(), Counter[str]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for index in range(count):
        data = damaged(files[index % len(files)], rng)
        for read in READERS:
            try:
                read(data)
                outcomes["read"] += 1
            except (UserError, Rejection) as error:
                assert str(error)
                outcomes["refused"] += 1
            except BaseException:
                sys.stderr.write(f"file {index} of seed {seed}: {data[:80]!r}\n")
                raise
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(outcomes | {"mebibytes": (peak - before) // 1024}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
