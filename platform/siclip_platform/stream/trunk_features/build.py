"""Build a trunk cache: one process at a time, shard by shard; complete shards are kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from siclip.errors import UserError
from siclip.models.clip import Clip
from siclip.models.freezing import eval_mode
from siclip_platform.datasets.manifest import MANIFEST, open_dataset
from siclip_platform.datasets.sidecar import open_sidecar
from siclip_platform.storage import AnyPath
from siclip_platform.storage.atomic import TEMPORARY, replacing, write_text_atomically
from siclip_platform.storage.hashing import sha256_of
from siclip_platform.storage.locking import locked
from siclip_platform.stream.trunk_features.files import (
    CacheManifest,
    CacheShard,
    TrunkCache,
    is_whole,
    open_trunk_cache,
)
from siclip_platform.stream.trunk_features.key import TrunkCacheKey
from siclip_platform.stream.trunk_features.sources import FeatureSource, image_source, text_source

SHARD_BYTES = 256 * 2**20
"""The most that a killed build loses, and the size of the features that are in memory at a time."""
Progress = Callable[[int, int], None]
"""Takes (features computed or kept, all features)."""


def build_trunk_cache(
    model: Clip,
    dataset_folder: str | AnyPath,
    split: str,
    root: Path,
    *,
    augmentations: int = 1,
    augmentation_seed: int = 0,
    captions: Sequence[str] = (),
    crops: str | None = None,
    batch: int = 64,
    verify: bool = False,
    progress: Progress | None = None,
) -> TrunkCache:
    """Return the cache of a model's trunk for a split; what is missing or damaged is computed.

    The trunk runs on the model's device in eval mode, in fp32, and its output is rounded to bf16 once; a training
    under bf16 autocast without a cache rounds at every layer instead. A second process waits for the first. A killed
    build resumes with the shards that it completed: at most one is computed again.

    Args:
        model: the model whose trunk is used.
        dataset_folder: the dataset.
        split: its split.
        root: the folder that contains one folder per cache.
        augmentations: K, fixed random crops of every image; 1 for the plain image.
        augmentation_seed: draws the crops; has no effect for K = 1.
        captions: names of caption sets beside the dataset whose texts are stored too.
        crops: name of an embedding set beside it, whose crops the images get in place of ``augmentations``.
        batch: inputs that go through a trunk at once.
        verify: compare the checksums of an existing cache, not only the sizes.
        progress: called in this process after every batch that is computed; never if the cache was complete.

    Raises:
        UserError: the dataset or a sidecar cannot be read, there is no such split or it has no samples,
            ``augmentations`` is below 1, ``root`` cannot be written, or its disk has too little space, which is
            checked before anything is computed.
    """
    dataset = open_dataset(dataset_folder)
    texts = [open_sidecar(dataset, "captions", name) for name in captions]
    boxes = open_sidecar(dataset, "embeddings", crops) if crops else None
    key = TrunkCacheKey.of(model, dataset, split, augmentations, augmentation_seed, texts, boxes)
    if dataset.rows(split) == 0:
        raise UserError(f"split {split!r} of dataset {dataset.folder} has no samples: name a split that has some")
    folder = root.absolute() / f"trunk-{key.hash}"
    found = _complete(folder, verify)
    if found:
        return found
    with _claimed(folder), eval_mode(model), torch.inference_mode():
        # another process may have built it while this one waited for the lock
        found = _complete(folder, verify)
        if found:
            return found
        sources = (
            image_source(model, dataset, split, key, boxes, batch),
            text_source(model, dataset, split, texts, batch),
        )
        return _build(folder, key, sources, verify, progress)


def _complete(folder: Path, verify: bool) -> TrunkCache | None:
    try:
        return open_trunk_cache(folder, verify=verify)
    except UserError:  # missing, incomplete or damaged: the build completes it
        return None


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Lock the folder for one build at a time."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / ".lock"))
        except OSError as error:
            raise UserError(
                f"cannot store trunk features in {folder}: {error}; name a folder that can be written"
            ) from None
        yield


@dataclass(frozen=True)
class _Part:
    """A shard to write: the features start ≤ i < stop of a source."""

    source: FeatureSource
    path: Path
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stop - self.start, *self.source.shape)


def _parts(source: FeatureSource, folder: Path) -> Iterator[_Part]:
    """Shards of at most `SHARD_BYTES`, or of one sample."""
    step = max(1, SHARD_BYTES // (source.row_bytes * source.together)) * source.together
    for number, start in enumerate(range(0, source.rows, step)):
        path = folder / f"{source.name}-{number:05d}.safetensors"
        yield _Part(source, path, start, min(start + step, source.rows))


def _build(
    folder: Path,
    key: TrunkCacheKey,
    sources: tuple[FeatureSource, FeatureSource],
    verify: bool,
    progress: Progress | None,
) -> TrunkCache:
    """Write what is missing, then the manifest; the folder is claimed."""
    parts = [part for source in sources for part in _parts(source, folder)]
    listed = _listed(folder)
    kept = {part.path: shard for part in parts if (shard := _kept(part, listed, verify))}
    _check_space(folder, key, sources, kept.values())
    done, total = sum(shard.rows for shard in kept.values()), sum(source.rows for source in sources)

    def count(rows: int) -> None:
        nonlocal done
        done += rows
        if progress is not None:
            progress(done, total)

    shards = {part.path: kept.get(part.path) or _write(part, count) for part in parts}
    # left by a killed build, or by one with another shard size
    for path in {*folder.glob("*.safetensors"), *folder.glob(TEMPORARY)} - shards.keys():
        path.unlink()
    images, texts = (tuple(shards[p.path] for p in parts if p.source is source) for source in sources)
    # written last: a folder without it is not a cache
    manifest = CacheManifest(key=key, images=images, texts=texts)
    write_text_atomically(folder / MANIFEST, json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n")
    return TrunkCache(folder, manifest)


def _write(part: _Part, count: Callable[[int], None]) -> CacheShard:
    """Compute a shard and write it whole or not at all."""
    features = torch.empty(part.shape, dtype=torch.bfloat16)
    ids = np.empty(len(features), dtype=np.int64)
    first = 0
    for some, inputs in part.source.inputs(part.start, part.stop):
        last = first + len(some)
        ids[first:last] = some
        features[first:last] = part.source.trunk(inputs)
        first = last
        count(len(some))
    with replacing(part.path) as temporary:
        save_file({"features": features, "ids": torch.from_numpy(ids)}, temporary)
    return _entry(part)


def _entry(part: _Part) -> CacheShard:
    """The manifest's entry of a shard on disk."""
    size, checksum = part.path.stat().st_size, sha256_of(part.path)
    return CacheShard(path=part.path.name, rows=part.shape[0], bytes=size, sha256=checksum)


