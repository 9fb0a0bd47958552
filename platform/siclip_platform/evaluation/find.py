"""From names to data: which sets are asked for, where they lie, and in which layout."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from siclip.errors import UserError
from siclip.evaluation.suite import DATACOMP, SuiteSet, find_set, suggestion, suite_sets
from siclip_platform.datasets.manifest import MANIFEST
from siclip_platform.evaluation.caption_files import find_annotations, read_captions
from siclip_platform.evaluation.composition_files import find_composition, read_composition
from siclip_platform.evaluation.cue_file import FILE, read_cues
from siclip_platform.evaluation.datasets import read_dataset
from siclip_platform.evaluation.hub_cache import CACHE, cache_folder, find_arrow, read_hub_cache
from siclip_platform.evaluation.image_folder import is_image_folder, read_image_folder
from siclip_platform.evaluation.sets import Data
from siclip_platform.evaluation.webdataset_layout import SHARDS, read_webdataset
from siclip_platform.storage import AnyPath, RemotePath

LAYOUTS = (
    "SPLIT/nshards.txt (webdataset), manifest.json (a dataset of ours), captions_*.json, dataset_*.json, *.token or "
    "*annotations*.csv (captions), a composition file, winogavil.jsonl, or folders of images by class"
)


@dataclass(frozen=True)
class Found:
    """A set that was asked for. ``folder``: None where it is not on disk. ``known``: its entry if it is one of 38."""

    name: str
    folder: AnyPath | None
    known: SuiteSet | None


def find_sets(suite: str | None, data: AnyPath) -> list[Found]:
    """``suite``: ``datacomp``, or names separated by commas: of the 38 sets, or of folders in ``data``; None takes
    ``data`` itself as the one set.

    Raises:
        UserError: the folder is not there, or a name is neither one of the 38 nor a folder in it.
    """
    if isinstance(data, RemotePath):
        if suite is not None:
            raise UserError(f"--suite reads local folders, and {data} is a URI: copy the sets here, or leave it out")
        return [Found(data.name, data, find_set(data.name))]
    if not data.is_dir():
        raise UserError(f"data folder {data} does not exist: name one with --data")
    if suite is None:
        return [Found(data.resolve().name, data, find_set(data.resolve().name))]
    sets = suite_sets(suite)
    if sets is not None:
        return [Found(known.name, _folder_of(known, data), known) for known in sets]
    found = [_find(name.strip(), data) for name in suite.split(",") if name.strip()]
    twice = [name for name, count in Counter(each.name for each in found).items() if count > 1]
    if not found:
        raise UserError(f"--suite {suite!r} names no set: write names separated by commas")
    if twice:
        raise UserError(f"--suite {suite!r} names {twice[0]!r} twice: figures are told apart by the names of sets")
    return found


def _find(name: str, data: Path) -> Found:
    known = find_set(name)
    if known is not None:
        return Found(known.name, _folder_of(known, data), known)
    if (data / name).is_dir():
        return Found(Path(name).name, data / name, None)
    raise UserError(
        f"no set {name!r}: it is neither a folder in {data} nor one of the 38 sets of {DATACOMP!r}{suggestion(name)}"
    )


def _folder_of(known: SuiteSet, data: Path) -> Path | None:
    places = [data / folder for folder in known.folders]
    if known.task == "retrieval":
        places.append(cache_folder(known, data))
    return next((place for place in places if place.is_dir()), None)


def open_set(found: Found, split: str) -> list[Data]:
    """The set's data, by the layout that its folder has; a dataset of ours with false captions gives two kinds.

    Raises:
        UserError: the folder has no layout that can be read, or its files do not agree.
    """
    folder = found.folder
    assert folder is not None
    if isinstance(folder, RemotePath) or (folder / MANIFEST).is_file():
        return [part for part in read_dataset(folder, split) if part is not None]
    if (folder / split / SHARDS).is_file():
        return [_checked(read_webdataset(folder, split, found.name), found)]
    if (folder / FILE).is_file():
        return [read_cues(folder)]
    captioned = _captioned(folder, split)
    if captioned is not None:
        return [captioned]
    composition = find_composition(folder)
    if composition:
        return [read_composition(folder, composition)]
    if is_image_folder(folder, split):
        return [_checked(read_image_folder(folder, split, found.name), found)]
    raise UserError(f"{folder} has no layout that can be read for split {split!r}: {LAYOUTS}")


def _captioned(folder: Path, split: str) -> Data | None:
    if folder.parent.name == CACHE:
        return read_hub_cache(folder, find_arrow(folder, split))
    annotations = find_annotations(folder)
    return None if annotations is None else read_captions(folder, annotations, split)


def _checked(data: Data, found: Found) -> Data:
    names = getattr(data, "classnames", None)
    if found.known and found.known.classes and names is not None and len(names) != found.known.classes:
        raise UserError(
            f"{found.folder}: {found.known.title} has {found.known.classes} classes and {len(names)} are named: "
            "its class names are of another set"
        )
    return data
