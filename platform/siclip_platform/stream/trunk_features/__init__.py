"""Outputs of a frozen trunk: computed once, stored in files and streamed in place of images."""

from siclip_platform.stream.trunk_features.build import build_trunk_cache
from siclip_platform.stream.trunk_features.files import TrunkCache, open_trunk_cache
from siclip_platform.stream.trunk_features.key import TrunkCacheKey, trunk_hash
from siclip_platform.stream.trunk_features.stream import CachedStream, StoredFeatures

__all__ = [
    "CachedStream",
    "StoredFeatures",
    "TrunkCache",
    "TrunkCacheKey",
    "build_trunk_cache",
    "open_trunk_cache",
    "trunk_hash",
]
