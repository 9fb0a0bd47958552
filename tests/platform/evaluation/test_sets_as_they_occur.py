"""Sets as editors, exports and downloads leave them: measured whole, or refused with what is wrong, and where."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import webdataset
from import_parts import add_member
from PIL import Image

from siclip.checkpoints.formats import load_model
from siclip.errors import UserError
from siclip.evaluation.classification import ClassEmbeddings
from siclip.evaluation.encoder import ClipEncoder
from siclip_platform.evaluation.composition_files import find_composition, read_composition
from siclip_platform.evaluation.find import find_sets, open_set
from siclip_platform.evaluation.hub_cache import read_hub_cache
from siclip_platform.evaluation.measure import Subject
from siclip_platform.evaluation.runner import run_suite
from siclip_platform.evaluation.sets import CompositionData, Data

BOM = "\ufeff"
ITEM = {"image": "0.png", "caption": "a red\u2028cat", "negatives": {"swap": ["a cat red", "no cat"]}}
OTHER = ITEM | {"image": "1.png", "caption": "a dog"}
LINES = "\n".join(json.dumps(item, ensure_ascii=False) for item in (ITEM, OTHER))


def png(seed: int = 0) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((24, 24), 0).save(out, "PNG")
    return out.getvalue()


def with_images(folder: Path, count: int = 2) -> Path:
    (folder / "images").mkdir(parents=True)
    for index in range(count):
        (folder / "images" / f"{index}.png").write_bytes(png(index))
    return folder


def opened(folder: Path) -> list[Data]:
    return open_set(find_sets(None, folder)[0], "test")


def captions_of(folder: Path) -> dict[str, tuple[str, ...]]:
    (data,) = opened(folder)
    return {sample.key: sample.texts for sample in data.samples()}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("items.json", BOM + json.dumps([ITEM, OTHER])),
        ("items.JSON", json.dumps({"0": ITEM, "1": OTHER})),
        ("items.json", LINES),
        ("items.jsonl", BOM + LINES.replace("\n", "\r\n\r\n") + "\n \n"),
        ("items.ndjson", LINES),
        ("items.jsonl", json.dumps([ITEM, OTHER], indent=2)),
    ],
)
def test_composition_files_are_read_in_every_dress(name: str, text: str, tmp_path: Path) -> None:
    (with_images(tmp_path) / name).write_bytes(text.encode())
    (data,) = opened(tmp_path)
    assert isinstance(data, CompositionData)
    assert data.texts == ("a red\u2028cat", "a cat red", "no cat", "a dog")
    assert [(item.image, item.true, item.false) for item in data.items] == [
        (0, 0, (("swap", (1, 2)),)),
        (1, 3, (("swap", (1, 2)),)),
    ]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("items.json", "[]", r"items\.json has no items"),
        ("items.json", "{}", r"items\.json has no items"),
        ("items.jsonl", "\n\n", r"items\.jsonl has no items"),
        ("items.json", "[null]", r"items\.json: item 0 is not an object"),
        ("items.json", json.dumps([ITEM, 3]), r"items\.json: item 1 is not an object"),
        ("items.json", json.dumps([{"img": "0.png", "text": "x"}]), r"items\.json is not a composition file.*'img'"),
        ("items.json", '[{"image": ', r"items\.json is neither JSON nor JSON lines"),
        ("items.jsonl", json.dumps(ITEM) + "\n{", r"items\.jsonl is neither JSON nor JSON lines: line 2"),
        ("items.json", "[" * 100_000, r"items\.json is neither JSON nor JSON lines"),
        ("items.json", json.dumps([ITEM | {"negatives": {"swap": None}}]), r"item 0 has missing or invalid keys"),
        ("items.json", json.dumps([ITEM | {"negatives": {"swap": {"a": "b"}}}]), r"item 0 has missing or invalid"),
        ("items.json", json.dumps([ITEM | {"caption": None}]), r"item 0 has missing or invalid keys"),
        ("items.txt", LINES, r"no reader understands items\.txt"),
        ("annotations.csv.gz", "", r"no reader understands annotations\.csv\.gz"),
        ("README.md", "about", r"has one class, 'images', and every accuracy would be 1"),
    ],
)
def test_what_no_reader_understands_is_refused(name: str, text: str, problem: str, tmp_path: Path) -> None:
    """Today's images/ beside such a file would be a set of one class, with accuracy 1."""
    (with_images(tmp_path) / name).write_text(text)
    with pytest.raises(UserError, match=problem):
        opened(tmp_path)


