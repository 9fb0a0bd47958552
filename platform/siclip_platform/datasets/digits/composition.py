"""Digit scenes as rows and tables: positions, pixels, captions and meta. Pure functions without Ray or files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import simplejpeg
from pydantic import Field

from siclip.config import Config
from siclip_platform.datasets.digits.glyphs import coverage, split_instances
from siclip_platform.datasets.digits.scenes import (
    ALL_COMBINATIONS,
    COLOURS,
    Combination,
    Scene,
    distinct_scenes,
    held_out_combinations,
    negatives,
    random_stream,
)
from siclip_platform.datasets.schema import ORIGINAL, SCHEMA, SYNTHETIC

SPLITS = ("train", "validation", "test")
SIDE_SHARE = {"small": 0.27, "big": 0.46}  # of the image's side
GAP = 2  # minimum distance of the two boxes, in pixels
MISALIGNMENT = 0.1  # of the image's side; maximum distance of the centres across the relation's axis


class DigitScenesConfig(Config):
    """Number of scenes per split, and how they are drawn and stored."""

    train_scenes: int = Field(12_000, ge=1, le=100_000_000)
    validation_scenes: int = Field(500, ge=1, le=10_000)
    test_scenes: int = Field(1_000, ge=1, le=10_000)
    image_size: int = Field(64, ge=32, le=4096)
    shard_rows: int = Field(2_000, ge=1, le=10_000_000)
    row_group_rows: int = Field(250, ge=1, le=1_000_000)
    seed: int = Field(0, ge=0, lt=2**32)
    jpeg_quality: int = Field(95, ge=1, le=100)

    def scenes(self, split: str) -> int:
        return {"train": self.train_scenes, "validation": self.validation_scenes, "test": self.test_scenes}[split]


@dataclass(frozen=True)
class ShardSpec:
    """Shard ``index`` of a split, with the scenes ``start`` ≤ k < ``stop``."""

    config: DigitScenesConfig
    split: str
    index: int
    start: int
    stop: int

    @property
    def file_name(self) -> str:
        return f"{self.split}-{self.index:05d}.parquet"


def shard_specs(config: DigitScenesConfig) -> list[ShardSpec]:
    return [
        ShardSpec(config, split, index, start, min(start + config.shard_rows, config.scenes(split)))
        for split in SPLITS
        for index, start in enumerate(range(0, config.scenes(split), config.shard_rows))
    ]


def compose_shard(spec: ShardSpec) -> pa.Table:
    """Return the scenes of a shard, in order."""
    rows = [compose_scene(spec.config, spec.split, number) for number in range(spec.start, spec.stop)]
    return pa.Table.from_pylist(rows, SCHEMA)


def compose_scene(config: DigitScenesConfig, split: str, number: int) -> dict[str, Any]:
    """Return one row of `SCHEMA`; ``meta`` has the attributes, ``held_out`` and, outside train, ``negatives``."""
    rng = random_stream(config.seed, f"{split} scene", number)
    scene = _describe(config.seed, split, number, rng)
    boxes = _boxes(scene, config.image_size, rng)
    instances = [int(rng.choice(split_instances(config.seed)[split][thing.digit])) for thing in scene.things]
    background = int(rng.integers(8, 49))
    image = _draw(scene, boxes, instances, background, config.image_size)
    meta: dict[str, Any] = {
        "relation": scene.relation,
        "things": [
            {"digit": thing.digit, "colour": thing.colour, "size": thing.size, "instance": instance, "box": box}
            for thing, instance, box in zip(scene.things, instances, boxes, strict=True)
        ],
        "background": background,
        "held_out": scene.contains(held_out_combinations(config.seed)),
    }
    if split != "train":
        meta["negatives"] = negatives(scene, rng, _combinations(config.seed, split))
    captions = [{"text": scene.caption, "source": ORIGINAL, "model": None}]
    captions += [{"text": text, "source": SYNTHETIC, "model": "template"} for text in scene.paraphrases]
    return {
        "id": f"{split}-{number:06d}",
        # 4:4:4 keeps the colours of thin strokes, which the captions name.
        "image": simplejpeg.encode_jpeg(image, quality=config.jpeg_quality, colorsubsampling="444"),
        "width": config.image_size,
        "height": config.image_size,
        "captions": captions,
        "category": f"{scene.first.digit}-{scene.second.digit}",
        "meta": json.dumps(meta, separators=(",", ":")),
    }


def _combinations(seed: int, split: str) -> frozenset[Combination]:
    """Return the combinations of a split: all in test, only those that are not held out in the others."""
    return ALL_COMBINATIONS if split == "test" else ALL_COMBINATIONS - held_out_combinations(seed)


@cache
def _order(seed: int, split: str) -> npt.NDArray[np.int64]:
    count = len(distinct_scenes(_combinations(seed, split)))
    return random_stream(seed, f"{split} order").permutation(count)


def _describe(seed: int, split: str, number: int, rng: np.random.Generator) -> Scene:
    """Validation and test use each distinct scene at most once; train draws with replacement."""
    scenes = distinct_scenes(_combinations(seed, split))
    # A permutation, because draws without replacement must not depend on earlier scenes.
    index = rng.integers(len(scenes)) if split == "train" else _order(seed, split)[number]
    scene = scenes[index]
    return scene.inverse if rng.integers(2) else scene


def _boxes(scene: Scene, image_size: int, rng: np.random.Generator) -> list[list[int]]:
    """Return boxes [x, y, side] of first and second: apart along the relation's axis, nearly aligned on the other."""
    sides = [round(image_size * SIDE_SHARE[thing.size]) for thing in scene.things]
    low, high = (0, 1) if scene.relation in ("left of", "above") else (1, 0)
    slack = image_size - sum(sides) - GAP
    # Two sorted draws share the free length into the space before, between and after the boxes.
    before, upto = np.sort(rng.integers(0, slack + 1, size=2))
    along = [0, 0]
    along[low] = int(before)
    along[high] = int(upto) + sides[low] + GAP

    reach = MISALIGNMENT * image_size / 2
    margin = max(sides) / 2
    centre = rng.uniform(margin, image_size - margin)
    shift = rng.uniform(-reach, reach)
    across = [
        int(np.clip(round(centre + sign * shift - side / 2), 0, image_size - side))
        for sign, side in zip((1, -1), sides, strict=True)
    ]
    horizontal = scene.relation in ("left of", "right of")
    return [[a, c, side] if horizontal else [c, a, side] for a, c, side in zip(along, across, sides, strict=True)]


def _draw(
    scene: Scene, boxes: list[list[int]], instances: list[int], background: int, image_size: int
) -> npt.NDArray[np.uint8]:
    """Return RGB pixels (image_size, image_size, 3)."""
    canvas = np.full((image_size, image_size, 3), background, dtype=np.float32)
    for thing, (x, y, side), instance in zip(scene.things, boxes, instances, strict=True):
        mask = coverage(instance, side)[:, :, None]
        area = canvas[y : y + side, x : x + side]
        area += mask * (np.array(COLOURS[thing.colour], dtype=np.float32) - area)
    return np.rint(canvas).astype(np.uint8)
