"""The columns of a table by their role, and a row as a sample."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import math
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from siclip.config import Config
from siclip.errors import UserError
from siclip_platform.datasets.importing.sources.sample import Caption, Reason, Rejection, SourceSample, captions_of
from siclip_platform.datasets.importing.sources.splits import split_named, split_of
from siclip_platform.storage import READ_ERRORS, without_credentials

IMAGE = ("image", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "img")
PATH = ("path", "filepath", "file_path", "file_name", "filename", "file", "image_path", "img_path")
CAPTION = ("captions", "caption", "txt", "text", "title")
ID = ("id", "key", "uid", "image_id")
CATEGORY = ("category", "class", "label")
SPLIT = "split"
NO_VALUE = frozenset({"nan", "NaN", "null", "NULL", "None", "<NA>"})
"""What other programs write into a text file where a value is missing."""
LIST = re.compile(r"""\s*\[\s*(['"].*)?\]\s*$""", re.DOTALL)
GLUED = re.compile(r"""['"]\s+['"]""")
NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


class RowReader(Protocol):
    """`access.Reader`: reads the files that rows name."""

    def locate(self, name: str, beside: str) -> str: ...

    def read(self, location: str) -> bytes: ...


class ColumnNames(Config):
    """Names of columns; None: the first of the usual names that the table has.

    Attributes:
        image: bytes or path of the image.
        caption: one or more columns with captions.
        id: of the sample.
        category: of the image.
        split: of the row.
    """

    image: str | None = None
    caption: tuple[str, ...] = ()
    id: str | None = None
    category: str | None = None
    split: str | None = None

    def found_in(self, names: Sequence[str], where: str) -> ColumnNames:
        """Fill in the columns that are None; ``id``, ``category`` and ``split`` stay None if the table has none.

        Args:
            names: columns of the table.
            where: the table's name for the message.

        Raises:
            UserError: the table lacks a named column, has one twice, or has no usual column for the image or the
                caption.
        """
        twice = sorted({name for name in names if list(names).count(name) > 1})
        if twice:
            raise UserError(f"{where} has the column {twice[0]!r} more than once: rename or remove one of them")
        for named in (self.image, *self.caption, self.id, self.category, self.split):
            if named is not None and named not in names:
                raise UserError(f"{where} has no column {named!r}: it has {', '.join(names)}")
        image = self.image or _first((*IMAGE, *PATH), names)
        caption = self.caption or tuple(name for name in [_first(CAPTION, names, image)] if name)
        if image is None or not caption:
            what, option = ("an image", "--image-column") if image is None else ("a caption", "--caption-column")
            raise UserError(
                f"no column of {where} has a usual name for {what}: it has {', '.join(names)}; name one with {option}"
            )
        return ColumnNames(
            image=image,
            caption=caption,
            id=self.id or _first(ID, names),
            category=self.category or _first(CATEGORY, names),
            split=self.split or _first((SPLIT,), names),
        )


def _first(wanted: Sequence[str], names: Sequence[str], taken: str | None = None) -> str | None:
    return next((name for name in wanted if name in names and name != taken), None)


def row_sample(
    row: Mapping[str, Any], columns: ColumnNames, source: str, location: str, reader: RowReader
) -> SourceSample:
    """Return a row of a table as a sample.

    Args:
        row: column → value.
        columns: from `ColumnNames.found_in`.
        source: as in `SourceSample`.
        location: as in `SourceSample`.
        reader: of the files that rows name.
    """
    try:
        return _row_sample(row, columns, source, location, reader)
    except RecursionError:
        rejected = Rejection(Reason.DAMAGED_ROW, "a value is nested too deeply")
        return SourceSample(source, location, "", rejected=rejected)


def _row_sample(
    row: Mapping[str, Any], columns: ColumnNames, source: str, location: str, reader: RowReader
) -> SourceSample:
    used = {columns.image, *columns.caption, columns.id, columns.category, columns.split}
    sample_id = f"{posixpath.splitext(source)[0]}:{location}"
    meta = {name: plain(value) for name, value in row.items() if name not in used and value is not None}
    captions: tuple[Caption, ...] = ()
    image = rejected = split = folder_split = identity = None
    by_path = False
    value = row.get(columns.image or "")
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    status = row.get("status")
    try:
        sample_id = _id(row.get(columns.id) if columns.id else None) or sample_id
        # img2dataset's column: rows that it could not download have no image.
        if isinstance(status, str) and status != "success" and value is None:
            raise Rejection(Reason.NOT_DOWNLOADED, f"{status}: {row.get('error_message')}")
        split = split_named(row.get(columns.split)) if columns.split else None
        if by_path := isinstance(value, str) and bool(value):
            image, identity = _named_image(value, source, reader)
            # Captions of others are matched by it. A query may hold a signature, which must not be stored.
            if value.startswith(("http://", "https://")) and "?" not in value:
                meta.setdefault("url", without_credentials(value))
            folder_split = split_of(value, folders_only=True) if _is_relative(value) else None
        else:
            image = image_bytes(value)
            identity = f"sha256:{hashlib.sha256(image).hexdigest()}"
        captions = _captions(row, columns)
    except Rejection as error:
        rejected = error
    category = _category(row.get(columns.category)) if columns.category else None
    return SourceSample(
        source,
        location,
        sample_id,
        image=image,
        captions=captions,
        category=category,
        meta=meta,
        rejected=rejected,
        split=split,
        folder_split=folder_split,
        identity=identity,
        by_path=by_path,
    )


def _is_relative(path: str) -> bool:
    return "://" not in path and not path.startswith(("/", ".."))


def _id(value: Any) -> str | None:
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bool | list | tuple | Mapping | bytes):
        raise Rejection(Reason.DAMAGED_ROW, f"the id is a {type(value).__name__}, not a text or a number")
    return str(value)


def _category(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return value if isinstance(value, str) else str(plain(value))


def _captions(row: Mapping[str, Any], columns: ColumnNames) -> tuple[Caption, ...]:
    """Return the captions of a row; null values of several columns are omitted."""
    if len(columns.caption) == 1:
        return captions_of(row.get(columns.caption[0]))
    values = [row[name] for name in columns.caption if row.get(name) is not None]
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return captions_of(flat or None)


def _named_image(name: str, source: str, reader: RowReader) -> tuple[bytes, str]:
    """Return the content of a file that a row names, and where the file is.

    Raises:
        Rejection: the file cannot or may not be read.
    """
    location = reader.locate(name, source)
    try:
        return reader.read(location), f"path:{location}"
    except READ_ERRORS as error:
        # The ledger must not contain the signature of a signed URI, which the error may quote.
        clean = without_credentials(name)
        problem = str(error).replace(name, clean).replace(name.removeprefix(clean), "")
        raise Rejection(Reason.MISSING_IMAGE, f"{clean}: {problem}") from None


def image_bytes(value: Any) -> bytes:
    """Return the encoded image of a value.

    Raises:
        Rejection: there is none.
    """
    if value is None or value == "":
        raise Rejection(Reason.MISSING_IMAGE, "there is no image")
    if not isinstance(value, bytes | bytearray | memoryview):
        raise Rejection(Reason.NOT_AN_IMAGE, f"the image is a {type(value).__name__}, neither bytes nor a path")
    return bytes(value)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; for ``object_pairs_hook``.

    Raises:
        Rejection: a key occurs twice, and only one of its values could be kept.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Rejection(Reason.DAMAGED_ROW, f"the key {twice!r} occurs twice")
    return found


def text_value(text: str) -> Any:
    """Return the value that a field of a CSV file stands for as a caption: None, a list of texts, or the text.

    Raises:
        Rejection: the field begins as a list of texts and is none.
    """
    if text.strip() in NO_VALUE:
        return None
    if not LIST.match(text):
        return text
    parsers: list[Callable[[str], Any]] = [json.loads]
    # Python joins texts without a comma between them, which is how numpy prints its lists.
    if not GLUED.search(text):
        parsers.append(ast.literal_eval)
    for parse in parsers:
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list):
            return value
    raise Rejection(Reason.MISSING_CAPTION, "the caption begins as a list of texts and is none")


def plain(value: Any) -> Any:
    """Convert a value of a table to a JSON value."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return NOT_FINITE[str(value)]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
