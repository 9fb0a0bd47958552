"""Composition files: an image, its true caption, and false captions by kind.

    ours            a list of {"image", "caption", "negatives": {KIND: caption or list of captions}}
    SugarCrepe      {"0": {"filename", "caption", "negative_caption"}, …}; the kind is the file's name
    ARO             a list of {"image_path", "true_caption", "false_caption"}, with "relation_name" or "attributes" as
                    the kind where there is one, and a box to cut out (bbox_x, bbox_y, bbox_w, bbox_h)
    Winoground      a list, or JSON lines, of {"image_0", "image_1", "caption_0", "caption_1"}

Images lie in the folder or in its ``images/``. Several files of a folder make one set, each its own kind.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from siclip.errors import UserError
from siclip.evaluation.composition import CompositionItem
from siclip_platform.evaluation.sets import CompositionData, EvaluationSample

KEYS = (
    ("image", "negatives"),
    ("filename", "negative_caption"),
    ("image_path", "false_caption"),
    ("image_0", "caption_1"),
)
BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
WINOGROUND = "caption_1"


def find_composition(folder: Path) -> list[Path]:
    """The composition files of a folder, by what their first item holds."""
    return [path for path in sorted([*folder.glob("*.json"), *folder.glob("*.jsonl")]) if _is_composition(path)]


def read_composition(folder: Path, files: list[Path]) -> CompositionData:
    """
    Raises:
        UserError: an item lacks a part, an image is not there, or Winoground stands beside other formats.
    """
    builder = _Builder(folder)
    kinds = {path: _entries(path) for path in files}
    winoground = [path for path, entries in kinds.items() if WINOGROUND in entries[0]]
    if winoground and len(winoground) != len(files):
        raise UserError(f"{folder}: {winoground[0].name} is of Winoground and the others are not: one folder each")
    for path, entries in kinds.items():
        for number, entry in enumerate(entries):
            try:
                builder.add(entry, path.stem)
            except (KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{path}: item {number} lacks or misnames a part: {error!r}") from None
    return builder.data(bool(winoground))


class _Builder:
    """Images and texts that several items share stand once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images: dict[tuple[str, tuple[int, ...]], int] = {}
        self.texts: dict[str, int] = {}
        self.items: list[CompositionItem] = []

    def add(self, entry: dict[str, Any], kind: str) -> None:
        if WINOGROUND in entry:
            captions = [self._text(entry[f"caption_{side}"]) for side in (0, 1)]
            kind = str(entry.get("collapsed_tag") or entry.get("tag") or kind)
            for side in (0, 1):
                image = self._image(entry[f"image_{side}"])
                self.items.append(CompositionItem(image, captions[side], ((kind, (captions[1 - side],)),)))
            return
        if "negatives" in entry:
            false = {name: [one] if isinstance(one, str) else one for name, one in entry["negatives"].items()}
            image, true = self._image(entry["image"]), entry["caption"]
        elif "negative_caption" in entry:
            image, true, false = self._image(entry["filename"]), entry["caption"], {kind: [entry["negative_caption"]]}
        else:
            box = tuple(int(entry[name]) for name in BOX) if BOX[0] in entry else ()
            image, true = self._image(entry["image_path"], box), entry["true_caption"]
            attributes = entry.get("attributes")
            kind = entry.get("relation_name") or ("_".join(attributes) if attributes else kind)
            false = {kind: [entry["false_caption"]]}
        first = self._text(true)
        indexed = tuple((name, tuple(self._text(text) for text in texts)) for name, texts in false.items())
        self.items.append(CompositionItem(image, first, indexed))

    def data(self, winoground: bool) -> CompositionData:
        paths = [(name, box, self._locate(name)) for name, box in self.images]

        def samples() -> Iterator[EvaluationSample]:
            for name, box, path in paths:
                content = path.read_bytes()
                yield EvaluationSample(name, _cut(content, box) if box else content)

        return CompositionData(self.folder.name, samples, tuple(self.texts), tuple(self.items), winoground)

    def _image(self, name: Any, box: tuple[int, ...] = ()) -> int:
        return self.images.setdefault((str(name), box), len(self.images))

    def _text(self, text: Any) -> int:
        if not isinstance(text, str):
            raise TypeError(f"a caption is {text!r}")
        return self.texts.setdefault(text, len(self.texts))

    def _locate(self, name: str) -> Path:
        for base in (self.folder, self.folder / "images"):
            for path in (base / name, base / f"{name}.png", base / f"{name}.jpg"):
                if path.is_file():
                    return path
        raise UserError(f"{self.folder}: image {name} is neither there nor in images/")


def _cut(content: bytes, box: tuple[int, ...]) -> bytes:
    """The box of an image, without loss; bytes that are no image stay as they are and are counted later."""
    x, y, width, height = box
    cut = io.BytesIO()
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.convert("RGB").crop((x, y, x + width, y + height)).save(cut, "PNG")
    except (OSError, ValueError, SyntaxError):
        return content
    return cut.getvalue()


def _is_composition(path: Path) -> bool:
    try:
        entry = _entries(path)[0]
    except UserError:
        return False
    return any(all(key in entry for key in keys) for keys in KEYS)


def _entries(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    try:
        tree = (
            [json.loads(line) for line in text.splitlines() if line] if path.suffix == ".jsonl" else json.loads(text)
        )
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    entries = list(tree.values()) if isinstance(tree, dict) else tree
    if not isinstance(entries, list) or not entries or not isinstance(entries[0], dict):
        raise UserError(f"{path} holds no items")
    return entries
