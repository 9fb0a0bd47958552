"""Measure a checkpoint on a split of a Parquet dataset, as training does."""

from __future__ import annotations

import torch

from siclip.errors import UserError
from siclip.evaluation.evaluate import evaluate
from siclip.models.finite import check_finite
from siclip_platform.storage import AnyPath
from siclip_platform.storage.checkpoints import read_model
from siclip_platform.stream import load_evaluation_set


def evaluate_checkpoint(checkpoint: str | AnyPath, data: str | AnyPath, split: str) -> dict[str, float]:
    """Return a checkpoint's metrics on all samples of a split, named ``SPLIT/METRIC``.

    Raises:
        UserError: the checkpoint or the dataset cannot be read, the model is not finite, or the split does not exist
            or is empty.
    """
    model = read_model(checkpoint)
    check_finite(model, str(checkpoint))
    samples = load_evaluation_set(data, split, model.config)
    if not len(samples.images):
        raise UserError(f"dataset {data} has no samples in its split {split!r}: name another with --split")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    metrics = evaluate(model.to(device), samples, device=device, name=str(checkpoint))
    return {f"{split}/{name}": value for name, value in metrics.items()}
