"""Bytes per sample of CC12M-SYN on disk under every available choice, measured on shards written here.

    python benchmarks/storage.py [--rows 300] [--pairs 10000000] [--report docs/results/storage.md]

Peer: img2dataset's figure for CC12M at 256 px, 331 GB for about 10 million images, which it states and which is not
measured here. Images: crops of the three photographs that scikit-learn and matplotlib ship, resized and encoded by
the import. Captions: consecutive words from the language reference that Python ships, in the given lengths.
Embeddings: random unit vectors, which cannot be compressed, written by the same code as in ``data embed``.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import pydoc_data.topics
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.cbook
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from siclip.data.crops import seeded_boxes
from siclip.data.quantize import Numbers
from siclip_platform.datasets.derived.embeddings.layout import EmbeddingLayout, embedding_table
from siclip_platform.datasets.importing.images import ImageRules, prepare_image
from siclip_platform.datasets.manifest import write_shard
from siclip_platform.datasets.schema import SCHEMA
from siclip_platform.datasets.sidecar import CAPTIONS_SCHEMA, write_sidecar_shard
from siclip_platform.plan.reference import AVAILABLE_PAIRS
from siclip_platform.tracking import git_commit

RESULT = Path(__file__).resolve().parent / "results" / "storage.json"
STATED_IMAGE_BYTES = 331e9 / 10e6
GROUP_ROWS = 250
ORIGINAL_WORDS, SYNTHETIC_WORDS = 20, 10
SIZES, QUALITIES = (256, 224), (95, 90, 80, 70)
WIDTHS = (512, 768)


def photographs() -> list[Image.Image]:
    hopper = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    return [*(Image.fromarray(array) for array in load_sample_images().images), Image.open(str(hopper))]


def crops(count: int) -> list[bytes]:
    """Crops of a quarter to all of a photograph's area, as PNG, so that only the import's JPEG is lossy."""
    found = []
    images = photographs()
    for number in range(count):
        image = images[number % len(images)]
        box = seeded_boxes(image.height, image.width, 1, 0.25, 0, str(number))[0].tolist()
        top, left, height, width = box
        data = io.BytesIO()
        image.crop((left, top, left + width, top + height)).save(data, "PNG", compress_level=1)
        found.append(data.getvalue())
    return found


def texts(count: int, words: int, seed: int) -> list[str]:
    corpus = " ".join(pydoc_data.topics.topics.values()).split()
    starts = np.random.default_rng(seed).integers(0, len(corpus) - words, count)
    return [" ".join(corpus[start : start + words]) for start in starts]


def image_bytes(sources: list[bytes], size: int, quality: int) -> list[bytes]:
    rules = ImageRules(size=size, quality=quality)
    return [prepare_image(data, rules).data for data in sources]


def shard_bytes(folder: Path, images: list[bytes]) -> tuple[float, float]:
    """Bytes per row of a shard with these images and an original caption: of the image column, and of the rest."""
    captions = texts(len(images), ORIGINAL_WORDS, seed=1)
    size = {"width": 256, "height": 256, "category": None, "meta": None}
    rows = []
    for number, (data, text) in enumerate(zip(images, captions, strict=True)):
        caption = {"text": text, "source": "original", "model": None}
        rows.append({"id": f"{number:09d}", "image": data, "captions": [caption], **size})
    path = folder / "rows.parquet"
    total = write_shard(pa.Table.from_pylist(rows, SCHEMA), path, GROUP_ROWS).bytes
    metadata = pq.read_metadata(path)
    column = metadata.schema.names.index("image")
    groups = (metadata.row_group(index).column(column) for index in range(metadata.num_row_groups))
    image = sum(group.total_compressed_size for group in groups)
    return image / len(rows), (total - image) / len(rows)


def caption_bytes(folder: Path, rows: int, each: int) -> float:
    """Bytes per row of ``each`` synthetic captions stored beside the dataset."""
    flat = iter(texts(rows * each, SYNTHETIC_WORDS, seed=2))
    model = "coca_ViT-L-14:mscoco_finetuned_laion2B-s13B-b90k"
    captions = [
        {"captions": [{"text": next(flat), "source": "synthetic", "model": model} for _ in range(each)]}
        for _ in range(rows)
    ]
    groups = [
        pa.Table.from_pylist(captions[first : first + GROUP_ROWS], CAPTIONS_SCHEMA)
        for first in range(0, rows, GROUP_ROWS)
    ]
    return write_sidecar_shard(folder / "captions.parquet", groups, CAPTIONS_SCHEMA).bytes / rows


def embedding_bytes(folder: Path, rows: int, width: int, numbers: Numbers, crops_each: int, captions: int) -> float:
    """Bytes per row of stored teacher embeddings."""
    settings: dict[str, Any] = {"numbers": numbers, "augmentations": crops_each, "image_size": (256, 256)}
    layout = EmbeddingLayout(teacher="", key="", widths=(width, width), logit_scale=1, **settings)
    rng = np.random.default_rng(3)
    groups = []
    for first in range(0, rows, GROUP_ROWS):
        count = min(GROUP_ROWS, rows - first)
        vectors = torch.nn.functional.normalize(torch.randn(count * (crops_each + captions), width), dim=1)
        boxes = rng.integers(0, 256, (count, crops_each, 4)).astype(np.int32)
        cut = count * crops_each
        groups.append(embedding_table(layout, vectors[:cut], boxes, vectors[cut:], [captions] * count))
    return write_sidecar_shard(folder / "embeddings.parquet", groups, layout.schema).bytes / rows


def measure(folder: Path, rows: int) -> dict[str, Any]:
    found: dict[str, Any] = {"images": [], "captions": [], "embeddings": []}
    sources = crops(rows)
    for size in SIZES:
        for quality in QUALITIES:
            images = image_bytes(sources, size, quality)
            jpeg = sum(map(len, images)) / rows
            stored, other = shard_bytes(folder, images)
            found["images"].append(
                {"size": size, "quality": quality, "jpeg_bytes": jpeg, "stored_bytes": stored, "other_bytes": other}
            )
            print(f"{size} px, quality {quality}: JPEG {jpeg:,.0f}, stored {stored:,.0f}, the rest {other:,.0f}")
    for each in (1, 3, 5):
        found["captions"].append({"captions": each, "bytes": caption_bytes(folder, rows, each)})
    settings: list[tuple[Numbers, int]] = [("bf16", 1), ("bf16", 5), ("bf16", 10), ("int8", 5), ("int8", 10)]
    for width in WIDTHS:
        for numbers, augmentations in settings:
            each = {"width": width, "numbers": numbers, "augmentations": augmentations, "captions": 4}
            size_bytes = embedding_bytes(folder, rows, width, numbers, augmentations, 4)
            found["embeddings"].append(each | {"bytes": size_bytes})
            print(f"{each}: {size_bytes:,.0f} bytes")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=AVAILABLE_PAIRS, help="images of CC12M that are still available")
    parser.add_argument("--report", type=Path, help="write the tables to this Markdown file")
    parser.add_argument("--out", type=Path, default=RESULT, metavar="FILE.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.rows)
    machine = {"processor": platform.machine(), "cores": os.cpu_count()}
    versions = {name: version(name) for name in ("pyarrow", "pillow", "simplejpeg", "torch")}
    setting = {"rows": options.rows, "pairs": options.pairs, "stated_image_bytes": STATED_IMAGE_BYTES}
    result = {"machine": machine, "commit": git_commit(), "versions": versions, **setting, **found}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    if options.report:
        from storage_report import report

        options.report.write_text(report(result))


if __name__ == "__main__":
    main()
