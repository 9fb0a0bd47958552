"""DataCompDR's shards become images, a caption set and an embedding set; training sees what the teachers saw."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from import_parts import add_member
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import _apply_op
from typer.testing import CliRunner

from siclip.data.captions import stable_id
from siclip.data.images import decode_image
from siclip.errors import UserError
from siclip.models.registry import model_config
from siclip.training.loop import Save
from siclip_platform.cli import app
from siclip_platform.cli.data.import_options import ImportOptions
from siclip_platform.datasets.derived.stage import Pool
from siclip_platform.datasets.importing import ingest
from siclip_platform.datasets.importing.ingest import Imported, import_dataset
from siclip_platform.datasets.importing.sources.reinforced import reinforcement_of
from siclip_platform.datasets.importing.sources.sample import Rejection
from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.datasets.sidecar import open_sidecar
from siclip_platform.datasets.tools.verify import verify_dataset
from siclip_platform.recipes.digits import digits_student
from siclip_platform.rehearsal.job import Rehearsal
from siclip_platform.rehearsal.preparation import check_recipe, import_rows
from siclip_platform.rehearsal.sample import count_rows, sample_of, small_import
from siclip_platform.rehearsal.stages import stages
from siclip_platform.stream.stream import Stream
from siclip_platform.stream.threads import thread_batches
from siclip_platform.training.in_process import run_recipe

CROPS, WIDTHS = 3, (8, 4)
# The order in which ml-mobileclip numbers torchvision's operations.
NAMES = ["Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"]
NAMES += ["Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"]
MAGNITUDES = [0.0, 0.27, -0.09, 40.5, -61.0, 27.0, -0.5, 0.81, 0.3, -0.6, 5.0, 178.5, 0.0, 0.0]
TINY = {
    "vision_cfg": {"image_size": 48, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Two models of open_clip whose embeddings have the widths of the shards."""
    folder = tmp_path_factory.mktemp("models")
    for width in WIDTHS:
        (folder / f"tiny_dr_{width}.json").write_text(json.dumps({"embed_dim": width, **TINY}))
        open_clip.add_model_config(folder / f"tiny_dr_{width}.json")
    return tuple(f"open_clip:tiny_dr_{width}:tag" for width in WIDTHS)


def size(number: int) -> tuple[int, int]:
    """(width, height); every third image is larger than the stored size."""
    return (420, 300) if number % 3 == 0 else (90 + number, 80)


def sample(number: int, rng: np.random.Generator, *, packed: str = "npz") -> dict[str, bytes]:
    """Extension → content, as the dataset card, hf_dataset_example.py and ml-mobileclip-dr's TarWriter have them."""
    width, height = size(number)
    pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR).save(image, "JPEG", quality=92)
    boxes = []
    for _ in range(CROPS):
        high, wide = int(rng.integers(20, height + 1)), int(rng.integers(20, width + 1))
        boxes.append([int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1)), high, wide])
    operations: list[Any] = [
        [[op, MAGNITUDES[op]] for op in (int(rng.integers(14)), int(rng.integers(14)))] for _ in range(CROPS)
    ]
    operations[0] = None if number % 4 == 0 else operations[0]
    augmentations = [[box, each] for box, each in zip(boxes, operations, strict=True)]
    syn = [f"synthetic {k} of {number}" for k in range(number % 3 + 1)]
    if number % 5 == 0:
        syn.insert(0, " ")
    # Each teacher's embeddings have unit length by themselves; two of them stand side by side.
    arrays = {
        "image_emb": np.concatenate([unit(rng, CROPS, each) for each in WIDTHS], axis=1),
        "text_emb": np.concatenate([unit(rng, 1 + len(syn), each) for each in WIDTHS], axis=1),
    }
    files = {
        "jpg": image.getvalue(),
        "json": json.dumps({"uid": f"{number:032x}", "sha256": f"{number:064x}"}).encode(),
        # The card shows the text of JSON, ml-mobileclip's loader reads the list itself.
        "paug.json": json.dumps({"param_aug": json.dumps(augmentations) if number % 2 else augmentations}).encode(),
        "syn.json": json.dumps({"syn_text": syn}).encode(),
        "txt": f"caption of {number}".encode(),
        "url.txt": f"http://images.example.org/{number}.jpg".encode(),
    }
    buffer = io.BytesIO()
    if packed == "npz":
        np.savez_compressed(buffer, **arrays)
    else:
        torch.save({name: torch.from_numpy(array).bfloat16() for name, array in arrays.items()}, buffer)
    return files | {packed: buffer.getvalue() if packed == "npz" else gzip.compress(buffer.getvalue())}