def test_an_item_without_false_captions_of_a_kind_stays(tmp_path: Path) -> None:
    (with_images(tmp_path) / "a.json").write_text(json.dumps([ITEM | {"negatives": {"swap": [], "add": "no"}}]))
    data = read_composition(tmp_path, find_composition(tmp_path))
    assert data.items[0].false == (("swap", ()), ("add", (1,)))


@pytest.mark.parametrize("name", ["labels.csv", "cat/9.avif", "cat/more/0.png", "loose.png"])
def test_images_by_class_are_not_measured_in_part(name: str, tmp_path: Path) -> None:
    for each in ("cat/0.png", "dog/0.png", "cat/.DS_Store", "Thumbs.db", "LICENSE", "classnames.txt"):
        (tmp_path / each).parent.mkdir(exist_ok=True)
        (tmp_path / each).write_bytes(b"cat\ndog\n" if each == "classnames.txt" else png())
    assert len(list(opened(tmp_path)[0].samples())) == 2
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(png())
    with pytest.raises(UserError, match="no reader understands"):
        opened(tmp_path)


def test_class_names_contain_every_character_but_line_ends(tmp_path: Path) -> None:
    for each in ("a/0.png", "b/0.png"):
        (tmp_path / each).parent.mkdir()
        (tmp_path / each).write_bytes(png())
    (tmp_path / "classnames.txt").write_bytes("\ufeffblack\u2028cat\r\ndog\x85wild\r\n\r\n".encode())
    (data,) = opened(tmp_path)
    assert data.classnames == ("black\u2028cat", "dog\x85wild")  # type: ignore[union-attr]


def test_flickrs_tokens_with_a_byte_order_mark_keep_all_captions(tmp_path: Path) -> None:
    rows = f"{BOM}0.png#0\ta\u2028b\r\n0.png#1\tc\r\n\r\n1.png#0\td\r\n"
    (with_images(tmp_path) / "results.token").write_bytes(rows.encode())
    (tmp_path / "test.txt").write_bytes(f"{BOM}0.png\r\n1.png\r\n".encode())
    assert captions_of(tmp_path) == {"0.png": ("a\u2028b", "c"), "1.png": ("d",)}


def test_a_table_has_lists_texts_and_several_rows_per_image(tmp_path: Path) -> None:
    table = 'raw,filename,split\n"[""ab"", ""cd""]",0.png,test\n"""ef""",1.png,test\n"[""gh""]",1.png,test\n'
    (with_images(tmp_path) / "flickr_annotations_30k.csv").write_text(BOM + table)
    assert captions_of(tmp_path) == {"0.png": ("ab", "cd"), "1.png": ("ef", "gh")}


def coco(folder: Path, images: object, annotations: object) -> Path:
    (with_images(folder) / "captions_val2014.json").write_text(
        BOM + json.dumps({"images": images, "annotations": annotations})
    )
    return folder


def test_mscoco_may_name_a_file_twice(tmp_path: Path) -> None:
    files = [{"id": 7, "file_name": "0.png"}, {"id": 8, "file_name": "1.png"}]
    captions = [{"image_id": 7, "caption": "a"}, {"image_id": 9, "caption": "b"}, {"image_id": 8, "caption": "c"}]
    folder = coco(tmp_path / "ids", [*files, {"id": 9, "file_name": "0.png"}], captions)
    assert captions_of(folder) == {"0.png": ("a", "b"), "1.png": ("c",)}
    folder = coco(tmp_path / "entries", [*files, files[0]], captions)
    assert captions_of(folder) == {"0.png": ("a",), "1.png": ("c",)}


