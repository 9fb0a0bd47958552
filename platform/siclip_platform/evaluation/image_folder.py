"""Read a folder of images by class: FOLDER/SPLIT/CLASS/IMAGE or FOLDER/CLASS/IMAGE."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from siclip.errors import UserError
from siclip_platform.evaluation.prompts import class_prompts
from siclip_platform.evaluation.sets import ClassificationData, EvaluationSample

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}


def is_image_folder(folder: Path, split: str) -> bool:
    """Return whether a class folder has images."""
    return any(_images(each) for each in _class_folders(folder, split))


def read_image_folder(folder: Path, split: str, set_name: str) -> ClassificationData:
    """Open a set of images by class.

    Labels are the indices of the class folders, sorted by name, or by number if all names are numbers. Class names
    are those of ``classnames.txt``, in that order, else those of `class_prompts`. Hidden files and folders are
    skipped.

    Raises:
        UserError: the numbers of class names and of folders differ.
    """
    folders = _class_folders(folder, split)
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
