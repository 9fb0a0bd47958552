"""Find evaluation sets by name, and open them by the layout of their folders."""

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
from siclip_platform.evaluation.sets import ClassificationData, Data
from siclip_platform.evaluation.webdataset_layout import SHARDS, read_webdataset
from siclip_platform.storage import AnyPath, RemotePath

LAYOUTS = (
    "SPLIT/nshards.txt (webdataset), manifest.json (a Parquet dataset), captions_*.json, dataset_*.json, *.token or "
    "*annotations*.csv (captions), a composition file, winogavil.jsonl, or folders of images by class"
)


@dataclass(frozen=True)
class Found:
    """A requested set.

    Attributes:
        name: the set's name.
        folder: where its files are; None if there are none.
        known: its entry if it is one of DataComp's 38 sets.
    """

    name: str
    folder: AnyPath | None
    known: SuiteSet | None


def find_sets(suite: str | None, data: AnyPath) -> list[Found]:
    """Find the requested sets.

    Args:
        suite: ``datacomp``, or names separated by commas, of the 38 sets or of folders in ``data``. None: ``data`` is
            the only set.
        data: the folder of the sets, or the one set, which may be a URI.

    Raises:
        UserError: the folder does not exist, or a name is neither one of the 38 nor a folder in it.
    """
    if isinstance(data, RemotePath):
        if suite is not None:
            raise UserError(
                f"--suite reads local folders, and {data} is a URI: copy the sets to a folder, or remove --suite"
            )
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
        raise UserError(
            f"--suite {suite!r} names {twice[0]!r} twice: results are named by their set, so name each set once"
        )
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
    folders = [data / folder for folder in known.folders]
    if known.task == "retrieval":
        folders.append(cache_folder(known, data))
    return next((folder for folder in folders if folder.is_dir()), None)


def open_set(found: Found, split: str) -> list[Data]:
    """Open a set that was found, by its folder's layout.

    Returns:
        One part, or two for a Parquet dataset with false captions.

    Raises:
        UserError: the folder has no supported layout, or its files do not agree.
    """
    folder = found.folder
    assert folder is not None
    # other layouts are recognized by their files, which only a local folder can list at once
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
    raise UserError(f"{folder} has no supported layout for split {split!r}; supported are {LAYOUTS}")


def _captioned(folder: Path, split: str) -> Data | None:
    if folder.parent.name == CACHE:
        return read_hub_cache(folder, find_arrow(folder, split))
    annotations = find_annotations(folder)
    return None if annotations is None else read_captions(folder, annotations, split)


def _checked(data: Data, found: Found) -> Data:
    names = getattr(data, "classnames", None)
    if isinstance(data, ClassificationData) and len(data.classnames) < 2 and not data.multilabel:
        raise UserError(
            f"{found.folder} has one class, {', '.join(data.classnames)!r}, and every accuracy would be 1: name the "
            "folder of a set, or add the other classes"
        )
    if found.known and found.known.classes and names is not None and len(names) != found.known.classes:
        raise UserError(
            f"{found.folder}: {found.known.title} has {found.known.classes} classes and {len(names)} are named: "
            "use the class names of this set"
        )
    return data
