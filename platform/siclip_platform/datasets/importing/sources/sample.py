"""A pair as a source gives it, and why one cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from siclip_platform.datasets.schema import ORIGINAL


class Reason(StrEnum):
    """Why a row is not taken over; the words of the ledger."""

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
    NOT_DOWNLOADED = "not downloaded"
    DUPLICATE_ID = "duplicate id"
    DUPLICATE_IMAGE = "duplicate image"
    NEAR_DUPLICATE = "near duplicate"


LEFT_OUT = frozenset({Reason.NOT_DOWNLOADED, Reason.DUPLICATE_IMAGE, Reason.NEAR_DUPLICATE})
"""Reasons that say nothing about damage: such rows do not count as bad."""


class Rejection(Exception):
    """A row that cannot be used."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Caption:
    text: str
    source: str = ORIGINAL
    model: str | None = None


@dataclass(frozen=True)
class SourceSample:
    """A pair. ``source`` is a file relative to the source's root, ``place`` where in it the pair stands.

    ``rejected``: the source itself shows that it cannot be used; then the other fields hold what is known.
    """

    source: str
    place: str
    id: str
    image: bytes | None = None
    captions: tuple[Caption, ...] = ()
    category: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    rejected: Rejection | None = None


def decode_text(data: bytes, what: str) -> str:
    """UTF-8 text, a byte order mark left out.

    Raises:
        Rejection: it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Rejection(Reason.UNDECODABLE_TEXT, f"{what} is not UTF-8: {error}") from None


def captions_of(value: Any) -> tuple[Caption, ...]:
    """Captions of a column's value: a text, a list of texts, or structs with a ``text`` (as in our own schema).

    Runs of white space become one space; blank texts among others are left out.

    Raises:
        Rejection: there is none, all are blank, or a text cannot be stored as UTF-8.
    """
    if value is None:
        raise Rejection(Reason.MISSING_CAPTION, "there is no caption")
    values = value if isinstance(value, list | tuple) else [value]
    if not values:
        raise Rejection(Reason.MISSING_CAPTION, "the list of captions is empty")
    found = [_caption(item) for item in values]
    kept = tuple(caption for caption in found if caption.text)
    if not kept:
        raise Rejection(Reason.EMPTY_CAPTION, "there is nothing but white space")
    return kept


def _caption(item: Any) -> Caption:
    known = item if isinstance(item, Mapping) else {"text": item}
    text = known.get("text")
    if isinstance(text, bytes):
        text = decode_text(text, "the caption")
    text = " ".join(str("" if text is None else text).split())
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Rejection(Reason.UNDECODABLE_TEXT, f"the caption holds what UTF-8 cannot: {error}") from None
    return Caption(text, known.get("source") or ORIGINAL, known.get("model"))
