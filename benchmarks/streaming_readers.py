"""The contenders of `streaming.py`: the same images in each format, and an iterator of batches for each reader."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SIZE, CONTEXT, SHARD_ROWS, GROUP_ROWS = 256, 77, 1000, 100
WORKERS = 2
FIELDS = ("images", "tokens", "image_ids", "caption_ids")
PEERS = ("torch DataLoader", "webdataset", "LitData")


def jpeg(number: int) -> bytes:
    """A JPEG with detail at every scale, like a photograph."""
    from PIL import Image

    generator = np.random.default_rng(number)
    pixels = np.zeros((SIZE, SIZE, 3))
    for cells in (4, 16, 64, 256):
        coarse = generator.normal(size=(cells, cells, 3)).astype(np.float32)
        layers = [Image.fromarray(coarse[..., c]).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for c in range(3)]
        pixels += np.stack([np.asarray(layer) for layer in layers], axis=2) * 48 / cells**0.45
    file = io.BytesIO()
    Image.fromarray(np.uint8(np.clip(pixels + 128, 0, 255))).save(file, "JPEG", quality=90)
    return file.getvalue()


ADJECTIVES = ("small", "big", "yellow", "red", "old")
NOUNS = ("dog", "cat", "house", "boat", "tree", "street")
WORDS = (*ADJECTIVES, *NOUNS, "near", "above", "two")


def captions(number: int) -> list[str]:
    generator = np.random.default_rng([number, 1])
    return [" ".join(generator.choice(WORDS, 12)) + f" {number}" for _ in range(2)]


def build(root: Path, images: int) -> None:
    """Write the images in every format: 1,000 different ones, repeated, each time with other captions."""
    import pyarrow as pa

    from siclip_platform.datasets.manifest import Manifest, write_manifest, write_shard
    from siclip_platform.datasets.schema import SCHEMA

    if (root / "done").exists():
        return
    for name in ("parquet", "tar", "litdata"):
        (root / name).mkdir(parents=True, exist_ok=True)
    encoded = [jpeg(i) for i in range(min(images, 1000))]
    entries = []
    for shard, start in enumerate(range(0, images, SHARD_ROWS)):
        numbers = range(start, min(start + SHARD_ROWS, images))
        rows = []
        with tarfile.open(root / "tar" / f"{shard:05d}.tar", "w") as tar:
            for number in numbers:
                data, (text, other) = encoded[number % len(encoded)], captions(number)
                pair = [
                    {"text": text, "source": "original", "model": None},
                    {"text": other, "source": "synthetic", "model": "m"},
                ]
                sizes = {"width": SIZE, "height": SIZE, "category": None, "meta": None}
                rows.append({"id": f"{number:08d}", "image": data, "captions": pair, **sizes})
                for suffix, payload in (("jpg", data), ("json", json.dumps(pair).encode())):
                    member = tarfile.TarInfo(f"{number:08d}.{suffix}")
                    member.size = len(payload)
                    tar.addfile(member, io.BytesIO(payload))
        table = pa.Table.from_pylist(rows, SCHEMA)
        entries.append(write_shard(table, root / "parquet" / f"train-{shard:05d}.parquet", GROUP_ROWS))
    manifest = Manifest(
        name="benchmark", version="1", recipe={}, splits={"train": entries, "validation": entries[:1]}
    )
    write_manifest(root / "parquet", manifest)
    _litdata_chunks(root, images, encoded)
    (root / "done").touch()


def _litdata_chunks(root: Path, images: int, encoded: list[bytes]) -> None:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(root / "litdata"), chunk_bytes="16MB")
    for number in range(images):
        pair = json.dumps([{"text": text} for text in captions(number)])
        writer.add_item(number, {"image": encoded[number % len(encoded)], "captions": pair, "id": f"{number:08d}"})
    writer.done()
    writer.merge(num_workers=1)


def sample(data: bytes, texts: list[str], identity: str, augment: bool) -> dict[str, Any]:
    """The work of every peer per sample; our stream does the same in `Stream.columns`."""
    from siclip.data.augment import load_pixels
    from siclip.data.captions import stable_id, uniform
    from siclip.tokenizer import tokenize

    text = texts[int(uniform(0, 0, identity) * len(texts))]
    pixels = load_pixels(data, identity, SIZE, _augmentation(augment), (0, 0, identity))
    numbers = {"image_ids": stable_id(identity), "caption_ids": stable_id(text)}
    return {"images": pixels, "tokens": tokenize([text], CONTEXT)[0].numpy(), **numbers}


def _augmentation(augment: bool) -> Any:
    from siclip.data.config import AugmentConfig

    return AugmentConfig(crop_scale=0.5, jitter=0.2) if augment else AugmentConfig()


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(np.stack([s[name] for s in samples])) for name in FIELDS}


def ours(root: Path, batch: int, augment: bool, reader: str) -> Iterator[Any]:
    from siclip.models import model_config
    from siclip_platform.recipes.digits import digits_teacher
    from siclip_platform.stream import Stream, thread_batches
    from siclip_platform.stream.ray_reader import ray_batches

    recipe = digits_teacher(root / "parquet").updated(
        {
            "data.window_row_groups": 8,
            "data.concurrent_reads": WORKERS,
            "data.augment": _augmentation(augment).model_dump(),
        }
    )
    stream = Stream.of(recipe, model_config("mobileclip-s0"))
    images = stream.rows // batch * batch
    return (thread_batches if reader == "threads" else ray_batches)(stream, batch, 0, images)


def data_loader(root: Path, batch: int, augment: bool) -> Iterator[Any]:
    """Shuffled row groups of the same Parquet files as an iterable dataset, with rows shuffled within each group."""
    import pyarrow.parquet as pq
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info

    class Rows(IterableDataset[dict[str, Any]]):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            info = get_worker_info()
            shards = sorted((root / "parquet").glob("train-*"))
            groups = [(s, g) for s in shards for g in range(pq.read_metadata(s).num_row_groups)]
            order = np.random.default_rng(0).permutation(len(groups))[info.id :: info.num_workers]
            for index in order:
                shard, group = groups[index]
                table = pq.ParquetFile(shard).read_row_group(group, columns=["id", "image", "captions"])
                rows = table.to_pylist()
                for i in np.random.default_rng([0, index]).permutation(len(rows)):
                    row = rows[i]
                    yield sample(row["image"], [c["text"] for c in row["captions"]], row["id"], augment)

    return iter(DataLoader(Rows(), batch_size=batch, num_workers=WORKERS, collate_fn=collate, drop_last=True))


def webdataset(root: Path, batch: int, augment: bool) -> Iterator[Any]:
    import webdataset as wds

    shards = sorted(str(path) for path in (root / "tar").glob("*.tar"))

    def made(item: dict[str, Any]) -> dict[str, Any]:
        texts = [caption["text"] for caption in json.loads(item["json"])]
        return sample(item["jpg"], texts, item["__key__"], augment)

    data = wds.WebDataset(shards, shardshuffle=len(shards), seed=0).shuffle(800).map(made)
    data = data.batched(batch, collation_fn=collate, partial=False)
    return iter(wds.WebLoader(data, batch_size=None, num_workers=WORKERS))


def litdata(root: Path, batch: int, augment: bool) -> Iterator[Any]:
    import litdata

    class Samples(litdata.StreamingDataset):
        def __getitem__(self, index: Any) -> dict[str, Any]:
            item = super().__getitem__(index)
            texts = [caption["text"] for caption in json.loads(item["captions"])]
            return sample(item["image"], texts, item["id"], augment)

    data = Samples(str(root / "litdata"), shuffle=True, seed=0)
    loader = litdata.StreamingDataLoader(
        data, batch_size=batch, num_workers=WORKERS, collate_fn=collate, drop_last=True
    )
    return iter(loader)


CONTENDERS: dict[str, Callable[[Path, int, bool], Iterator[Any]]] = {
    "ours, threads": lambda root, batch, augment: ours(root, batch, augment, "threads"),
    "ours, Ray Data": lambda root, batch, augment: ours(root, batch, augment, "ray"),
    "torch DataLoader": data_loader,
    "webdataset": webdataset,
    "LitData": litdata,
}
