"""A source of tar shards as img2dataset writes them, recipes for it, and rehearsals of both."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from captioning_parts import shape
from import_parts import add_member
from PIL import Image

from siclip_platform.datasets.importing.parts import ImportConfig
from siclip_platform.datasets.importing.sources.columns import ColumnNames
from siclip_platform.datasets.importing.sources.find import find_source
from siclip_platform.recipes.recipe import Recipe, parse_recipe
from siclip_platform.rehearsal.job import Rehearsal
from siclip_platform.rehearsal.sample import count_rows, sample_of, small_import


def write_shards(folder: Path, shards: int, rows: int, side: int = 64) -> Path:
    """Write tar files of coloured shapes with unique captions and img2dataset's metadata."""
    import tarfile

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for row in range(rows):
                pixels, text = shape(rng)
                image = io.BytesIO()
                Image.fromarray(pixels).resize((side, side)).save(image, "JPEG")
                key = f"{shard:05d}{row:04d}"
                add_member(tar, f"{key}.jpg", image.getvalue())
                add_member(tar, f"{key}.txt", f"{text} {key}".encode())
                add_member(tar, f"{key}.json", json.dumps({"key": key, "status": "success"}).encode())
    return folder


def nano_recipe(data: Path, teacher: Path | None, **values: Any) -> Recipe:
    """siclip-nano with WIKD; ``values`` by dotted path, with ``__`` for the dots."""
    tree = {
        "data": {"path": str(data)},
        "model": {"name": "siclip-nano", "image_sharing": "qk:0-0", "text_sharing": "qk:0-0-1-1"},
        "teacher": str(teacher) if teacher else None,
        "training": {"steps": 1000, "batch_size": 256, "precision": "fp32", "warmup_steps": 10},
    }
    return parse_recipe(tree, "nano").updated({name.replace("__", "."): value for name, value in values.items()})


def rehearsal_of(source: Path, recipe: Recipe, folder: Path, rows: int = 40, **values: Any) -> Rehearsal:
    """A rehearsal of a source without splits."""
    found = find_source(str(source), None, ColumnNames(), 10_000)
    sample = sample_of(found, rows)
    importing = small_import(ImportConfig(validation_share=0.1), sample)
    named = {"recipe": recipe, "named": "nano.yaml", "sources": (str(source),), "folder": folder}
    return Rehearsal(**named, sample=sample, importing=importing, whole_rows=count_rows(found), **values)