def _listed(folder: Path) -> dict[str, CacheShard]:
    """The shards that the folder's manifest names, whether or not they exist; none without a valid manifest."""
    try:
        manifest = CacheManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, ValidationError):
        return {}
    return {shard.path: shard for shard in manifest.images + manifest.texts}


def _kept(part: _Part, listed: Mapping[str, CacheShard], verify: bool) -> CacheShard | None:
    """The entry of a shard that need not be computed again, else None.

    It agrees with the manifest. A killed build leaves no manifest; then the shape must be right, since a shard gets
    its name only when it is complete.
    """
    if not part.path.is_file():
        return None
    shard = listed.get(part.path.name)
    if shard is not None and not is_whole(part.path, shard, verify):
        return None
    try:
        with safe_open(part.path, "pt") as file:
            fits = tuple(file.get_slice("features").get_shape()) == part.shape
    except SafetensorError:
        return None
    return (shard or _entry(part)) if fits else None


def _check_space(
    folder: Path, key: TrunkCacheKey, sources: tuple[FeatureSource, FeatureSource], kept: Iterable[CacheShard]
) -> None:
    """Refuse a cache that does not fit on the disk."""
    images, texts = sources
    total = sum(source.rows * source.row_bytes for source in sources)
    missing = total - sum(shard.bytes for shard in kept)
    free = shutil.disk_usage(folder).free
    if missing > free:
        crops = f" × {key.augmentations} crops" if key.augmentations > 1 else ""
        raise UserError(
            f"the trunk features of split {key.split!r} take {total / 1e9:.2f} GB ({images.rows // images.together} "
            f"images{crops} × {images.row_bytes} bytes, {texts.rows} captions × {texts.row_bytes} bytes); "
            f"{missing / 1e9:.2f} GB are still to be written and the disk of {folder} has {free / 1e9:.2f} GB free: "
            "free space, name another folder, or use a smaller dataset or fewer augmentations"
        )
