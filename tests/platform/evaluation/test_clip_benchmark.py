"""The metrics equal CLIP_benchmark's for the same open_clip model, on generated sets in its webdataset layout."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
import webdataset
from PIL import Image

from siclip.checkpoints.formats import load_model
from siclip.evaluation.classification import ClassEmbeddings
from siclip.evaluation.encoder import ClipEncoder
from siclip_platform.datasets.manifest import Manifest, write_manifest, write_shard
from siclip_platform.evaluation import evaluate_checkpoint
from siclip_platform.evaluation.find import find_sets
from siclip_platform.evaluation.measure import Subject
from siclip_platform.evaluation.models import open_model
from siclip_platform.evaluation.runner import run_suite

pytest.importorskip("clip_benchmark")

from clip_benchmark.datasets.builder import build_dataset, image_captions_collate_fn
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval

NAME = "siclip-test-evaluated"
CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
WORDS = ("cat", "dog", "red", "blue", "small", "large", "tree", "house", "sea", "boat", "night", "snow")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / f"{NAME}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder / f"{NAME}.json")
    torch.manual_seed(2)
    torch.save(open_clip.create_model(NAME).state_dict(), folder / "weights.pt")
    return f"open_clip:{NAME}:{folder / 'weights.pt'}"


def random_image(generator: np.random.Generator) -> bytes:
    """A PNG or JPEG that is larger than the model's input and not square, so that preprocessing changes it."""
    height, width = generator.integers(33, 60, 2)
    blocks = generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(blocks).resize((int(width), int(height))).save(file, generator.choice(["PNG", "JPEG"]))
    return file.getvalue()


