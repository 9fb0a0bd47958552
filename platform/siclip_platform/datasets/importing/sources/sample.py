"""A sample as its source has it, and the reasons for rejecting one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from siclip_platform.datasets.schema import ORIGINAL

if TYPE_CHECKING:
    from siclip_platform.datasets.importing.sources.reinforced import Reinforcement


class Reason(StrEnum):
    """Why a row is rejected; the values of the ledger's column ``reason``."""

    TRUNCATED = "truncated"
    NOT_AN_IMAGE = "not an image"
    DAMAGED_IMAGE = "damaged image"
    TOO_SMALL = "too small"
    DECOMPRESSION_BOMB = "decompression bomb"
    ANIMATED = "animated"
    MISSING_IMAGE = "missing image"
    MISSING_CAPTION = "missing caption"
    EMPTY_CAPTION = "empty caption"
    UNDECODABLE_TEXT = "undecodable text"
    DAMAGED_ROW = "damaged row"
    DAMAGED_SOURCE = "damaged source"
    SCATTERED = "scattered members"
    REFUSED_PATH = "refused path"
    NOT_DOWNLOADED = "not downloaded"
    DUPLICATE_ID = "duplicate id"
    DUPLICATE_IMAGE = "duplicate image"
    NEAR_DUPLICATE = "near duplicate"


NOT_BAD = frozenset({Reason.NOT_DOWNLOADED, Reason.DUPLICATE_IMAGE, Reason.NEAR_DUPLICATE})
"""Reasons that are no sign of damage: such rows do not count as bad."""


class Rejection(Exception):
    """A row cannot be used, for a `Reason`. ``detail`` is stored in the ledger."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Caption:
    """A caption of a sample; ``source`` and ``model`` as in the dataset's schema."""

    text: str
    source: str = ORIGINAL
    model: str | None = None


@dataclass(frozen=True)
class SourceSample:
    """An image with its captions, as the source has them.

    Attributes:
        source: a file, relative to the source's root.
        location: of the sample in that file: the index of a row, or the name of a member.
        id: of the sample.
        image: encoded.
        captions: at least one, unless the sample is rejected.
        category: of the image.
        meta: JSON values of other columns.
        split: that the sample itself names; None: the part's.
        folder_split: that the folder of its image names, used if the part has none.
        identity: of the image among the rows of a table: rows with equal identities are one image. None: the sample
            is never merged with another.
        by_path: the image was read from a path that a row names, not from the source's own bytes.
        digest: SHA-256 and size of an image that is no longer in memory.
        rejected: why the reader could not read the sample. The other fields then have what is known.
        reinforcement: captions and embeddings that the source has besides.
    """

    source: str
    location: str
    id: str
    image: bytes | None = None
    captions: tuple[Caption, ...] = ()
    category: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    rejected: Rejection | None = None
    split: str | None = None
    folder_split: str | None = None
    identity: str | None = None
    by_path: bool = False
    digest: tuple[str, int] | None = None
    reinforcement: Reinforcement | None = None

    def without_image(self) -> SourceSample:
        """Return the sample with the digest in place of the image, so that many can wait in memory."""
        digest = None if self.image is None else (hashlib.sha256(self.image).hexdigest(), len(self.image))
        return replace(self, image=None, captions=(), meta={}, digest=digest, reinforcement=None)


def decode_text(data: bytes, what: str) -> str:
    """Decode UTF-8 text without a byte order mark; ``what`` names it in the ledger.

    Raises:
        Rejection: the bytes are not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Rejection(Reason.UNDECODABLE_TEXT, f"{what} is not UTF-8: {error}") from None


def captions_of(value: Any) -> tuple[Caption, ...]:
    """Return the captions of a value: a text, or a list of texts or of structs with a ``text`` (as in `SCHEMA`).

    Runs of white space become one space. Blank texts, and nulls of a list, are dropped.

    Raises:
        Rejection: there is no caption, all are blank, a text cannot be encoded as UTF-8, or the value is something
            else: a number, a boolean, a map, a list of lists.
    """
    if value is None or _is_nan(value):
        raise Rejection(Reason.MISSING_CAPTION, "there is no caption")
    values = [item for item in value if item is not None] if isinstance(value, list) else [value]
    if not values:
        raise Rejection(Reason.MISSING_CAPTION, "the list of captions is empty")
    found = [_caption(item) for item in values]
    kept = tuple(caption for caption in found if caption.text)
    if not kept:
        raise Rejection(Reason.EMPTY_CAPTION, "there is nothing but white space")
    return kept


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _caption(item: Any) -> Caption:
    known = item if isinstance(item, Mapping) and "text" in item else {"text": item}
    text = known.get("text")
    if isinstance(text, bytes):
        text = decode_text(text, "the caption")
    if not isinstance(text, str | None) or (text is None and known is not item):
        raise Rejection(Reason.MISSING_CAPTION, f"the caption is a {_kind(text)}, not a text or a list of texts")
    text = " ".join((text or "").split())
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Rejection(Reason.UNDECODABLE_TEXT, f"the caption holds what UTF-8 cannot: {error}") from None
    return Caption(text, known.get("source") or ORIGINAL, known.get("model"))


def _kind(value: Any) -> str:
    """Name the type of a value; Arrow gives the entries of a map as tuples."""
    names = {list: "list of lists", tuple: "map", dict: "map without a text", bool: "boolean", float: "number"}
    return {**names, int: "number"}.get(type(value), type(value).__name__)
