"""What ``data inspect --captions`` and the end of ``data caption`` say about a caption set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from siclip_platform.datasets.manifest import Dataset
    from siclip_platform.datasets.sidecar import Sidecar
    from siclip_platform.datasets.tools.caption_sets import CaptionStatistics
    from siclip_platform.datasets.tools.inspect import Spread

LINES = (
    "captions",
    "images without one",
    "words: min, median, 95 %, max",
    "vocabulary",
    "distinct-1, -2, -3",
    "other images have it too",
    "equals an original of its image",
    "cosine with the image: median",
)


def diagnose(dataset: Dataset, sidecar: Sidecar, split: str, teacher: str | None = None) -> list[str]:
    """Return lines of text: the statistics of a set beside the dataset's own captions, and examples.

    Raises:
        UserError: the set was not built for this split, or there is no such teacher.
    """
    from siclip_platform.datasets.derived.embeddings.teacher import EmbeddingTeacher
    from siclip_platform.datasets.tools.caption_sets import caption_statistics, read_captions

    judge = EmbeddingTeacher(teacher) if teacher else None
    written, own = read_captions(dataset, sidecar, split)
    ours, theirs = caption_statistics(written, own, judge), caption_statistics(own, None, judge)
    left, right = _cells(ours), _cells(theirs)
    right[6] = ""
    name = sidecar.manifest.name
    head = f"captions {name} of {split}: {len(written.texts):,} of {written.images:,} images"
    rows = [("", name, "originals"), *zip(LINES, left, right, strict=True)]
    table = [f"{label:<32}{one:>24}{other:>24}".rstrip() for label, one, other in rows if one]
    return [head, *table, *_examples(ours)]


def degenerate(sidecar: Sidecar, folder: Path) -> list[str]:
    """Return lines that tell of a split most of whose captions several images have; none for a sound set."""
    from siclip_platform.datasets.manifest import open_dataset
    from siclip_platform.datasets.tools.caption_sets import caption_statistics, read_captions

    dataset, lines = open_dataset(folder), []
    for split in sidecar.manifest.splits:
        found = caption_statistics(read_captions(dataset, sidecar, split)[0])
        if found.is_degenerate:
            lines.append(
                f"{split}: {100 * found.repeated:.0f} % of the captions are those of other images too: look at them "
                f"before training (siclip-platform data inspect {folder} --captions {sidecar.manifest.name} --sheet "
                "FILE.html), and caption again with a model that fits these images, or at a higher temperature"
            )
            lines += _examples(found)
    return lines


def _cells(found: CaptionStatistics) -> list[str]:
    return [
        f"{found.captions:,}",
        f"{found.without:,}",
        ", ".join(f"{value:.0f}" for value in _of(found.words)) if found.captions else "-",
        f"{found.vocabulary:,}",
        ", ".join(f"{value:.3f}" for value in found.distinct.values()),
        f"{100 * found.repeated:.1f} %",
        f"{100 * found.original:.1f} %",
        "" if found.cosine is None else f"{found.cosine.median:.3f}, mean {found.cosine.mean:.3f}",
    ]


def _of(spread: Spread) -> tuple[float, ...]:
    return spread.low, spread.median, spread.p95, spread.high


def _examples(found: CaptionStatistics) -> list[str]:
    lines = [f"  {count:,} images: {text}" for text, count in found.most_frequent]
    return lines + [f"  {length} times {word!r}: {text}" for length, word, text in found.runs]
