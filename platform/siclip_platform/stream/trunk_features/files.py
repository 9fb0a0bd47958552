"""The files of a trunk cache, from which every trial of a search can train.

A cache is a folder ``trunk-<hash of its key>`` with safetensors shards and a ``manifest.json``, written last. The
``images`` shards store the K variants of every sample of a split, in file order; the ``texts`` shards store every
caption of the split once, in order of first appearance. Each has ``features`` (n, …) in bf16 and ``ids`` (n,) int64,
the `stable_id` of the sample's id or of the caption. `CachedStream` reads them.

K is the number of variants of an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from siclip.config import Config
from siclip.errors import UserError
from siclip_platform.datasets.manifest import MANIFEST
from siclip_platform.storage.hashing import sha256_of
from siclip_platform.stream.trunk_features.key import TrunkCacheKey


class CacheShard(Config):
    """One safetensors file.

    Attributes:
        path: relative to the cache's folder.
        rows: the number of features.
        bytes: the file's size.
        sha256: the file's checksum, in hex.
    """

    path: str = Field(pattern=r"^(images|texts)-\d{5}\.safetensors$")
    rows: int = Field(ge=1)
    bytes: int = Field(ge=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class CacheManifest(Config):
    """A cache's key and its shards, in the order of their rows."""

    key: TrunkCacheKey
    images: tuple[CacheShard, ...]
    texts: tuple[CacheShard, ...]


@dataclass(frozen=True)
class TrunkCache:
    """A complete cache; picklable, since it has no open files."""

    folder: Path
    manifest: CacheManifest

    @property
    def key(self) -> TrunkCacheKey:
        return self.manifest.key


def open_trunk_cache(folder: Path, *, verify: bool = False) -> TrunkCache:
    """Open a cache and compare every shard with the manifest.

    Args:
        folder: the cache's folder.
        verify: compare checksums, not only sizes.

    Raises:
        UserError: there is no manifest (an interrupted build has none), or a shard does not agree with it.
    """
    # a worker that gets the pickled cache may have another working directory
    folder = folder.absolute()
    path = folder / MANIFEST
    remedy = "build the cache again: its complete shards are kept"
    try:
        manifest = CacheManifest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{folder} is not a complete trunk cache, {MANIFEST} cannot be read ({reason}): {remedy}"
        ) from None
    bad = [s.path for s in manifest.images + manifest.texts if not is_whole(folder / s.path, s, verify)]
    if bad:
        raise UserError(
            f"trunk cache {folder} has {len(bad)} missing or damaged shards ({', '.join(bad[:3])}): {remedy}"
        )
    return TrunkCache(folder, manifest)


def is_whole(path: Path, shard: CacheShard, verify: bool) -> bool:
    """Return whether a shard exists with the size and, with ``verify``, the checksum of its entry."""
    if not path.is_file() or path.stat().st_size != shard.bytes:
        return False
    return not verify or sha256_of(path) == shard.sha256
