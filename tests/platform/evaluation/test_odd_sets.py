"""Unusual sets: folders by number or WordNet id, several annotation files, items without captions, bad files."""

from __future__ import annotations

import inspect
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from siclip.checkpoints.formats import load_model
from siclip.errors import UserError
from siclip.evaluation.classification import ClassEmbeddings
from siclip.evaluation.composition import CompositionItem, composition_statistics
from siclip.evaluation.encoder import ClipEncoder
from siclip_platform.evaluation.caption_files import find_annotations
from siclip_platform.evaluation.find import find_sets, open_set
from siclip_platform.evaluation.image_folder import _class_folders, read_image_folder
from siclip_platform.evaluation.measure import Subject
from siclip_platform.evaluation.prompts import class_prompts
from siclip_platform.evaluation.record import as_dict
from siclip_platform.evaluation.results import Sampling
from siclip_platform.evaluation.runner import run_suite


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG")
    return out.getvalue()


def test_numbered_class_folders_are_sorted_by_number(tmp_path: Path) -> None:
    for label in range(12):
        (tmp_path / str(label)).mkdir()
        (tmp_path / str(label) / "a.png").write_bytes(png())
    assert [each.name for each in _class_folders(tmp_path, "test")] == [str(label) for label in range(12)]


def test_annotations_of_training_images_are_not_used(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for name in ("captions_train2017.json", "captions_val2017.json"):
        (tmp_path / "annotations" / name).write_text("{}")
    found = find_annotations(tmp_path)
    assert found is not None and found.name == "captions_val2017.json"


def test_items_without_false_captions_are_not_counted() -> None:
    image, text = torch.eye(2), torch.eye(2)
    items = [
        CompositionItem(image=0, true=0, false=(("swap", (1,)),)),  # right
        CompositionItem(image=0, true=1, false=(("swap", (0,)),)),  # wrong
        CompositionItem(image=1, true=1, false=(("swap", ()),)),
        CompositionItem(image=1, true=1, false=()),
    ]
    found = composition_statistics(items, image, text)
    every = np.arange(len(items))
    values = {name: value(every) for name, value in found.items()}
    assert values == dict.fromkeys(("accuracy", "accuracy_swap", "beats_all_negatives"), 0.5)
    assert math.isnan(found["beats_all_negatives"](np.array([2, 3])))


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-o", "imagenet-r"])
def test_class_names_of_wordnet_ids_are_those_of_clip_benchmark(tmp_path: Path, name: str) -> None:
    builder = pytest.importorskip("clip_benchmark.datasets.builder")
    found = re.search(rf"{name.replace('-', '_')}_wnids = [\[{{](.*?)[\]}}]", inspect.getsource(builder), re.DOTALL)
    assert found
    wnids = re.findall(r"n\d{8}", found[1])
    assert len(wnids) == 200
    for wnid in wnids:
        (tmp_path / name / wnid).mkdir(parents=True)
        (tmp_path / name / wnid / "a.png").write_bytes(png())
    theirs = builder.build_dataset(name, root=str(tmp_path / name), split="test")
    ours = read_image_folder(tmp_path / name, "test", name)
    assert list(ours.classnames) == theirs.classes
    assert list(ours.templates) == theirs.templates
    assert "WordNet" in ours.prompts
    (tmp_path / name / "n99999999").mkdir()  # no class of ImageNet-1k: none is renamed
    assert read_image_folder(tmp_path / name, "test", name).classnames == tuple(sorted([*wnids, "n99999999"]))


def test_hidden_files_and_folders_are_skipped(tmp_path: Path) -> None:
    for name in ("cat", "wild dog", ".cache"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ein Bild ü.png").write_bytes(png())
    (tmp_path / "cat" / "._ein Bild ü.png").write_bytes(b"what macOS leaves in archives")
    data = read_image_folder(tmp_path, "test", "mine")
    assert data.classnames == ("cat", "wild dog")
    assert [sample.key for sample in data.samples()] == ["cat/ein Bild ü.png", "wild dog/ein Bild ü.png"]


@pytest.mark.parametrize(("suite", "problem"), [(" , ", "names no set"), ("a,b/a", "names 'a' twice")])
def test_each_set_is_named_once(tmp_path: Path, suite: str, problem: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match=problem):
        find_sets(suite, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("classnames.txt", b"caf\xe9\ndog\n", "classnames.txt is not UTF-8"),
        ("zeroshot_classification_templates.txt", b"a photo of a {}\n", r"need \{c\} in place of the class name"),
        ("zeroshot_classification_prompts.json", b'["a cat"]', "is not an object of prompts"),
        (
            "zeroshot_classification_prompts.json",
            b'{"cat": "a cat", "dog": ["a dog"]}',
            "is not an object of prompts",
        ),
        ("zeroshot_classification_prompts.json", b'{"cat": ["a cat"]}', "no prompts for class 'dog'"),
        ("zeroshot_classification_prompts.json", b"{", "is not JSON"),
    ],
)
def test_prompt_files_are_checked_before_an_image_is_read(
    tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=problem):
        class_prompts(tmp_path, "mine")


def test_a_byte_order_mark_is_not_part_of_a_class_name(tmp_path: Path) -> None:
    (tmp_path / "classnames.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n")
    assert class_prompts(tmp_path, "mine").classnames == ("cat", "dog")


def test_a_set_named_mscoco_with_other_images_has_a_note(nano_teacher: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mscoco"
    folder.mkdir()
    for index in range(2):
        (folder / f"{index}.jpg").write_bytes(png())
    images = [
        {"filename": f"{index}.jpg", "split": "test", "sentences": [{"raw": "a"}, {"raw": "b"}]} for index in range(2)
    ]
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images}))
    encoder = ClipEncoder(load_model(nano_teacher), "model", torch.device("cpu"))
    subject = Subject(encoder, ClassEmbeddings(encoder))
    sets = find_sets("mscoco", tmp_path)
    result = run_suite([subject], sets, split="test", suite=False, sampling=Sampling(resamples=2))
    found = as_dict(result, {})["sets"]["mscoco"]
    assert (found["samples"], found["captions"]) == (2, 4)
    assert found["note"] == "MSCOCO is commonly measured on 5,000 images, this one has 2"


