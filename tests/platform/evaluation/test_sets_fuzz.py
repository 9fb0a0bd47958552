"""Damaged annotation files of every layout: the set is read or refused, never a traceback and never a hang."""

from __future__ import annotations

import io
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from siclip.errors import UserError
from siclip_platform.evaluation.find import find_sets, open_set
from siclip_platform.evaluation.sets import CompositionData, CueData

ITEM = {"image": "0.png", "caption": "a red cat", "negatives": {"swap": ["a cat red", "no cat"]}}
COCO = {
    "images": [{"id": 1, "file_name": "0.png"}, {"id": 2, "file_name": "1.png"}],
    "annotations": [{"image_id": 1, "caption": "a"}, {"image_id": 2, "caption": "b"}],
}
KARPATHY = {"images": [{"filename": "0.png", "split": "test", "sentences": [{"raw": "a"}, {"raw": "b"}]}]}
CUES = {"cue": "pet", "candidates": ["0", "1"], "associations": ["0"]}
FILES: dict[str, str] = {
    "items.json": json.dumps([ITEM, ITEM | {"image": "1.png"}]),
    "items.jsonl": "\n".join(json.dumps(ITEM | {"image": f"{index}.png"}) for index in (0, 1)),
    "captions_val2014.json": json.dumps(COCO),
    "dataset_flickr30k.json": json.dumps(KARPATHY),
    "results.token": "0.png#0\ta red cat\n0.png#1\ta cat\n1.png#0\ta dog\n",
    "test_annotations.csv": 'filename,raw,split\n0.png,"[""a red cat""]",test\n1.png,"[""a dog""]",test\n',
    "winogavil.jsonl": json.dumps(CUES) + "\n",
}
ODD: list[Any] = [None, True, 0, -1, 1e308, "", "\x00", "\ud800", "../0.png", [], {}, [[[]]], {"a": None}, "NaN"]
TOKENS = [
    b"null",
    b"NaN",
    b"\xef\xbb\xbf",
    b"\xff",
    b"[]",
    b"{}",
    b'"',
    b",",
    b"\r",
    b"\n\n",
    b"\x00",
    b"9" * 30,
    b"[" * 2000,
]


def damaged(text: str, draw: random.Random) -> bytes:
    """A file with one to three of its bytes, tokens or values changed."""
    content = text.encode()
    for _ in range(draw.randint(1, 3)):
        at, until = sorted(draw.choices(range(len(content) + 1), k=2))
        match draw.randrange(5):
            case 0:
                content = content[:at]
            case 1:
                content = content[:at] + content[until:]
            case 2:
                content = content[:at] + draw.choice(TOKENS) + content[at:]
            case 3:
                content = content[:at] + content[at:until] * 2 + content[until:]
            case _:
                content = with_odd_value(content, draw)
    return content


def with_odd_value(content: bytes, draw: random.Random) -> bytes:
    """The same JSON with one value of the wrong type; other files get an odd token."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return content + draw.choice(TOKENS)
    holders = [holder for holder in walk(tree) if len(holder)]
    if holders:
        holder = draw.choice(holders)
        key = draw.choice(list(holder)) if isinstance(holder, dict) else draw.randrange(len(holder))
        holder[key] = draw.choice(ODD)
    return json.dumps(tree).encode(errors="replace")


def walk(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict | list):
        yield tree
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from walk(value)


def texts_of(folder: Path) -> list[str]:
    """Every text of the set that is found in a folder."""
    found: list[str] = []
    for data in open_set(find_sets(None, folder)[0], "test"):
        found += [text for sample in data.samples() for text in sample.texts]
        if isinstance(data, CompositionData):
            found += data.texts
        elif isinstance(data, CueData):
            found += [prompt for prompt, _, _ in data.cues]
    return found


def check(tmp_path: Path, seed: int, rounds: int) -> None:
    draw = random.Random(seed)
    image = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(image, "PNG")
    read = refused = 0
    for number in range(rounds):
        name = draw.choice(list(FILES))
        folder = tmp_path / f"set-{number}"
        (folder / "images").mkdir(parents=True)
        for index in (0, 1):
            (folder / "images" / f"{index}.png").write_bytes(image.getvalue())
        content = damaged(FILES[name], draw)
        (folder / name).write_bytes(content)
        if name.endswith(".token"):
            (folder / "test.txt").write_text("0.png\n1.png\n")
        started = time.monotonic()
        try:
            texts = texts_of(folder)
            assert texts and all(isinstance(text, str) for text in texts), (name, content)
            read += 1
        except UserError as error:
            assert str(error).strip(), (name, content)
            refused += 1
        except Exception as error:
            raise AssertionError(f"{name}: {content[:400]!r}") from error
        assert time.monotonic() - started < 20, (name, content)  # a hang, not a slow machine
    assert min(read, refused) > rounds // 20  # both ways are tried


def test_undamaged_files_are_read(tmp_path: Path) -> None:
    image = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(image, "PNG")
    for name, text in FILES.items():
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        for index in (0, 1):
            (folder / "images" / f"{index}.png").write_bytes(image.getvalue())
        (folder / name).write_text(text)
        if name.endswith(".token"):
            (folder / "test.txt").write_text("0.png\n1.png\n")
        assert texts_of(folder), name


def test_damaged_annotation_files_are_read_or_refused(tmp_path: Path) -> None:
    check(tmp_path, seed=0, rounds=1500)


@pytest.mark.long
def test_many_damaged_annotation_files_are_read_or_refused(tmp_path: Path) -> None:
    check(tmp_path, seed=1, rounds=40_000)


@pytest.mark.parametrize("name", ["../secret.png", "/{folder}/../secret.png", "images/../../secret.png"])
@pytest.mark.parametrize("layout", ["items.json", "winogavil.jsonl", "captions_val2014.json"])
def test_a_name_that_leads_out_of_the_set_is_not_read(tmp_path: Path, layout: str, name: str) -> None:
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    Image.new("RGB", (8, 8)).save(folder / "images" / "1.png")
    name = name.replace("/{folder}", str(folder))
    first = "0.png" if "0.png" in FILES[layout] else '"0"'
    given = json.dumps(name.removesuffix(".png")) if first == '"0"' else name
    (folder / layout).write_text(FILES[layout].replace(first, given))
    with pytest.raises(UserError, match=r"secret"):
        texts_of(folder)
