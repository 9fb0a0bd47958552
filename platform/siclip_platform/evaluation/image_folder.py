"""Read a folder of images by class: FOLDER/SPLIT/CLASS/IMAGE or FOLDER/CLASS/IMAGE."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from siclip.errors import UserError
from siclip_platform.evaluation.prompts import CLASSNAMES, PROMPTS, TEMPLATES, class_prompts
from siclip_platform.evaluation.sets import ClassificationData, EvaluationSample

NOT_DATA = re.compile(
    r"\..*|readme.*|licen[cs]e.*|copying.*|citation.*|thumbs\.db|desktop\.ini|.*\.(md|rst|html|pdf|md5|sha256)",
    re.IGNORECASE,
)
"""Names of files that describe a set, or that a system writes beside it."""
EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
SHOWN = 3


def is_image_folder(folder: Path, split: str) -> bool:
    """Return whether a class folder has images."""
    return any(_images(each) for each in _class_folders(folder, split))


def read_image_folder(folder: Path, split: str, set_name: str) -> ClassificationData:
    """Open a set of images by class.

    Labels are the indices of the class folders, sorted by name, or by number if all names are numbers. Class names
    are those of ``classnames.txt``, in that order, else those of `class_prompts`. Hidden files and folders are
    skipped.

    Raises:
        UserError: the numbers of class names and of folders differ, or there are files that are not read.
    """
    folders = _class_folders(folder, split)
    _refuse_other_files(folder, split, folders)
    prompts = class_prompts(folder, set_name, [each.name for each in folders])
    names = prompts.classnames or ()
    if len(names) != len(folders):
        raise UserError(
            f"{folder}: {len(names)} class names and {len(folders)} class folders: write one name per line, in the "
            "order of the folders' names"
        )

    def samples() -> Iterator[EvaluationSample]:
        for label, each in enumerate(folders):
            for path in _images(each):
                yield EvaluationSample(f"{each.name}/{path.name}", path.read_bytes(), label=label)

    return ClassificationData(folder.name, samples, names, prompts.templates, prompts.source)


def _refuse_other_files(folder: Path, split: str, folders: list[Path]) -> None:
    """Refuse a file that is neither an image of a class nor about the set: it may be the set, and the images its own.

    Raises:
        UserError: names the first.
    """
    known = {CLASSNAMES, TEMPLATES, PROMPTS}
    tops = {folder, folder / split} if (folder / split).is_dir() else {folder}
    others = [
        path for top in sorted(tops) for path in sorted(top.iterdir()) if path.is_file() and path.name not in known
    ]
    others += [path for each in folders for path in sorted(set(each.iterdir()).difference(_images(each)))]
    others = [path for path in others if not NOT_DATA.fullmatch(path.name)]
    if others:
        shown = ", ".join(str(path.relative_to(folder)) for path in others[:SHOWN])
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        raise UserError(
            f"{folder} would be read as folders of images by class, but no reader understands {shown}{more}: correct "
            "what is wrong in these files, or move them out of the folder"
        )


def _class_folders(folder: Path, split: str) -> list[Path]:
    base = folder / split if (folder / split).is_dir() else folder
    folders = sorted(each for each in base.iterdir() if each.is_dir() and not each.name.startswith("."))
    # ImageNetV2's folders are numbers: class 2 precedes class 10
    if all(each.name.isdecimal() for each in folders):
        folders.sort(key=lambda each: int(each.name))
    return folders


def _images(folder: Path) -> list[Path]:
    found = (path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS)
    return sorted(path for path in found if not path.name.startswith("."))