@pytest.mark.parametrize(
    ("images", "annotations"),
    [
        ([{"id": 7, "file_name": "0.png"}], [{"image_id": 7, "caption": None}]),
        ([{"id": 7, "file_name": None}], [{"image_id": 7, "caption": "a"}]),
        ([None], [{"image_id": 7, "caption": "a"}]),
        (None, [{"image_id": 7, "caption": "a"}]),
        ([{"id": 7, "file_name": "0.png"}], [None]),
        ([{"id": 7, "file_name": "0.png"}], None),
        ([{"id": 7, "file_name": "0.png"}], [{"image_id": [7], "caption": "a"}]),
    ],
)
def test_null_in_mscoco_is_refused(images: object, annotations: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"captions_val2014\.json is not an annotation file"):
        opened(coco(tmp_path / "coco", images, annotations))


@pytest.mark.parametrize(
    ("caption", "texts"),
    [("ab", ("ab",)), (["ab", "cd"], ("ab", "cd")), ('["ab", "cd"]', ("ab", "cd")), (None, None), ([], None)],
)
def test_a_cache_has_captions_as_lists_texts_and_json(
    caption: object, texts: tuple[str, ...] | None, tmp_path: Path
) -> None:
    kind = pa.list_(pa.string()) if isinstance(caption, list) else pa.string()
    table = pa.table({"image": [{"bytes": png(), "path": None}], "caption": pa.array([caption], kind)})
    file = tmp_path / "set-test.arrow"
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data = read_hub_cache(tmp_path, [file])
    if texts is None:
        with pytest.raises(UserError, match=r"captions of set-test\.arrow:0"):
            list(data.samples())
    else:
        assert next(data.samples()).texts == texts


def shard(folder: Path, members: list[tuple[str, bytes]]) -> Path:
    """A set of two classes in webdataset layout, with one shard."""
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("cat\ndog\n")
    (folder / "zeroshot_classification_templates.txt").write_text("{c}\n")
    (folder / "test" / "nshards.txt").write_text("1")
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for name, data in members:
            add_member(tar, name, data)
    return folder


def labelled(key: str, number: int) -> list[tuple[str, bytes]]:
    return [(f"{key}.png", png(number)), (f"{key}.cls", b"%d" % (number % 2))]


def labels_of(folder: Path) -> dict[str, int | None]:
    (data,) = opened(folder)
    return {sample.key.removeprefix("0.tar:"): sample.label for sample in data.samples()}


DOUBLE = b"\0\5\26\7" + bytes(80)  # begins as macOS's AppleDouble files do


@pytest.mark.parametrize(
    "members",
    [
        [
            item
            for n in range(4)
            for name, data in labelled(f"{n}", n)
            for item in ((f"._{name}", DOUBLE), (name, data))
        ],
        [("README", b"text"), *labelled("a", 0), ("LICENSE", b"text"), *labelled("b", 1)],
        [("__meta__", b"{}"), ("__info__/a.json", b"{}"), *labelled("./b", 1), *labelled("x.y/c", 2)],
        [*labelled("a", 0)[:1], ("a.seg.png", png(7)), ("a.json", b"{"), *labelled("a", 0)[1:], *labelled("b", 1)],
        [("A.PNG", png(0)), ("A.CLS", b"1"), *labelled("b", 0)],
    ],
    ids=["AppleDouble", "no extension", "metadata and folders", "further files", "upper case"],
)
def test_a_shard_has_the_samples_that_webdataset_reads(members: list[tuple[str, bytes]], tmp_path: Path) -> None:
    folder = shard(tmp_path / "set", members)
    peers = webdataset.WebDataset(str(folder / "test" / "0.tar"), shardshuffle=False)
    expected = {sample["__key__"]: int(sample["cls"]) for sample in peers if "png" in sample and "cls" in sample}
    assert expected and labels_of(folder) == expected


