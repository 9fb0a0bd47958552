"""Measuring a checkpoint on a split of a dataset of ours, as training does."""

from __future__ import annotations

import torch

from siclip.errors import UserError
from siclip.evaluation.evaluate import evaluate
from siclip_platform.storage import AnyPath
from siclip_platform.storage.checkpoints import read_model
from siclip_platform.stream import load_evaluation_set


def evaluate_checkpoint(checkpoint: str | AnyPath, data: str | AnyPath, split: str) -> dict[str, float]:
    """Metrics of a checkpoint on all samples of a split, named ``SPLIT/METRIC``.

    Raises:
        UserError: a checkpoint or dataset that cannot be read, or a split that it does not have or that is empty.
    """
    model = read_model(checkpoint)
    samples = load_evaluation_set(data, split, model.config)
    if not len(samples.tokens):
        raise UserError(f"dataset {data} has no samples in its split {split!r}: name another with --split")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    metrics = evaluate(model.to(device), samples, device=device)
    return {f"{split}/{name}": value for name, value in metrics.items()}
