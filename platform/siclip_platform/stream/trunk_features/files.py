"""The outputs of a frozen trunk, computed once and kept, so that every trial of a search trains from the same files.

A cache is a folder ``trunk-<hash of its key>`` of safetensors shards and a ``manifest.json``, written last. The
``images`` shards hold the K variants of every sample of a split in file order, one after the other; the ``texts``
shards hold every caption of the split once, in order of first appearance. Each has ``features`` (n, …) in bf16 and
``ids`` (n,) int64, the `stable_id` of the sample's id or of the caption. `CachedStream` reads them.

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
    """One safetensors file, ``path`` relative to the cache's folder."""

    path: str = Field(pattern=r"^(images|texts)-\d{5}\.safetensors$")
    rows: int = Field(ge=1)
    bytes: int = Field(ge=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class CacheManifest(Config):
    """What a cache holds, its shards in the order of their rows."""

    key: TrunkCacheKey
    images: tuple[CacheShard, ...]
    texts: tuple[CacheShard, ...]


@dataclass(frozen=True)
class TrunkCache:
    """A complete cache. It holds no open file, so it can be pickled."""

    folder: Path
    manifest: CacheManifest

    @property
    def key(self) -> TrunkCacheKey:
        return self.manifest.key

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.manifest.images + self.manifest.texts)


def open_trunk_cache(folder: Path, *, verify: bool = False) -> TrunkCache:
    """Read the manifest of a cache and compare the size, with ``verify`` also the SHA-256, of every shard with it.

    Raises:
        UserError: no manifest (an interrupted build has none), or shards that do not agree with it.
    """
    folder = folder.absolute()
    path = folder / MANIFEST
    remedy = "build the cache again: what is whole in it is kept"
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
    """Whether a shard agrees with its entry: there and of that size, with ``verify`` also of that checksum."""
    if not path.is_file() or path.stat().st_size != shard.bytes:
        return False
    return not verify or sha256_of(path) == shard.sha256