def test_mscoco_is_read_from_datacomps_cache(tmp_path: Path) -> None:
    import datasets

    (tmp_path / "file.png").write_bytes(png())
    image = {"bytes": [png(), None], "path": [None, str(tmp_path / "file.png")]}
    struct = pa.StructArray.from_arrays([pa.array(image["bytes"], pa.binary()), pa.array(image["path"])], list(image))
    table = pa.table({"imgid": [7, 9], "image": struct, "caption": [["a", "b"], ["c"]]})
    pq.write_table(table, tmp_path / "test.parquet")
    files = {"test": str(tmp_path / "test.parquet")}
    datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "hf_cache"))
    mine = tmp_path / "hf_cache" / "nlphuji___mscoco_2014_5k_test_image_text_retrieval"
    (tmp_path / "hf_cache" / "parquet").rename(mine)
    [found] = find_sets("mscoco", tmp_path)
    assert found.folder == mine
    (data,) = open_set(found, "test")
    samples = list(data.samples())
    assert [sample.texts for sample in samples] == [("a", "b"), ("c",)]
    assert [sample.image for sample in samples] == [png(), png()]
    (tmp_path / "file.png").unlink()
    with pytest.raises(UserError, match=r"file\.png, which does not exist"):
        list(data.samples())
    with pytest.raises(UserError, match=r"has no \*-validation\.arrow"):
        open_set(found, "validation")
    [arrow] = mine.rglob("*-test.arrow")
    (mine / "old").mkdir()
    (mine / "old" / arrow.name).write_bytes(arrow.read_bytes())
    with pytest.raises(UserError, match="delete one of them"):
        open_set(found, "test")
    (mine / "old" / arrow.name).unlink()
    arrow.write_bytes(b"cut")
    with pytest.raises(UserError, match="cannot be read"):
        open_set(found, "test")
