"""Upload of a finished dataset: each manifest after the files that it lists, the dataset's own manifest last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from siclip.errors import UserError
from siclip_platform.datasets.manifest import MANIFEST, Dataset, ShardEntry, open_dataset
from siclip_platform.datasets.sidecar import SidecarKind, open_sidecar, sidecar_names
from siclip_platform.storage import AnyPath, as_path, check_writable, copy_file
from siclip_platform.storage.hashing import sha256_of

SENDERS = 4


@dataclass(frozen=True)
class Pushed:
    """An uploaded dataset.

    Attributes:
        dest: where it is.
        files: number of its files.
        sent: files sent by this call.
        bytes: size of all files.
    """

    dest: AnyPath
    files: int
    sent: int
    bytes: int


@dataclass(frozen=True)
class _File:
    """A file by its path in the dataset, with the SHA-256 in its manifest; None for a manifest."""

    path: str
    sha256: str | None = None


def push_dataset(folder: Path, dest: str | AnyPath, progress: Callable[[int, int], None] | None = None) -> Pushed:
    """Upload a dataset, its ledger and its finished captions and embeddings; files with the same bytes are kept.

    Each file is written completely or not at all, and the dataset's manifest is written last. A killed upload
    therefore leaves no dataset that could be read, and another call resumes it.

    Args:
        folder: of the dataset.
        dest: path or URI.
        progress: called with (files done, all files).

    Raises:
        UserError: the dataset is damaged, ``dest`` contains another dataset or other captions or embeddings of the
            same name, or ``dest`` cannot be written.
    """
    dataset, target = open_dataset(folder.absolute()), as_path(dest)
    check_writable(target, "DEST")
    source, files = dataset.local_folder, list(_files(dataset))
    for file in files:
        if file.sha256 is None:
            _refuse_other(file.path, source, target)
    done = 0

    def send(file: _File) -> bool:
        nonlocal done
        sent = _send(file, source, target)
        done += 1
        if progress is not None:
            progress(done, len(files))
        return sent

    # Files in parallel first, then the manifests in order.
    listed = [file for file in files if file.sha256 is not None]
    with ThreadPoolExecutor(SENDERS) as senders:
        sent = sum(senders.map(send, listed))
    sent += sum(send(file) for file in files if file.sha256 is None)
    return Pushed(target, len(files), sent, sum((source / file.path).stat().st_size for file in files))


def _files(dataset: Dataset) -> Iterator[_File]:
    """Yield the files in upload order: manifests after the files that they list, the dataset's own last."""
    ledger = dataset.manifest.recipe.get("ledger")
    if ledger:
        yield _File(ledger["path"], ledger["sha256"])
    for kind in get_args(SidecarKind):
        for name in sidecar_names(dataset.folder, kind):
            yield from _listed(open_sidecar(dataset, kind, name).manifest.splits, f"{kind}/{name}/")
    yield from _listed(dataset.manifest.splits, "")


def _listed(splits: dict[str, list[ShardEntry]], folder: str) -> Iterator[_File]:
    for entries in splits.values():
        for entry in entries:
            yield _File(folder + entry.path, entry.sha256)
    yield _File(folder + MANIFEST)


def _refuse_other(manifest: str, source: Path, target: AnyPath) -> None:
    """Refuse to replace another manifest: during the upload a reader would get a mixture of old and new files."""
    there = target / manifest
    if there.is_file() and there.read_bytes() != (source / manifest).read_bytes():
        what = "another dataset" if manifest == MANIFEST else f"other {manifest.partition('/')[0]}"
        raise UserError(f"{there.parent} contains {what}: name another destination, or delete those files first")


def _send(file: _File, source: Path, target: AnyPath) -> bool:
    """Upload a file unless it is there with the same bytes; return whether it was sent."""
    here, there = source / file.path, target / file.path
    try:
        same_size = file.sha256 is not None and there.stat().st_size == here.stat().st_size
        # Object stores report no SHA-256, so the file is read back; the size excludes most files first.
        if same_size and sha256_of(there) == file.sha256:
            return False
    except FileNotFoundError:
        pass
    if file.sha256 is not None and sha256_of(here) != file.sha256:
        raise UserError(f"{here} differs from the SHA-256 in its manifest: run siclip-platform data verify {source}")
    if isinstance(there, Path):
        there.parent.mkdir(parents=True, exist_ok=True)
    copy_file(here, there)
    return True