def test_a_shard_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """Also at the end of a member or inside a header, where tarfile sees a whole archive."""
    folder = shard(tmp_path / "set", [member for n in range(6) for member in labelled(str(n), n)])
    file = folder / "test" / "0.tar"
    whole = file.read_bytes()
    with tarfile.open(file) as tar:
        starts = [member.offset for member in tar]
        end = tar.offset
    assert len(labels_of(folder)) == 6
    for cut in (starts[4], starts[4] + 100, starts[4] + 512, starts[4] + 700, starts[5], end, 512, 100, 0):
        file.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"0\.tar is not a complete tar file: it is cut or damaged after"):
            labels_of(folder)
    file.write_bytes(whole + whole)
    with pytest.raises(UserError, match="data follows its end mark"):
        labels_of(folder)


def test_members_that_are_no_samples_are_refused_with_the_reason(tmp_path: Path) -> None:
    by_kind = [(f"{n}.png", png(n)) for n in range(3)] + [(f"{n}.cls", b"0") for n in range(3)]
    with pytest.raises(UserError, match=r"sample 0 has no \.cls.*must stand together"):
        labels_of(shard(tmp_path / "kinds", by_kind))
    with pytest.raises(UserError, match=r"two members a\.cls"):
        labels_of(shard(tmp_path / "twice", [*labelled("a", 0), ("a.cls", b"1")]))
    with pytest.raises(UserError, match=r"'a\.cls' has 1,048,577 bytes, more than 1,048,576"):
        labels_of(shard(tmp_path / "large", [*labelled("a", 0)[:1], ("a.cls", bytes(2**20 + 1))]))


def bad_sets(folder: Path) -> list[str]:
    """A set that can be measured first and last, and between them sets that break their readers."""
    for name in ("a", "z"):
        for label in ("cat", "dog"):
            (folder / name / label).mkdir(parents=True)
            (folder / name / label / "0.png").write_bytes(png())
    cue = {"cue": "", "candidates": ["0"], "associations": ["0"]}
    contents = {
        "cue/winogavil.jsonl": json.dumps(cue).encode(),
        "cues/winogavil.jsonl": json.dumps(cue | {"cue": "owl", "candidates": [["0"]]}).encode(),
        "latin/items.json": "[caf\xe9]".encode("latin-1"),
        "empty/items.json": b"[]",
        "list/captions_val.json": b"[]",
        "number/dataset_x.json": b"3",
        "zero/captions_val.json": json.dumps(
            {"images": [{"id": 1, "file_name": "a\0b"}], "annotations": [{"image_id": 1, "caption": "x"}]}
        ).encode(),
        "shards/test/nshards.txt": b"\xff\xfe1",
        "digit/test/nshards.txt": "²".encode(),
        "nothing/x.bin": b"",
        "manifest/manifest.json": b"{",
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return sorted({name.split("/")[0] for name in contents})


def subject_of(checkpoint: Path) -> Subject:
    encoder = ClipEncoder(load_model(checkpoint), "nano", torch.device("cpu"))
    return Subject(encoder, ClassEmbeddings(encoder))


def test_bad_sets_never_stop_the_others(nano_teacher: Path, tmp_path: Path) -> None:
    bad = bad_sets(tmp_path)
    found = find_sets(",".join(["a", *bad, "z"]), tmp_path)
    result = run_suite([subject_of(nano_teacher)], found, split="test", suite=False)
    states = {each.name: each.state for each in result.sets}
    assert states == {"a": "measured", **dict.fromkeys(bad, "failed"), "z": "measured"}
    assert all(each.reason for each in result.sets if each.state == "failed")


def test_a_bad_set_alone_ends_with_a_message(nano_teacher: Path, tmp_path: Path) -> None:
    subject = subject_of(nano_teacher)
    for name in bad_sets(tmp_path):
        with pytest.raises(UserError):
            run_suite([subject], find_sets(name, tmp_path), split="test", suite=False)
