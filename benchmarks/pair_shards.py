"""Shards in img2dataset's WebDataset layout with samples damaged in ten ways, and the expected ledger entries."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from PIL import Image

# The last one is downscaled by an import at 256 px.
SIZES = ((96, 72), (160, 200), (320, 280))


def write_pairs(folder: Path, count: int, shard_rows: int, bad_share: float, seed: int = 0) -> dict[str, str]:
    """Write shards.

    Args:
        folder: is created.
        count: number of samples.
        shard_rows: samples per shard.
        bad_share: share of the samples that are damaged; none is in the first shard.
        seed: of images and damage.

    Returns:
        For each damaged sample its location in the source (``00003.tar/000030017``) → the ledger's reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    bad = np.sort(rng.choice(np.arange(shard_rows, count), round(count * bad_share), replace=False))
    reasons = {int(number): list(DAMAGE)[index % len(DAMAGE)] for index, number in enumerate(bad)}
    expected = {}
    for shard, start in enumerate(range(0, count, shard_rows)):
        metas = []
        with (folder / f"{shard:05d}.tar").open("wb") as file, webdataset.TarWriter(file) as tar:
            for index in range(min(shard_rows, count - start)):
                sample = pair(f"{shard:05d}{index:04d}", rng)
                metas.append(json.loads(sample["json"]))
                reason = reasons.get(start + index)
                if reason:
                    DAMAGE[reason](sample)
                    expected[f"{shard:05d}.tar/{sample['__key__']}"] = reason
                tar.write(sample)
        pq.write_table(pa.Table.from_pylist(metas), folder / f"{shard:05d}.parquet")
        stats = {"count": len(metas), "successes": len(metas), "failed_to_download": 0, "failed_to_resize": 0}
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps(stats))
    return expected


def pair(key: str, rng: np.random.Generator) -> dict[str, Any]:
    """A sample as img2dataset passes it to its tar writer."""
    width, height = SIZES[int(rng.integers(len(SIZES)))]
    corners = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    image = Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)
    caption = f"a gradient number {key} from {tuple(corners[0, 0].tolist())}"
    meta = {"caption": caption, "url": f"https://example.org/{key}.jpg", "key": key, "status": "success"}
    meta |= {"error_message": None, "width": width, "height": height, "original_width": 2 * width}
    meta |= {"original_height": 2 * height, "exif": "{}", "sha256": f"{int(rng.integers(2**62)):064x}"}
    return {
        "__key__": key,
        "jpg": encoded(image, "JPEG", quality=95),
        "txt": caption,
        "json": json.dumps(meta, indent=4),
    }


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@cache
def bomb() -> bytes:
    """A PNG of a few kilobytes that would be 590 MB decoded."""
    return encoded(Image.new("1", (14_000, 14_000)), "PNG")


def animation() -> bytes:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def scrambled(data: bytes) -> bytes:
    """A JPEG with overwritten tables, but an intact beginning and end."""
    return data[:200] + b"\xff\x20" * 40 + data[280:]


def _set(name: str, value: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def change(sample: dict[str, Any]) -> None:
        sample[name] = value(sample[name])

    return change


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "truncated": _set("jpg", lambda data: data[: len(data) * 2 // 3]),
    "not an image": _set("jpg", lambda _: b"<html><body>404 Not Found</body></html>"),
    "damaged image": _set("jpg", scrambled),
    "too small": _set("jpg", lambda _: encoded(Image.new("RGB", (20, 90)), "JPEG")),
    "decompression bomb": _set("jpg", lambda _: bomb()),
    "animated": _set("jpg", lambda _: animation()),
    "missing image": lambda sample: sample.pop("jpg"),
    "empty caption": _set("txt", lambda _: " \n"),
    "undecodable text": _set("txt", lambda text: text.encode() + "é".encode("latin-1")),
    "duplicate id": _set("__key__", lambda key: f"00000{key[5:]}"),
}
