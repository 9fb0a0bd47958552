"""Read composition files: an image, its true caption, and false captions by category.

    siclip          a list of {"image", "caption", "negatives": {CATEGORY: caption or list of captions}}
    SugarCrepe      {"0": {"filename", "caption", "negative_caption"}, …}; the category is the file's name
    ARO             a list of {"image_path", "true_caption", "false_caption"}, with "relation_name" or "attributes" as
                    the category if there is one, and a box to cut out (bbox_x, bbox_y, bbox_w, bbox_h)
    Winoground      a list, or JSON lines, of {"image_0", "image_1", "caption_0", "caption_1"}

The files are ``*.json``, ``*.jsonl`` or ``*.ndjson``, each a JSON value or JSON lines. Images are in the folder or in
its ``images/``. Several files in a folder are one set, with a category for each file.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from siclip.data.images import decode_as_pillow
from siclip.data.pillow_images import BROKEN
from siclip.errors import UserError
from siclip.evaluation.composition import CompositionItem
from siclip_platform.evaluation.prompts import PROMPTS
from siclip_platform.evaluation.sets import CompositionData, EvaluationSample, find_file, texts_of
from siclip_platform.storage.text_files import read_lines, read_text

KEYS = (
    ("image", "negatives"),
    ("filename", "negative_caption"),
    ("image_path", "false_caption"),
    ("image_0", "caption_1"),
)
BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
WINOGROUND = "caption_1"


SUFFIXES = {".json", ".jsonl", ".ndjson"}


def find_composition(folder: Path) -> list[Path]:
    """Return the composition files of a folder: all of its JSON files, except prompts for class names.

    Raises:
        UserError: one has no items, or its first item has the keys of no format.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name != PROMPTS)
    files = [path for path in files if path.is_file() and not path.name.startswith(".")]
    for path in files:
        first = _entries(path)[0]
        if not any(all(key in first for key in keys) for keys in KEYS):
            formats = "; ".join(" and ".join(keys) for keys in KEYS)
            raise UserError(
                f"{path} is not a composition file: its first item has {', '.join(map(repr, first)) or 'no keys'}, "
                f"and an item has one of {formats}; correct it, or move it out of the folder"
            )
    return files


def read_composition(folder: Path, files: list[Path]) -> CompositionData:
    """Open a composition set.

    Raises:
        UserError: an item has missing or invalid keys, an image is missing, or Winoground is mixed with others.
    """
    builder = _Builder(folder)
    by_file = {path: _entries(path) for path in files}
    winoground = [path for path, entries in by_file.items() if WINOGROUND in entries[0]]
    if winoground and len(winoground) != len(files):
        raise UserError(
            f"{folder}: {winoground[0].name} has Winoground's format and the others have not: use a folder for each"
        )
    for path, entries in by_file.items():
        for number, entry in enumerate(entries):
            try:
                builder.add(entry, path.stem)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UserError(f"{path}: item {number} has missing or invalid keys: {error!r}") from None
    return builder.data(bool(winoground))


class _Builder:
    """Collects items; images and texts that several items share are stored once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images: dict[tuple[str, tuple[int, ...]], int] = {}
        self.texts: dict[str, int] = {}
        self.items: list[CompositionItem] = []

    def add(self, entry: dict[str, Any], category: str) -> None:
        """Add an item of any of the formats; its own category overrides the given one."""
        # each of Winoground's two images has the other one's caption as its false one
        if WINOGROUND in entry:
            captions = [self._text(entry[f"caption_{side}"]) for side in (0, 1)]
            category = str(entry.get("collapsed_tag") or entry.get("tag") or category)
            for side in (0, 1):
                image = self._image(entry[f"image_{side}"])
                self.items.append(CompositionItem(image, captions[side], ((category, (captions[1 - side],)),)))
            return
        if "negatives" in entry:
            # an empty list is an item without false captions of that kind
            given = {str(name): one for name, one in entry["negatives"].items()}
            false = {name: texts_of(one) if one != [] else [] for name, one in given.items()}
            image, true = self._image(entry["image"]), entry["caption"]
        elif "negative_caption" in entry:
            image, true = self._image(entry["filename"]), entry["caption"]
            false = {category: [entry["negative_caption"]]}
        else:
            box = tuple(int(entry[name]) for name in BOX) if BOX[0] in entry else ()
            image, true = self._image(entry["image_path"], box), entry["true_caption"]
            attributes = entry.get("attributes")
            category = entry.get("relation_name") or ("_".join(attributes) if attributes else category)
            false = {category: [entry["false_caption"]]}
        first = self._text(true)
        indexed = tuple((name, tuple(self._text(text) for text in texts)) for name, texts in false.items())
        self.items.append(CompositionItem(image, first, indexed))

    def data(self, winoground: bool) -> CompositionData:
        """Return the set of all items."""
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
            for candidate in (name, f"{name}.png", f"{name}.jpg"):
                path = find_file(base, candidate)
                if path is not None:
                    return path
        raise UserError(f"{self.folder}: image {name} is neither in the folder nor in its images/")


def _cut(content: bytes, box: tuple[int, ...]) -> bytes:
    """Cut a box out of an image, without loss.

    Of an image that cannot be decoded nothing is returned, which whoever decodes it counts as unreadable.
    """
    x, y, width, height = box
    cut = io.BytesIO()
    try:
        # PNG, since another JPEG compression would change the pixels
        decode_as_pillow(content).crop((x, y, x + width, y + height)).save(cut, "PNG")
    except (UserError, *BROKEN):
        return b""
    return cut.getvalue()


def _entries(path: Path) -> list[dict[str, Any]]:
    tree = _tree(path)
    entries = list(tree.values()) if isinstance(tree, dict) and not _is_item(tree) else tree
    entries = [entries] if isinstance(entries, dict) else entries
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} has no items: remove it, or write a list of them")
    wrong = next((number for number, entry in enumerate(entries) if not isinstance(entry, dict)), None)
    if wrong is not None:
        raise UserError(f"{path}: item {wrong} is not an object: correct it, or move the file out of the folder")
    return entries


def _is_item(tree: dict[str, Any]) -> bool:
    return any(all(key in tree for key in keys) for keys in KEYS)


def _tree(path: Path) -> Any:
    """A file's JSON value, or the list of its JSON lines, whatever its suffix says."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        whole = error
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            if line.strip():
                rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            # a file of one value has no lines of JSON at all
            reason = f"line {number}: {error}" if rows else str(whole)
            raise UserError(f"{path} is neither JSON nor JSON lines: {reason}") from None
    return rows
