"""What a figure was measured on: how many images a query chooses from, what chance gives, whether it is held out."""

from __future__ import annotations

import re
from dataclasses import dataclass

from siclip_platform.datasets.tools.summary import read_summary
from siclip_platform.report.judge.numbers import number
from siclip_platform.report.read.items import read_items
from siclip_platform.report.read.runs import Study

SPLITS = ("test", "validation")
LIMIT = "evaluation.validation_samples"


@dataclass(frozen=True)
class Pool:
    """The images of a split that figures are measured on.

    Attributes:
        split: Name of the split.
        images: Number of images to choose from; None if the store does not have it.
        selects: Whether the study chose its leading setting by this split.
    """

    split: str
    images: int | None
    selects: bool

    def chance(self, metric: str) -> float | None:
        """What random order gives for a recall; None for other metrics."""
        found = re.search(r"recall@([0-9]{1,6})", metric)
        return min(1.0, int(found[1]) / self.images) if found and self.images else None

    def words(self, metric: str) -> str:
        """``300 images, chance 0.33 %, chose the setting``."""
        chance = self.chance(metric)
        parts = [
            f"{self.images:,} images" if self.images else "number of images not recorded",
            f"chance {100 * chance:.2g} %" if chance is not None else "",
            "chose the setting" if self.selects else "held out",
        ]
        return ", ".join(part for part in parts if part)


def pool_of(study: Study, metric: str) -> Pool | None:
    """What a metric was measured on; None for a metric of no split of the dataset."""
    split = metric.partition("/")[0]
    if split not in SPLITS or "/" not in metric:
        return None
    return Pool(split, _images(study, split), study.metric.startswith(f"{split}/"))


def _images(study: Study, split: str) -> int | None:
    items = read_items(study.items)
    if items is not None and not isinstance(items, str) and items.split == split:
        return len(items.captions)
    summary = read_summary(study.data)
    if summary is None or isinstance(summary, str) or split not in summary.splits:
        return None
    rows = summary.splits[split].rows
    if split != "validation":
        return rows or None
    # Trainings measure on a part of the split; 0 means all of it.
    limits = [limit for run in study.runs if (limit := number(run.params.get(LIMIT)))]
    return min([rows, *map(int, limits)]) or None
