"""Readers of common layouts, missing and damaged files, and metrics of real images."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn.functional import normalize

from siclip.checkpoints.formats import load_model
from siclip.data.transforms import preprocess
from siclip.errors import UserError
from siclip.evaluation.classification import ClassEmbeddings
from siclip.evaluation.composition import CompositionItem
from siclip.tokenizer import tokenize
from siclip_platform.evaluation import evaluate_checkpoint
from siclip_platform.evaluation.find import find_sets, open_set
from siclip_platform.evaluation.measure import Subject
from siclip_platform.evaluation.models import open_model
from siclip_platform.evaluation.results import SetResult
from siclip_platform.evaluation.runner import run_suite
from siclip_platform.evaluation.sets import CompositionData, CueData, EvaluationSample, RetrievalData

CPU = torch.device("cpu")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("a photo of the number {c}.", "a handwritten {c}")


def png(seed: int, size: tuple[int, int] = (24, 20)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels))


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, samples: Sequence[Mapping[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for index, sample in enumerate(samples):
            for extension, content in sample.items():
                member = tarfile.TarInfo(f"s{index:07d}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def write_classes(folder: Path, samples: Sequence[Mapping[str, bytes]], names: Sequence[str]) -> Path:
    write_tar(folder / "test" / "0.tar", samples)
    (folder / "test" / "nshards.txt").write_text("1\n")
    (folder / "classnames.txt").write_text("\n".join(names) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")
    return folder


@pytest.fixture(scope="module")
def subject(nano_teacher: Path) -> Subject:
    encoder = open_model(str(nano_teacher), CPU)
    return Subject(encoder, ClassEmbeddings(encoder))


def measured(subject: Subject, data: Path, suite: str | None) -> tuple[SetResult, dict[str, float]]:
    result = run_suite([subject], find_sets(suite, data), split="test", suite=False).sets[0]
    return result, {name: interval.value for name, interval in result.metrics[subject.encoder.name].items()}


def samples_of(folder: Path) -> list[EvaluationSample]:
    (data,) = open_set(find_sets(folder.name, folder.parent)[0], "test")
    return list(data.samples())


def test_handwritten_digits_with_templates(subject: Subject, nano_teacher: Path, tmp_path: Path) -> None:
    """Compared with a plain loop over the model."""
    digits = load_digits()
    images = [Image.fromarray((image * 15.9).astype(np.uint8)).resize((32, 32)) for image in digits.images[:200]]
    labels = digits.target[:200]
    samples = [{"png": encoded(i), "cls": b"%d" % label} for i, label in zip(images, labels, strict=True)]
    write_classes(tmp_path / "digits", samples, DIGITS)
    result, found = measured(subject, tmp_path, "digits")

    model = load_model(nano_teacher).eval()
    with torch.no_grad():
        rows = []
        for name in DIGITS:
            texts = tokenize([template.replace("{c}", name) for template in TEMPLATES], 20)
            rows.append(normalize(model.encode_text(texts, normalize=True).mean(dim=0), dim=0))
        transform = preprocess(train=False, size=64)
        pixels = torch.stack([transform(image) for image in images])
        scores = model.encode_image(pixels, normalize=True) @ torch.stack(rows).T
    best = scores.topk(5).indices.numpy()
    assert found["acc1"] == pytest.approx((best[:, 0] == labels).mean(), abs=1e-12)
    assert found["acc5"] == pytest.approx((best == labels[:, None]).any(axis=1).mean(), abs=1e-12)
    assert (result.units, result.main, result.unreadable) == (200, "acc1", ())
    interval = result.metrics[subject.encoder.name]["acc1"]
    assert interval.low <= interval.value <= interval.high and interval.low < interval.high


def test_a_parquet_dataset_has_the_metrics_of_training(subject: Subject, nano_teacher: Path, digits: Path) -> None:
    result, found = measured(subject, digits, None)
    for name, value in evaluate_checkpoint(nano_teacher, digits, "test").items():
        assert found[name.removeprefix("test/")] == pytest.approx(value, abs=1e-6), name
    by_category = {"accuracy_digit", "accuracy_colour", "accuracy_relation", "accuracy_size"}
    assert by_category <= found.keys() and result.units == 60


def test_image_folders_and_cached_class_embeddings(nano_teacher: Path, tmp_path: Path) -> None:
    for label, name in enumerate(("big_cat", "small_dog")):
        (tmp_path / "animals" / "test" / name).mkdir(parents=True)
        for index in range(3):
            (tmp_path / "animals" / "test" / name / f"{index}.png").write_bytes(png(10 * label + index))
    encoder = open_model(str(nano_teacher), CPU)
    first = Subject(encoder, ClassEmbeddings(encoder, tmp_path / "cache"))
    result, found = measured(first, tmp_path, "animals")
    assert result.units == 6 and "names of the class folders" in result.prompts and "acc5" not in found
    (cached,) = (tmp_path / "cache").glob("classes-*.safetensors")
    stamp = cached.stat().st_mtime_ns
    again = Subject(encoder, ClassEmbeddings(encoder, tmp_path / "cache"))
    assert measured(again, tmp_path, "animals")[1] == found and cached.stat().st_mtime_ns == stamp
    (tmp_path / "animals" / "classnames.txt").write_text("cat\n")
    with pytest.raises(UserError, match="1 class names and 2 class folders"):
        measured(first, tmp_path, "animals")


def test_annotation_files_of_mscoco_and_flickr30k(tmp_path: Path) -> None:
    def folder(name: str) -> Path:
        (tmp_path / name / "images").mkdir(parents=True)
        for index in (1, 2):
            (tmp_path / name / "images" / f"{index}.jpg").write_bytes(png(index))
        return tmp_path / name

    images = [{"id": 7, "file_name": "1.jpg"}, {"id": 9, "file_name": "2.jpg"}]
    rows = [(9, "c"), (7, "a"), (7, "b")]
    annotations = [{"image_id": image, "caption": text} for image, text in rows]
    (folder("coco") / "captions_val2014.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    karpathy = [
        {"filename": f"{i}.jpg", "split": split, "sentences": [{"raw": text} for text in texts]}
        for i, split, texts in ((1, "test", "ab"), (2, "test", "c"), (3, "train", "d"))
    ]
    (folder("karpathy") / "dataset_flickr30k.json").write_text(json.dumps({"images": karpathy}))
    tokens = folder("tokens")
    (tokens / "results.token").write_text("1.jpg#0\ta\n1.jpg#1\tb\n2.jpg#0\tc\n3.jpg#0\td\n")
    with pytest.raises(UserError, match="has all images and no split"):
        samples_of(tokens)
    (tokens / "test.txt").write_text("1\n2.jpg\n")
    (folder("table") / "flickr_annotations_30k.csv").write_text(
        'raw,filename,split\n"[""a"", ""b""]",1.jpg,test\n"[""c""]",2.jpg,test\n"[""d""]",3.jpg,train\n'
    )
    for name in ("coco", "karpathy", "tokens", "table"):
        found = samples_of(tmp_path / name)
        assert [sample.texts for sample in found] == [("a", "b"), ("c",)], name
        assert [sample.image for sample in found] == [png(1), png(2)]
    (tmp_path / "karpathy" / "images" / "2.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 2 images that dataset_flickr30k.json names are missing.*2\.jpg"):
        samples_of(tmp_path / "karpathy")
    (tmp_path / "coco" / "captions_val2014.json").write_text('{"annotations": [{}]}')
    with pytest.raises(UserError, match="not an annotation file"):
        samples_of(tmp_path / "coco")


def test_composition_files(subject: Subject, tmp_path: Path) -> None:
    def folder(name: str) -> Path:
        (tmp_path / name / "images").mkdir(parents=True)
        for index in range(2):
            (tmp_path / name / "images" / f"{index}.png").write_bytes(png(index))
        return tmp_path / name

    sugar = folder("sugar_crepe")
    for category in ("swap_att", "add_obj"):
        entry = {"filename": "0.png", "caption": "a red cat", "negative_caption": f"{category} cat"}
        (sugar / f"{category}.json").write_text(json.dumps({"0": entry, "7": entry | {"filename": "1.png"}}))
    aro = folder("aro")
    box = {"bbox_x": 2, "bbox_y": 3, "bbox_w": 10, "bbox_h": 8}
    entry = {"image_path": "0.png", "true_caption": "a on b", "false_caption": "b on a", "relation_name": "on", **box}
    (aro / "relations.json").write_text(json.dumps([entry]))
    ground = folder("winoground")
    pair = {"image_0": "0", "image_1": "1", "caption_0": "a over b", "caption_1": "b over a"}
    (ground / "examples.jsonl").write_text(json.dumps(pair) + "\n")
    own = folder("own")
    item = {"image": "1.png", "caption": "x", "negatives": {"digit": "y", "colour": ["z", "w"]}}
    (own / "items.json").write_text(json.dumps([item]))

    data = {path.name: open_set(find_sets(path.name, tmp_path)[0], "test")[0] for path in (sugar, aro, ground, own)}
    assert all(isinstance(each, CompositionData) for each in data.values())
    false = (("add_obj", 1), ("swap_att", 2))
    add, swap = (CompositionItem(0, 0, ((category, (text,)),)) for category, text in false)
    assert {add, swap} <= set(data["sugar_crepe"].items) and len(data["sugar_crepe"].items) == 4  # type: ignore[union-attr]
    (cut,) = data["aro"].samples()
    whole = np.asarray(Image.open(io.BytesIO(png(0))))
    assert (np.asarray(Image.open(io.BytesIO(cut.image))) == whole[3:11, 2:12]).all()
    assert data["own"].items == (CompositionItem(0, 0, (("digit", (1,)), ("colour", (2, 3)))),)  # type: ignore[union-attr]
    assert {"accuracy", "accuracy_swap_att", "accuracy_add_obj"} <= measured(subject, tmp_path, "sugar_crepe")[
        1
    ].keys()
    assert set(measured(subject, tmp_path, "winoground")[1]) == {"text_score", "image_score", "group_score"}
    (own / "items.json").write_text(json.dumps([item | {"image": "5.png"}]))
    with pytest.raises(UserError, match=r"image 5\.png is neither in the folder nor in its images/"):
        samples_of(own)


def test_winogavil(subject: Subject, tmp_path: Path) -> None:
    (tmp_path / "winogavil" / "images").mkdir(parents=True)
    for index in range(10):
        (tmp_path / "winogavil" / "images" / f"{index}.jpg").write_bytes(png(index))
    cue = {"cue": "Owl", "candidates": [str(i) for i in range(10)], "associations": ["3", "4"]}
    (tmp_path / "winogavil" / "winogavil.jsonl").write_text(json.dumps(cue) + "\n")
    data = open_set(find_sets("winogavil", tmp_path)[0], "test")[0]
    assert isinstance(data, CueData) and data.cues[0][0] == "An owl"
    result, found = measured(subject, tmp_path, "winogavil")
    assert result.main == "jaccard_score_10-12" and 0 <= found[result.main] <= 1


def test_the_worst_region_of_fmow(subject: Subject, tmp_path: Path) -> None:
    samples = []
    for index in range(30):
        array = io.BytesIO()
        np.save(array, np.array([index % 3, 5, index % 62]))
        samples.append({"png": png(index), "cls": b"%d" % (index % 62), "npy": array.getvalue()})
    write_classes(tmp_path / "wds_wilds-fmow_test", samples, [f"class {i}" for i in range(62)])
    result, found = measured(subject, tmp_path, "fmow")
    assert result.main == "acc_worst_region" and found["acc_worst_region"] <= found["acc1"]
    write_classes(tmp_path / "wds_wilds-fmow_test", samples, DIGITS)
    with pytest.raises(UserError, match="FMoW has 62 classes and 10 are named"):
        measured(subject, tmp_path, "fmow")


def test_missing_sets_are_listed_and_damaged_ones_do_not_stop_the_others(subject: Subject, tmp_path: Path) -> None:
    samples = [{"png": png(index), "cls": b"%d" % (index % 10)} for index in range(12)]
    samples[4] = {"png": b"no image", "cls": b"4"}
    samples[7] = {"png": png(7)[:200], "cls": b"7"}
    write_classes(tmp_path / "wds_mnist_test", samples, DIGITS)
    write_classes(tmp_path / "svhn", [{"png": png(0), "cls": b"10"}], DIGITS)
    result = run_suite([subject], find_sets("datacomp", tmp_path), split="test", suite=True)
    by_name = {each.name: each for each in result.sets}
    assert len(by_name) == 38 and by_name["mnist"].units == 10
    assert by_name["mnist"].unreadable == ("0.tar:s0000004", "0.tar:s0000007")
    assert by_name["svhn"].state == "failed" and "labels 10 have no class name" in by_name["svhn"].reason
    assert sum(each.state == "missing" for each in result.sets) == 36
    mean = result.averages[subject.encoder.name]
    assert (mean.title, len(mean.missing)) == ("average over 1 of 38", 37)
    assert mean.value == by_name["mnist"].main_value(subject.encoder.name)


def test_errors_name_what_cannot_be_measured(subject: Subject, tmp_path: Path, digits: Path) -> None:
    folder = write_classes(tmp_path / "set", [{"png": png(0), "cls": b"0"}], DIGITS)
    cases = [
        (folder / "test" / "nshards.txt", "0", "has no samples"),
        (folder / "test" / "nshards.txt", "2", "lacks 1.tar of its 2 shards"),
        (folder / "test" / "nshards.txt", "two", "number of .tar files"),
        (folder / "classnames.txt", "zero\n\none\n", "line 2 is empty"),
        (folder / "dataset_type.txt", "regression", "has 'regression'"),
        (folder / "test" / "0.tar", "not a tar", "not a complete tar file"),
    ]
    for path, text, message in cases:
        before = path.read_bytes() if path.is_file() else None
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            measured(subject, tmp_path, "set")
        path.unlink() if before is None else path.write_bytes(before)
    write_tar(folder / "test" / "0.tar", [])
    with pytest.raises(UserError, match="its test split is empty"):
        measured(subject, tmp_path, "set")
    write_tar(folder / "test" / "0.tar", [{"png": b"x", "cls": b"0"}])
    with pytest.raises(UserError, match=r"none of its 1 images can be read, the first is 0\.tar:s0000000"):
        measured(subject, tmp_path, "set")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="has no supported layout"):
        measured(subject, tmp_path, "nothing")
    with pytest.raises(UserError, match=r"no set 'mnits'.*did you mean 'mnist'"):
        find_sets("mnits", tmp_path)
    with pytest.raises(UserError, match="set mnist does not exist"):
        measured(subject, tmp_path, "mnist")
    assert isinstance(open_set(find_sets(None, digits)[0], "test")[0], RetrievalData)
