"""BatchNorm and batches that are computed in pieces: what is exact, and statistics that stay as they are."""

from __future__ import annotations

from torch import Tensor, nn

from siclip.config import TrainingConfig
from siclip.errors import UserError


def batch_norms(model: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """Every BatchNorm by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


def fix_statistics(model: nn.Module) -> None:
    """Every BatchNorm in eval mode: its scale and bias may train, its statistics stay."""
    for norm in batch_norms(model).values():
        norm.eval()


def check_exactness(model: nn.Module, config: TrainingConfig, workers: int) -> None:
    """Refuse a batch that is computed in pieces while BatchNorms normalise by the piece.

    Raises:
        UserError: names how many BatchNorms are in train mode, the first of them, and the remedies.
    """
    if workers > 1 and config.micro_batch_size == "auto":
        raise UserError(
            f"training.micro_batch_size auto is for one worker, here are {workers}: they would have to run out of "
            "memory together; set it to a number"
        )
    pieces = config.micro_batch_size not in (0, config.batch_size)
    training = [name for name, norm in batch_norms(model).items() if norm.training]
    thaws = config.thaw_step and config.batch_norm == "train"
    if not (pieces or workers > 1) or config.inexact_batch_norm or not (training or thaws):
        return
    how = f"training.micro_batch_size {config.micro_batch_size}" if pieces else f"{workers} workers"
    which = (
        f"{len(training)} BatchNorms train ({training[0]}, …)" if training else "BatchNorms will train once thawed"
    )
    raise UserError(
        f"{how}: {which}, and each piece of the batch would be normalised by its own statistics, which puts the "
        "gradients off by 11 to 30 %. Set training.batch_norm=eval, or training.inexact_batch_norm=true to accept it"
    )


Statistics = list[tuple[Tensor, Tensor]]


def moving_statistics(model: nn.Module) -> Statistics:
    """The buffers that a forward pass in train mode changes, each with a copy."""
    norms = [norm for norm in batch_norms(model).values() if norm.training]
    return [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]


def restore_statistics(statistics: Statistics) -> None:
    """Put the copies back: the pass that changed them does not count."""
    for buffer, copy in statistics:
        buffer.copy_(copy)