def unit(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    vectors = rng.normal(size=(rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write(path: Path, samples: Mapping[int, Mapping[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, files in samples.items():
            for extension, data in sorted(files.items()):
                add_member(tar, f"{number:032x}.{extension}", data)


@pytest.fixture(scope="module")
def samples() -> dict[int, dict[str, bytes]]:
    rng = np.random.default_rng(0)
    return {number: sample(number, rng, packed="npz" if number < 14 else "pth.gz") for number in range(28)}


def import_shards(source: Path, folder: Path, **options: Any) -> Imported:
    found, config = ImportOptions(row_group_rows=4, **options).find([str(source)])
    assert found.layout == "datacompdr" and config.beside is not None
    return import_dataset(found, folder, config, max_bad_share=1, pool=Pool(here=True))


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, samples: dict[int, dict[str, bytes]], teachers: tuple[str, ...]
) -> Path:
    root = tmp_path_factory.mktemp("dr")
    write(root / "in/00000000.tar", {number: samples[number] for number in range(14)})
    # Sample 3 occurs again under another name: a duplicate image, for the second stage.
    write(root / "in/00000001.tar", {**{number: samples[number] for number in range(14, 28)}, 99: samples[3]})
    options = {"validation_share": 0.3, "drop_duplicates": True, "shard_rows": 9, "embedded_by": list(teachers)}
    done = import_shards(root / "in", root / "data", **options)
    assert (done.read, done.rejected) == (29, {"duplicate image": 1})
    return root / "data"


def rows_of(folder: Path, *, width: int = sum(WIDTHS)) -> dict[int, dict[str, Any]]:
    """Number → row with what is beside it, read with pyarrow alone."""
    found: dict[int, dict[str, Any]] = {}
    dataset = open_dataset(folder)
    for split in dataset.split_names:
        for shard in dataset.shards(split):
            beside = [pq.read_table(folder / kind / "datacompdr" / shard.name) for kind in ("captions", "embeddings")]
            tables = (
                pq.read_table(shard),
                beside[0].rename_columns(["synthetic"]),
                beside[1].rename_columns([f"embedded_{name}" for name in beside[1].column_names]),
            )
            for parts in zip(*(table.to_pylist() for table in tables), strict=True):
                row = parts[0] | parts[1] | parts[2]
                found[int(row["id"], 16)] = row | {"split": split}
    for row in found.values():
        row["image_vectors"] = np.frombuffer(row["embedded_image"], ml_dtypes.bfloat16).astype(np.float32)
        row["image_vectors"] = row["image_vectors"].reshape(-1, width)
        row["text_vectors"] = np.stack([np.frombuffer(v, ml_dtypes.bfloat16) for v in row["embedded_text"]])
    return found


def arrays_of(files: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    if "npz" in files:
        return dict(np.load(io.BytesIO(files["npz"])))
    tensors = torch.load(io.BytesIO(gzip.decompress(files["pth.gz"])))
    return {name: tensor.float().numpy() for name, tensor in tensors.items()}


def test_images_captions_and_embeddings_are_those_of_the_shards(
    folder: Path, samples: dict[int, dict[str, bytes]]
) -> None:
    found = rows_of(folder)
    assert sorted(found) == list(range(28))
    assert {row["split"] for row in found.values()} == {"train", "validation"}
    dataset = open_dataset(folder)
    for kind in ("captions", "embeddings"):
        open_sidecar(dataset, kind, "datacompdr")  # type: ignore[arg-type]
    for number, row in found.items():
        files = samples[number]
        syn = json.loads(files["syn.json"])["syn_text"]
        kept = [k for k, text in enumerate(syn) if text.strip()]
        assert [c["text"] for c in row["captions"]] == [f"caption of {number}"]
        assert [c["text"] for c in row["synthetic"]] == [syn[k] for k in kept]
        assert {(c["source"], c["model"]) for c in row["synthetic"]} == {("synthetic", "datacompdr")}
        assert json.loads(row["meta"])["url"] == f"http://images.example.org/{number}.jpg"
        arrays = arrays_of(files)
        expected = arrays["text_emb"][[0, *(1 + k for k in kept)]] / np.sqrt(2)
        np.testing.assert_allclose(row["text_vectors"].astype(np.float32), expected, rtol=2**-7, atol=1e-6)
        np.testing.assert_allclose(row["image_vectors"], arrays["image_emb"] / np.sqrt(2), rtol=2**-7, atol=1e-6)
        # Boxes in pixels of the stored image: 300 × 420 became 256 × 358.
        width, height = size(number)
        scale = min(1.0, 256 / min(width, height))
        augmentations = json.loads(files["paug.json"])["param_aug"]
        augmentations = json.loads(augmentations) if isinstance(augmentations, str) else augmentations
        boxes = np.array(row["embedded_boxes"]).reshape(CROPS, 4)
        for (top, left, high, wide), (box, _) in zip(boxes, augmentations, strict=True):
            edges = np.array([box[0], box[1], box[0] + box[2], box[1] + box[3]]) * scale
            # Half a pixel for rounding; sides are themselves rounded to whole pixels.
            assert abs(edges - [top, left, top + high, left + wide]).max() <= (0.0 if scale == 1 else 0.9)


def test_training_sees_the_crops_and_the_operations_that_the_teachers_saw(
    folder: Path, samples: dict[int, dict[str, bytes]]
) -> None:
    known = {stable_id(row["id"]): row for row in rows_of(folder).values() if row["split"] == "train"}
    recipe = digits_student(folder).updated(
        {
            "data.captions": ["datacompdr"],
            "data.teacher_embeddings": "datacompdr",
            "data.window_row_groups": 2,
            "data.scaled_decode": False,
        }
    )
    stream = Stream.of(recipe, model_config("siclip-nano"))
    crops, seen = set(), set()
    for batch in thread_batches(stream, 8, 0, 4 * len(known)):
        assert batch.teacher_image is not None and batch.teacher_text is not None
        for index, sample_id in enumerate(batch.image_ids.tolist()):
            row = known[sample_id]
            crop = int(abs(row["image_vectors"] - batch.teacher_image[index].numpy()).max(axis=1).argmin())
            crops.add(crop)
            texts = [c["text"] for c in (*row["captions"], *row["synthetic"])]
            caption = next(k for k, text in enumerate(texts) if stable_id(text) == int(batch.caption_ids[index]))
            np.testing.assert_array_equal(
                batch.teacher_text[index].numpy(), row["text_vectors"][caption].astype(np.float32)
            )
            # Replayed by torchvision alone, at the student's size.
            top, left, high, wide = np.array(row["embedded_boxes"]).reshape(CROPS, 4)[crop].tolist()
            image = Image.fromarray(decode_image(row["image"])).crop((left, top, left + wide, top + high))
            image = image.resize((64, 64), Image.Resampling.BILINEAR)
            augmentations = json.loads(samples[int(row["id"], 16)]["paug.json"])["param_aug"]
            augmentations = json.loads(augmentations) if isinstance(augmentations, str) else augmentations
            for op, magnitude in augmentations[crop][1] or ():
                moved = magnitude * 64 / 224 if NAMES[op].startswith("Translate") else magnitude
                image = _apply_op(image, NAMES[op], moved, InterpolationMode.NEAREST, None)
                seen.add(op)
            assert np.array_equal(np.asarray(image), batch.images[index].numpy()), augmentations[crop]
    assert len(crops) == CROPS and len(seen) > 10


def test_an_import_that_is_stopped_anywhere_resumes_to_the_same_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, teachers: tuple[str, ...]
) -> None:
    options = {"validation_share": 0.3, "drop_duplicates": True, "shard_rows": 9, "embedded_by": list(teachers)}
    source = folder.parent / "in"
    for name in ("change_shard", "write_sidecar_manifest", "write_manifest"):
        whole = getattr(ingest, name)
        calls: list[int] = []

        def stops(*arguments: Any, calls: list[int] = calls, whole: Any = whole) -> Any:
            calls.append(1)
            if len(calls) == (2 if whole is ingest.write_sidecar_manifest else 1):
                raise KeyboardInterrupt
            return whole(*arguments)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(ingest, name, stops)
            import_shards(source, tmp_path / name, **options)
        assert not (tmp_path / name / "manifest.json").exists()
        import_shards(source, tmp_path / name, **options)
        files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert files == {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        assert verify_dataset(tmp_path / name) == []


class Losses:
    def __init__(self) -> None:
        self.values: list[float] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.values += [metrics["train/loss"]] if "train/loss" in metrics else []

    def milestone(self, step: int, metrics: Mapping[str, float], save: Save | None) -> None: ...


def test_it_trains_two_steps(folder: Path) -> None:
    recipe = digits_student(folder, steps=2).updated(
        {
            "data.captions": ["datacompdr"],
            "data.teacher_embeddings": "datacompdr",
            "model.inherit": False,
            "training.batch_size": 8,
            "training.log_every": 1,
            "training.evaluate_every": 0,
        }
    )
    record = Losses()
    run_recipe(recipe, record)
    assert len(record.values) == 2 and np.isfinite(record.values).all()


def test_a_rehearsal_imports_a_sample_of_it_and_makes_nothing_again(
    tmp_path: Path, samples: dict[int, dict[str, bytes]], teachers: tuple[str, ...]
) -> None:
    write(tmp_path / "in/00000000.tar", samples)
    options = ImportOptions(validation_share=0.3, embedded_by=list(teachers))
    found, config = options.find([str(tmp_path / "in")])
    beside = {"data.captions": ["datacompdr"], "data.teacher_embeddings": "datacompdr", "model.inherit": False}
    taken = sample_of(found, 12)
    job = Rehearsal(
        recipe=digits_student(tmp_path / "whole").updated(beside),
        named="my.yaml",
        sources=(str(tmp_path / "in"),),
        sample=taken,
        importing=small_import(config, taken),
        whole_rows=count_rows(found),
        folder=tmp_path / "scratch",
    )
    assert job.whole_rows == len(samples)
    assert [stage.name for stage in stages(job)][:3] == ["recipe and teacher", "import", "training, killed"]
    assert check_recipe(job).note == "embeddings of the source"
    assert import_rows(job).kept == 12
    dataset = open_dataset(job.dataset)
    for kind in ("captions", "embeddings"):
        assert open_sidecar(dataset, kind, "datacompdr").manifest.splits.keys() == {"train", "validation"}


def test_embeddings_of_another_width_than_the_teachers_named_are_refused(
    tmp_path: Path, samples: dict[int, dict[str, bytes]], teachers: tuple[str, ...]
) -> None:
    write(tmp_path / "in/train-0.tar", {number: samples[number] for number in range(2)})

    def refused(*options: str) -> str:
        words = ["data", "import", str(tmp_path / "in"), str(tmp_path / "out"), *options]
        result = CliRunner().invoke(app, words)
        assert isinstance(result.exception, UserError), result.output
        assert not (tmp_path / "out").exists()
        return str(result.exception)

    message = refused()
    assert (
        "train-0.tar: its image embeddings have width 12" in message and "768 (open_clip:ViT-L-14:openai)" in message
    )
    message = refused("--embedded-by", teachers[0])
    assert "width 12" in message and "8 (open_clip:tiny_dr_8:tag)" in message
    assert "knows no model 'nosuch'" in refused("--embedded-by", "open_clip:nosuch:tag")
    (tmp_path / "in/train-0.tar").unlink()
    write(tmp_path / "in/train-0.tar", {0: {"jpg": samples[0]["jpg"], "txt": b"x"}})
    assert "is not of DataCompDR" in refused("--layout", "datacompdr")
    assert "has no embeddings of DataCompDR" in refused("--embedded-by", teachers[0])


def changed(files: Mapping[str, bytes], name: str, change: Any) -> dict[str, bytes]:
    return {**files, name: json.dumps(change(json.loads(files[name]))).encode()}


def with_arrays(files: Mapping[str, bytes], **arrays: np.ndarray) -> dict[str, bytes]:
    buffer = io.BytesIO()
    np.savez(buffer, **{**arrays_of(files), **arrays})
    return {**files, "npz": buffer.getvalue()}


def damaged(good: dict[str, bytes]) -> dict[str, tuple[dict[str, bytes], str]]:
    """Name → (files of a sample, what the ledger says)."""

    def augmented(augmentation: Any) -> dict[str, bytes]:
        return changed(good, "paug.json", lambda _: {"param_aug": [augmentation] * CROPS})

    box = [0, 0, 50, 50]
    return {
        "no embeddings": ({k: v for k, v in good.items() if k != "npz"}, "no .npz"),
        "no crops": ({k: v for k, v in good.items() if k != "paug.json"}, "no .paug.json"),
        "no caption": ({k: v for k, v in good.items() if k != "txt"}, "there is no caption"),
        "crop outside": (augmented([[0, 0, 81, 50], []]), "a crop is outside the picture of"),
        "crop of nothing": (augmented([[0, 0, 0, 5], []]), "is not [top, left"),
        "crop of texts": (augmented([["a", 0, 1, 5], []]), "is not [top, left"),
        "unknown operation": (augmented([box, [[14, 0.0]]]), "is no operation"),
        "negative operation": (augmented([box, [[-1, 0.0]]]), "is no operation"),
        "magnitude": (augmented([box, [[10, 9.0]]]), "of Posterize is not in 0 to 8"),
        "not finite": (augmented([box, [[5, float("nan")]]]), "of Rotate is not in"),
        "three operations": (augmented([box, [[0, 0.0]] * 3]), "more than 2 operations"),
        "mixed with another image": (augmented([box, [], 0.3]), "not a crop and the operations"),
        "deep": ({**good, "paug.json": b'{"param_aug": ' + b"[" * 90_000 + b"}"}, "paug.json is none"),
        "other count": (
            changed(good, "syn.json", lambda t: {"syn_text": [*t["syn_text"], "x"]}),
            "text embeddings of",
        ),
        "other crops": (with_arrays(good, image_emb=np.ones((2, 12), np.float32)), "2 image embeddings of 3"),
        "other width": (with_arrays(good, image_emb=np.ones((3, 11), np.float32)), "image_emb has width 11"),
        "zero": (with_arrays(good, image_emb=np.zeros((3, 12), np.float32)), "zero or not finite"),
        "NaN": (with_arrays(good, text_emb=np.full((3, 12), np.nan, np.float32)), "zero or not finite"),
        "pickled": (with_arrays(good, image_emb=np.array([{}], object)), "which its bytes are not"),
        "claims": ({**good, "npz": claims()}, "which its bytes are not"),
        "bomb": ({**good, "npz": bomb()}, "unpacks to more than"),
        "no zip": ({**good, "npz": b"PK\x03\x04" + bytes(90)}, "cannot be read"),
    }


def claims() -> bytes:
    """An array whose header claims four terabytes."""
    array = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 1)}
    np.lib.format.write_array_header_1_0(array, header)
    array.write(bytes(64))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("image_emb.npy", "text_emb.npy"):
            archive.writestr(name, array.getvalue())
    return buffer.getvalue()


def bomb() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, image_emb=np.zeros((3, 2**21), np.float32))
    return buffer.getvalue()


def test_damaged_and_hostile_samples_are_in_the_ledger(
    tmp_path: Path, samples: dict[int, dict[str, bytes]], teachers: tuple[str, ...]
) -> None:
    good = samples[1]
    assert "npz" in good and size(1) == (91, 80)
    cases = damaged(good)
    numbered = {100 + number: files for number, (files, _) in enumerate(cases.values())}
    write(tmp_path / "in/00000.tar", {1: good, **numbered})
    done = import_shards(tmp_path / "in", tmp_path / "out", split=["train"], embedded_by=list(teachers))
    assert list(rows_of(tmp_path / "out")) == [1]
    ledger = {int(row["id"], 16): row for row in pq.read_table(tmp_path / "out/ledger.parquet").to_pylist()}
    for number, (name, (_, expected)) in zip(numbered, cases.items(), strict=True):
        assert expected in ledger[number]["detail"], (name, ledger[number])
    assert done.read == 1 + len(cases)


def test_a_pickle_in_the_embeddings_runs_nothing(samples: dict[int, dict[str, bytes]], tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    files = {name: data for name, data in samples[1].items() if name != "npz"}
    for content in ({"image_emb": Runs()}, [1], {"image_emb": torch.zeros(1).expand(2**26)}):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        with pytest.raises(Rejection):
            reinforcement_of({**files, "pth.gz": gzip.compress(buffer.getvalue())}, {}, 1)
    packed = gzip.compress(bytes(2**26))
    for data in (packed, packed[:-9], gzip.compress(b"no zip"), b"no gzip"):
        with pytest.raises(Rejection):
            reinforcement_of({**files, "pth.gz": data}, {}, 1)
    assert not (tmp_path / "ran").exists()


def test_sizes_that_img2dataset_states_scale_the_crops(
    tmp_path: Path, samples: dict[int, dict[str, bytes]], teachers: tuple[str, ...]
) -> None:
    """A download at half the size: the boxes are in pixels of the original."""
    small = io.BytesIO()
    Image.open(io.BytesIO(samples[0]["jpg"])).resize((210, 150)).save(small, "JPEG")
    half = {**samples[0], "jpg": small.getvalue()}
    stated = changed(half, "json", lambda values: values | {"original_width": 420, "original_height": 300})
    cut = changed(half, "json", lambda values: values | {"original_width": 420, "original_height": 200})
    write(tmp_path / "in/00000.tar", {0: stated, 1: cut})
    import_shards(tmp_path / "in", tmp_path / "out", split=["train"], embedded_by=list(teachers))
    [row] = rows_of(tmp_path / "out").values()
    augmentations = json.loads(samples[0]["paug.json"])["param_aug"]
    for (top, left, high, wide), (box, _) in zip(
        np.array(row["embedded_boxes"]).reshape(CROPS, 4), augmentations, strict=True
    ):
        edges = np.array([box[0], box[1], box[0] + box[2], box[1] + box[3]]) / 2
        assert abs(edges - [top, left, top + high, left + wide]).max() <= 0.5
    [entry] = pq.read_table(tmp_path / "out/ledger.parquet").to_pylist()
    assert "it was cut or padded" in entry["detail"]
