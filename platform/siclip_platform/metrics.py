"""Names of the metrics of an evaluation, as used by search spaces, the progress display and reports."""

from __future__ import annotations

import re

SPLITS = ("validation", "test")
RECALL_RANKS = (1, 5, 10)

METRICS: tuple[str, ...] = tuple(
    f"{split}/{metric}"
    for split in SPLITS
    for metric in (
        *(f"{side}_retrieval_recall@{rank}" for side in ("image", "text") for rank in RECALL_RANKS),
        "mean_recall@1",  # mean of image and text retrieval
        "beats_all_negatives",
    )
)


def metric_name(key: str) -> str:
    """A key in MLflow → the metric's name: MLflow refuses ``@``, so ``recall@1`` is stored as ``recall_at_1``."""
    return re.sub(r"_at_(\d+)$", r"@\1", key)


def stored_key(name: str) -> str:
    """A metric's name → its key in MLflow."""
    return name.replace("@", "_at_")


def evaluation_key(set_name: str, metric: str) -> str:
    """The standard name of a metric on an evaluation set, such as ``eval/imagenet1k/acc1``."""
    return f"eval/{set_name}/{metric}"
