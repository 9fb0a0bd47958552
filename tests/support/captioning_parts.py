"""A small CoCa fitted to images of coloured shapes."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from siclip_platform.datasets.derived.captions.config import CaptionConfig
from siclip_platform.datasets.manifest import Manifest, ShardEntry, open_dataset, write_manifest, write_shard
from siclip_platform.datasets.schema import SCHEMA
from siclip_platform.datasets.sidecar import (
    CAPTIONS_SCHEMA,
    SidecarManifest,
    write_sidecar_manifest,
    write_sidecar_shard,
)

COLOURS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 70, 220), "yellow": (230, 210, 50)}
SIDE = 32
CONTEXT = 10
TEXT = {"context_length": CONTEXT, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
NANO_COCA: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {
        **{"image_size": SIDE, "patch_size": 8, "layers": 2, "width": 64, "head_width": 32, "output_tokens": True},
        **{"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 16},
    },
    "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2},
    "custom_text": True,
}
FITTING = 120  # steps


def shape(rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Return an image (SIDE, SIDE, 3) uint8 of a coloured shape on noise, and its caption."""
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    kind = ("square", "disc")[rng.integers(2)]
    image = np.clip(rng.integers(90, 150) + rng.normal(0, 8, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
    radius = rng.integers(6, 11)
    y, x = rng.integers(radius, SIDE - radius, 2)
    down, right = np.mgrid[:SIDE, :SIDE] - np.array([y, x])[:, None, None]
    square = (abs(down) <= radius) & (abs(right) <= radius)
    image[square if kind == "square" else down**2 + right**2 <= radius**2] = COLOURS[colour]
    return image, f"a photo of a {colour} {kind}."


def fitted_coca(folder: Path, steps: int = FITTING) -> CaptionConfig:
    """Fit a CoCa to shapes with its captioning loss, and return the settings that open it.

    Only the tokens that occur are fitted; all others get a constant logit of -30.
    """
    # One thread: more are slower with such small layers, and rounding would depend on the load of the machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _fitted(folder, steps)
    finally:
        torch.set_num_threads(threads)


def _fitted(folder: Path, steps: int) -> CaptionConfig:
    config = folder / "coca_nano.json"
    config.write_text(json.dumps(NANO_COCA))
    open_clip.add_model_config(config)
    torch.manual_seed(0)
    model: Any = open_clip.create_model("coca_nano")
    # open_clip 3.3 leaves this parameter as torch.empty returns it: whatever was in the memory.
    torch.nn.init.zeros_(model.text_decoder.text_projection)
    rng = np.random.default_rng(0)
    shapes = [shape(rng) for _ in range(400)]
    transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    images = torch.stack([transform(Image.fromarray(image)) for image, _ in shapes])
    tokens = open_clip.get_tokenizer("coca_nano")([text for _, text in shapes])
    used = tokens.unique()
    labels_of = torch.full((49408,), -100)  # -100: ignored by the loss
    labels_of[used] = torch.arange(len(used))
    labels_of[0] = -100  # padding
    decoder, full = model.text_decoder, model.text_decoder.text_projection.detach().clone()
    small = torch.nn.Parameter(full[:, used].clone())
    decoder.text_projection = small
    model.text.token_embedding.weight.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 2e-3)
    for _ in range(steps):
        _set_first_to_one(decoder)
        rows = torch.from_numpy(rng.integers(0, len(shapes), 32))
        out = model(images[rows], tokens[rows])
        labels = labels_of[out["labels"]].flatten()
        loss = torch.nn.functional.cross_entropy(out["logits"].flatten(0, 1), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Fewer steps are for tests that do not depend on the captions.
    fits = steps < FITTING or loss.item() < 0.15
    assert fits, f"the CoCa was not fitted: loss {loss.item():.2f} after {steps} steps"
    _set_first_to_one(decoder)
    full.zero_()
    full[0] = -30
    full[:, used] = small.detach()
    decoder.text_projection = torch.nn.Parameter(full)
    torch.save(model.state_dict(), folder / "coca_nano.pt")
    return CaptionConfig(
        model=str(config),
        pretrained=str(folder / "coca_nano.pt"),
        per_image=2,
        sampling={"max_tokens": CONTEXT - 2},
        batch_size=8,
        rules={"near_equal": 1},
    )


def _set_first_to_one(decoder: Any) -> None:
    """Make the first input of the last layer a constant 1, whose weight then sets the logit of an unused token."""
    with torch.no_grad():
        decoder.ln_final.weight[0] = 0
        decoder.ln_final.bias[0] = 1


def shapes_dataset(folder: Path, shards: int = 3, rows: int = 10, seed: int = 1) -> list[str]:
    """Write a dataset of shapes whose own captions do not describe them; return the true captions in order."""
    rng = np.random.default_rng(seed)
    truth: list[str] = []
    entries: list[ShardEntry] = []
    folder.mkdir(parents=True)
    for number in range(shards):
        samples = []
        for index in range(rows):
            image, text = shape(rng)
            truth.append(text)
            samples.append(_row(f"{number:02d}{index:03d}", image))
        table = pa.Table.from_pylist(samples, SCHEMA)
        entries.append(write_shard(table, folder / f"train-{number:05d}.parquet", row_group_size=6))
    write_manifest(folder, Manifest(name="shapes", version="1", recipe={"seed": seed}, splits={"train": entries}))
    return truth


def write_caption_set(folder: Path, name: str, texts: Sequence[Sequence[str]]) -> None:
    """Write a caption set beside the dataset of `shapes_dataset`.

    Args:
        folder: of the dataset.
        name: of the set.
        texts: of each row, in order.
    """
    dataset, entries, first = open_dataset(folder), [], 0
    for entry, groups in zip(dataset.entries("train"), dataset.groups("train"), strict=True):
        tables = []
        for rows in groups:
            captions = [
                [{"text": text, "source": "synthetic", "model": "m"} for text in row]
                for row in texts[first : first + rows]
            ]
            tables.append(pa.Table.from_pylist([{"captions": row} for row in captions], CAPTIONS_SCHEMA))
            first += rows
        target = folder / "captions" / name / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        entries.append(write_sidecar_shard(target, tables, CAPTIONS_SCHEMA))
    manifest = SidecarManifest(
        kind="captions", name=name, version="1", dataset=dataset.hash, recipe={}, splits={"train": entries}
    )
    write_sidecar_manifest(folder / "captions" / name, manifest)


def _row(name: str, image: np.ndarray) -> dict[str, Any]:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    captions = [{"text": f"picture {name}", "source": "original", "model": None}]
    sizes = {"width": SIDE, "height": SIDE, "category": None, "meta": None}
    return {"id": name, "image": data.getvalue(), "captions": captions, **sizes}