def write_set(folder: Path, count: int, content: Callable[[int, np.random.Generator], dict[str, object]]) -> Path:
    """Two shards in webdataset layout."""
    (folder / "test").mkdir(parents=True)
    generator = np.random.default_rng(4)
    with webdataset.ShardWriter(str(folder / "test" / "%d.tar"), maxcount=count // 2, verbose=0) as sink:
        for index in range(count):
            image = random_image(generator)
            extension = "png" if image.startswith(b"\x89PNG") else "jpg"
            sink.write({"__key__": f"s{index:07d}", extension: image, **content(index, generator)})
    (folder / "test" / "nshards.txt").write_text("2\n")
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    classes = write_set(root / "classes", 120, lambda i, g: {"cls": int(g.integers(0, 9))})
    (classes / "classnames.txt").write_text("\n".join(WORDS) + "\n")
    (classes / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nart of the {c}.\n{c}\n")
    captions = write_set(
        root / "captions", 80, lambda i, g: {"txt": "\n".join(" ".join(g.choice(WORDS, 4)) for _ in range(5))}
    )
    (captions / "dataset_type.txt").write_text("retrieval\n")
    several = write_set(
        root / "several", 40, lambda i, g: {"npy": np.append(g.random(11) < 0.3, i == 0).astype(np.int64)}
    )
    (several / "dataset_type.txt").write_text("multilabel\n")
    for name in ("classnames.txt", "zeroshot_classification_templates.txt"):
        (several / name).write_text((classes / name).read_text())
    return root


def ours(model: str, data: Path, name: str) -> dict[str, float]:
    encoder = open_model(model, torch.device("cpu"))
    subject = Subject(encoder, ClassEmbeddings(encoder))
    result = run_suite([subject], find_sets(name, data), split="test", suite=False)
    return {metric: interval.value for metric, interval in result.sets[0].metrics[model].items()}


def theirs(model: str, folder: Path, retrieval: bool = False) -> dict[str, float]:
    path = model.removeprefix(f"open_clip:{NAME}:")
    network, _, transform = open_clip.create_model_and_transforms(NAME, pretrained=path)
    tokenizer = open_clip.get_tokenizer(NAME)
    task = "zeroshot_retrieval" if retrieval else "zeroshot_classification"
    dataset = build_dataset("wds/any", root=str(folder), transform=transform, split="test", download=False, task=task)
    batches = dataset.batched(16, collation_fn=image_captions_collate_fn) if retrieval else dataset.batched(16)
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    network.eval()
    found: dict[str, float]
    if retrieval:
        found = zeroshot_retrieval.evaluate(network, loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
    else:
        loader.dataset.classes = dataset.classes
        found = zeroshot_classification.evaluate(
            network, loader, tokenizer, dataset.classes, dataset.templates, "cpu", amp=False
        )
    return found


@pytest.mark.parametrize("name", ["classes", "captions", "several"])
def test_the_metrics_are_clip_benchmarks(model: str, sets: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # clip_benchmark calls float() on an array of one element, which numpy 2.4 no longer accepts
    monkeypatch.setattr(zeroshot_classification, "float", lambda array: np.asarray(array).item(), raising=False)
    expected = theirs(model, sets / name, retrieval=name == "captions")
    found = ours(model, sets, name)
    assert len(expected) == {"classes": 3, "captions": 6, "several": 1}[name]
    for metric, value in expected.items():
        assert found[metric] == pytest.approx(value, abs=1e-6), metric
        assert 0 < value < 1


@pytest.fixture(scope="module")
def dataset(sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples of the set with five captions each, as a dataset; every third sample has a synthetic one first."""
    folder = tmp_path_factory.mktemp("dataset")
    rows = []
    shards = [str(sets / "captions" / "test" / f"{index}.tar") for index in range(2)]
    for index, sample in enumerate(webdataset.WebDataset(shards, shardshuffle=False)):
        captions = [{"text": text, "source": "original"} for text in sample["txt"].decode().splitlines()]
        if index % 3 == 0:
            captions.insert(0, {"text": "a synthetic caption", "source": "synthetic", "model": "coca"})
        image = sample.get("png") or sample["jpg"]
        rows.append({"id": sample["__key__"], "image": image, "captions": captions, "meta": None, "category": None})
    entry = write_shard(table_of(rows), folder / "test-00000.parquet", 16)
    write_manifest(folder, Manifest(name="captions", version="1", recipe={}, splits={"test": [entry]}))
    return folder


def table_of(rows: list[dict[str, object]]) -> pa.Table:
    from siclip_platform.datasets.schema import SCHEMA

    sizes = [Image.open(io.BytesIO(row["image"])).size for row in rows]  # type: ignore[arg-type]
    whole = [row | {"width": width, "height": height} for row, (width, height) in zip(rows, sizes, strict=True)]
    return pa.Table.from_pylist([{name: row.get(name) for name in SCHEMA.names} for row in whole], SCHEMA)


def test_all_captions_of_a_dataset_count_as_in_clip_benchmark(model: str, sets: Path, dataset: Path) -> None:
    expected = theirs(model, sets / "captions", retrieval=True)
    encoder = open_model(model, torch.device("cpu"))
    result = run_suite(
        [Subject(encoder, ClassEmbeddings(encoder))], find_sets(None, dataset), split="test", suite=False
    )
    assert (result.sets[0].units, result.sets[0].captions) == (80, 400)
    found = result.sets[0].metrics[model]
    for metric, value in expected.items():
        assert found[metric].value == pytest.approx(value, abs=1e-6), metric


def test_training_and_the_plain_command_count_all_captions_too(nano_teacher: Path, dataset: Path) -> None:
    encoder = ClipEncoder(load_model(nano_teacher), "nano", torch.device("cpu"))
    result = run_suite(
        [Subject(encoder, ClassEmbeddings(encoder))], find_sets(None, dataset), split="test", suite=False
    )
    found = result.sets[0].metrics["nano"]
    metrics = evaluate_checkpoint(nano_teacher, dataset, "test")
    assert len(metrics) == 7
    for metric, value in metrics.items():
        assert found[metric.removeprefix("test/")].value == pytest.approx(value, abs=1e-6), metric
