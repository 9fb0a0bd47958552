"""BatchNorm in batches that are split into parts: what is exact, and how statistics are fixed."""

from __future__ import annotations

from torch import Tensor, nn

from siclip.config import TrainingConfig
from siclip.errors import UserError


def batch_norms(model: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """Every BatchNorm of a model, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


def fix_statistics(model: nn.Module) -> None:
    """Put every BatchNorm into eval mode: its statistics are fixed, its scale and bias may train."""
    for norm in batch_norms(model).values():
        norm.eval()


def check_exactness(model: nn.Module, config: TrainingConfig, workers: int) -> None:
    """Refuse a split batch if BatchNorms would normalise each part by its own statistics.

    Args:
        model: in the modes in which it will train.
        config: of the training.
        workers: processes that share a batch.

    Raises:
        UserError: the message gives the number of BatchNorms in train mode, the first one, and the remedies; or
            several workers have micro_batch_size ``auto``.
    """
    if workers > 1 and config.micro_batch_size == "auto":
        raise UserError(
            f"training.micro_batch_size auto requires one worker, there are {workers}: they would have to run out of "
            "memory at the same time; set it to a number"
        )
    splits = config.micro_batch_size not in (0, config.batch_size)
    training = [name for name, norm in batch_norms(model).items() if norm.training]
    thaws = config.thaw_step and config.batch_norm == "train"
    if not (splits or workers > 1) or config.inexact_batch_norm or not (training or thaws):
        return
    how = f"training.micro_batch_size {config.micro_batch_size}" if splits else f"{workers} workers"
    which = (
        f"{len(training)} BatchNorms train ({training[0]}, …)" if training else "BatchNorms will train once thawed"
    )
    raise UserError(
        f"{how}: {which}, and each part of the batch would be normalised by its own statistics, which changes the "
        "gradients by 11 to 30 %. Set training.batch_norm=eval, or training.inexact_batch_norm=true to accept it"
    )


Statistics = list[tuple[Tensor, Tensor]]


def moving_statistics(model: nn.Module) -> Statistics:
    """The BatchNorm buffers that a forward pass in train mode changes, each with a copy."""
    norms = [norm for norm in batch_norms(model).values() if norm.training]
    return [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]


def restore_statistics(statistics: Statistics) -> None:
    """Restore the copies, to undo the effect of a forward pass."""
    for buffer, copy in statistics:
        buffer.copy_(copy)
