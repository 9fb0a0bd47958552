"""Read WinoGAViL (arXiv 2207.12576): FOLDER/winogavil.jsonl and FOLDER/images/.

Each line is {"cue": word, "candidates": [image names], "associations": [candidates that match the cue]}, the format
of the data set on the Hugging Face hub.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from siclip.errors import UserError
from siclip_platform.evaluation.sets import CueData, EvaluationSample, find_file, texts_of
from siclip_platform.storage.text_files import read_lines

FILE = "winogavil.jsonl"
EXTENSIONS = ("", ".jpg", ".png", ".jpeg", ".webp")


def read_cues(folder: Path) -> CueData:
    """Open a set of cues.

    Cues become prompts as in DataComp: "A cue" or, before a vowel, "An cue", in lower case.

    Raises:
        UserError: a line is not a cue, or an image is missing.
    """
    images: dict[str, int] = {}
    cues = []
    for number, line in enumerate(read_lines(folder / FILE), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            cue, candidates, right = entry["cue"], texts_of(entry["candidates"]), set(texts_of(entry["associations"]))
            if not isinstance(cue, str) or not cue.strip():
                raise ValueError(f"the cue is {cue!r}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{folder / FILE}, line {number} is not a cue: {error!r}") from None
        cue = cue.strip().lower()
        if not right or not right <= set(candidates):
            raise UserError(f"{folder / FILE}, line {number}: associations must be some of the candidates")
        prompt = f"{'An' if cue[0] in 'aeiou' else 'A'} {cue}"
        indices = tuple(images.setdefault(name, len(images)) for name in candidates)
        cues.append((prompt, indices, tuple(name in right for name in candidates)))
    if not cues:
        raise UserError(f"{folder / FILE} has no cues")
    paths = {name: _locate(folder, name) for name in images}

    def samples() -> Iterator[EvaluationSample]:
        for name, path in paths.items():
            yield EvaluationSample(name, path.read_bytes())

    return CueData(folder.name, samples, tuple(cues))


def _locate(folder: Path, name: str) -> Path:
    for extension in EXTENSIONS:
        path = find_file(folder / "images", f"{name}{extension}")
        if path is not None:
            return path
    raise UserError(f"{folder}: image {name} is not in images/")
