"""Hashes of files and of JSON values."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from siclip_platform.storage.path import AnyPath, store_errors

CHUNK_BYTES = 8 * 2**20


def canonical_hash(tree: object, digits: int = 16, *, spaced: bool = False) -> str:
    """Return the first ``digits`` hex digits of the SHA-256 of a value's canonical JSON (sorted keys, ASCII).

    These digits are stored in manifests, cursors, cache names and recipes: equal trees must always give equal digits.

    Args:
        tree: JSON values only.
        digits: at most 64.
        spaced: separate items by ``", "`` and ``": "``, the default of `json.dumps`, instead of without spaces; for
            hashes that are stored in this form.
    """
    separators = None if spaced else (",", ":")
    text = json.dumps(tree, sort_keys=True, separators=separators)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def sha256_of(path: AnyPath) -> str:
    """Return the SHA-256 of a file's bytes, in hex.

    Raises:
        StoreError: the object store does not answer or refuses the request.
    """
    if isinstance(path, Path):
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    with store_errors(path), path.open() as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
