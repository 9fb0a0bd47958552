"""Results of finished sets on disk, so that an evaluation that was stopped resumes without measuring them again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from siclip.errors import UserError
from siclip.evaluation.encoder import fingerprint
from siclip.models.hashing import weights_hash
from siclip_platform.datasets.manifest import read_manifest
from siclip_platform.evaluation.find import Found
from siclip_platform.evaluation.measure import Subject
from siclip_platform.evaluation.results import Sampling, SetResult
from siclip_platform.storage.atomic import write_text_atomically
from siclip_platform.storage.hashing import canonical_hash

VERSION = "2"
"""Raise it whenever the same model and files give other results."""
# they decide how images are decoded and resized, and what the models compute
LIBRARIES = ("siclip-platform", "torch", "torchvision", "open_clip_torch", "pillow")


class KeptResults:
    """A folder with a file per finished set.

    A result is found by everything it depends on: the weights and names of the models, the split, the bootstrap, the
    versions of libraries, and the names, sizes and times of the set's files.
    """

    def __init__(
        self, folder: Path, subjects: Sequence[Subject], split: str, sampling: Sampling, *, fresh: bool = False
    ) -> None:
        """
        Args:
            folder: where the files are; it is created if it does not exist.
            subjects: the models.
            split: the split that is measured.
            sampling: the bootstrap.
            fresh: find nothing, and overwrite.

        Raises:
            UserError: the folder cannot be created.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}; name a folder with --cache") from None
        self.folder, self.fresh = folder, fresh
        self._common = {
            "version": VERSION,
            "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
            "models": [_model(subject) for subject in subjects],
            "split": split,
            "sampling": asdict(sampling),
        }

    def find(self, found: Found) -> SetResult | None:
        """Return the result of an earlier run, marked as kept; None if there is none or its file is damaged."""
        if self.fresh:
            return None
        try:
            tree = json.loads(self._path(found).read_bytes())
            return replace(TypeAdapter(SetResult).validate_python(tree), kept=True)
        except (OSError, ValueError, ValidationError):
            return None

    def keep(self, found: Found, result: SetResult) -> None:
        """Write the result of a set that was measured, atomically."""
        write_text_atomically(self._path(found), json.dumps(asdict(result)))

    def _path(self, found: Found) -> Path:
        assert found.folder is not None
        key = {**self._common, "set": found.name, "known": found.known is not None, "files": _files(found.folder)}
        digest = canonical_hash(key, spaced=True)
        safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in found.name)
        return self.folder / f"{safe}-{digest}.json"


def _model(subject: Subject) -> dict[str, object]:
    encoder = subject.encoder
    head = None if subject.head is None else [weights_hash(subject.head), subject.top]
    return {"name": encoder.name, "weights": fingerprint(encoder), "device": encoder.device.type, "head": head}


def _files(folder: Any) -> str:
    """A hash of the names, sizes and modification times of all files below a folder; a remote dataset's own hash."""
    if not isinstance(folder, Path):
        return read_manifest(folder).hash
    digest = hashlib.sha256()
    for parent, folders, names in os.walk(folder, followlinks=True):
        # os.walk visits them in this order, so the hash does not depend on the disk's
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            try:
                state = path.stat()
            except OSError:
                # a broken symbolic link, or a file that nobody may look at
                state = None
            line = f"{path.relative_to(folder)}\0{state and (state.st_size, state.st_mtime_ns)}\n"
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]
