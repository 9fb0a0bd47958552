"""The columns of a table by their role, and a row as a sample."""

from __future__ import annotations

import base64
import math
import posixpath
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from siclip.config import Config
from siclip.errors import UserError
from siclip_platform.datasets.importing.sources.sample import Caption, Reason, Rejection, SourceSample, captions_of
from siclip_platform.storage import READ_ERRORS, without_credentials

IMAGE = ("image", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "img")
PATH = ("path", "filepath", "file_path", "file_name", "filename", "file", "image_path", "img_path")
CAPTION = ("captions", "caption", "txt", "text", "title")
ID = ("id", "key", "uid", "image_id")
CATEGORY = ("category", "class", "label")


class ColumnNames(Config):
    """Names of columns; None: the first of the usual names that the table has.

    Attributes:
        image: bytes or path of the image.
        caption: one or more columns with captions.
        id: of the sample.
        category: of the image.
    """

    image: str | None = None
    caption: tuple[str, ...] = ()
    id: str | None = None
    category: str | None = None

    def found_in(self, names: Sequence[str], where: str) -> ColumnNames:
        """Fill in the columns that are None; ``id`` and ``category`` stay None if the table has no such column.

        Args:
            names: columns of the table.
            where: the table's name for the message.

        Raises:
            UserError: the table lacks a named column, or has no usual column for the image or the caption.
        """
        for named in (self.image, *self.caption, self.id, self.category):
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
        )


def _first(wanted: Sequence[str], names: Sequence[str], taken: str | None = None) -> str | None:
    return next((name for name in wanted if name in names and name != taken), None)


def row_sample(
    row: Mapping[str, Any], columns: ColumnNames, source: str, location: str, read: Callable[[str], bytes]
) -> SourceSample:
    """Return a row of a table as a sample.

    Args:
        row: column → value.
        columns: from `ColumnNames.found_in`.
        source: as in `SourceSample`.
        location: as in `SourceSample`.
        read: returns the bytes of an image for its path.
    """
    stem = posixpath.splitext(source)[0]
    identity = row.get(columns.id) if columns.id else None
    sample_id = str(identity) if identity not in (None, "") else f"{stem}:{location}"
    used = {columns.image, *columns.caption, columns.id, columns.category}
    meta = {name: plain(value) for name, value in row.items() if name not in used and value is not None}
    category = row.get(columns.category) if columns.category else None
    captions: tuple[Caption, ...] = ()
    image = rejected = None
    status = row.get("status")
    try:
        # img2dataset's column: rows that it could not download have no image.
        if isinstance(status, str) and status != "success" and row.get(columns.image or "") is None:
            raise Rejection(Reason.NOT_DOWNLOADED, f"{status}: {row.get('error_message')}")
        image = image_bytes(row.get(columns.image or ""), read)
        captions = _captions(row, columns)
    except Rejection as error:
        rejected = error
    text = None if category is None else str(category)
    return SourceSample(source, location, sample_id, image, captions, text, meta, rejected)


def _captions(row: Mapping[str, Any], columns: ColumnNames) -> tuple[Caption, ...]:
    """Return the captions of a row; null values of several columns are omitted."""
    if len(columns.caption) == 1:
        return captions_of(row.get(columns.caption[0]))
    values = [row[name] for name in columns.caption if row.get(name) is not None]
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return captions_of(flat or None)


def image_bytes(value: Any, read: Callable[[str], bytes]) -> bytes:
    """Return the encoded image of a value: bytes, a path, or a struct with ``bytes`` or ``path`` (Hugging Face).

    Raises:
        Rejection: there is no image, or its file cannot be read.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if value is None or value == "":
        raise Rejection(Reason.MISSING_IMAGE, "there is no image")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str):
        raise Rejection(Reason.NOT_AN_IMAGE, f"the image is a {type(value).__name__}, neither bytes nor a path")
    try:
        return read(value)
    except READ_ERRORS as error:
        # The ledger must not contain the signature of a signed URI, which the error may quote.
        clean = without_credentials(value)
        problem = str(error).replace(value, clean).replace(value.removeprefix(clean), "")
        raise Rejection(Reason.MISSING_IMAGE, f"{clean}: {problem}") from None


def plain(value: Any) -> Any:
    """Convert a value of a table to a JSON value."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)
