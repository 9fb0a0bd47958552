"""Statistics for BatchNorms that have seen no data: those of a whole batch, computed by micro-batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from siclip.data.batch import Batch, TrunkFeatures
from siclip.models.clip import Clip
from siclip.training.step import TRUNK_CHUNK, fitted_tokens, trunk_features
from siclip.training.workers import workers

Norm = nn.modules.batchnorm._BatchNorm
Statistics = tuple[Tensor, Tensor]
"""Mean and unbiased variance, (C,) each."""


@torch.no_grad()
def calibrate(model: Clip, batch: Batch, micro_batch_size: int = 0) -> None:
    """Set the statistics of BatchNorms that train and have seen no data to those of the batch of all workers.

    The uses of BatchNorms are handled one at a time, in the order of the data flow. For each, a pass over all
    micro-batches sums up its input, while every earlier use already has its statistics. The result is therefore that
    of the joined batch up to rounding, with only one micro-batch in memory. A BatchNorm that several blocks share
    gets the mean over its uses.

    Args:
        model: on the device of the batch.
        batch: of this worker.
        micro_batch_size: samples computed at a time, at most `TRUNK_CHUNK`; 0: `TRUNK_CHUNK`.
    """
    norms = [
        norm
        for norm in model.modules()
        if isinstance(norm, Norm) and norm.weight.requires_grad and _seen(norm) == 0 and norm.track_running_stats
    ]
    if not norms:
        return
    size = min(micro_batch_size or TRUNK_CHUNK, TRUNK_CHUNK)
    features = trunk_features(model, batch) if model.trunk_is_frozen() else None
    found: dict[Norm, list[Statistics]] = {norm: [] for norm in norms}
    while _next_use(model, batch, features, size, found):
        pass
    for norm, uses in found.items():
        if uses:
            _set(norm, (torch.stack([mean for mean, _ in uses]).mean(0), torch.stack([v for _, v in uses]).mean(0)))
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.fill_(len(uses))


def _seen(norm: Norm) -> int | None:
    return None if norm.num_batches_tracked is None else int(norm.num_batches_tracked)


class _Reached(Exception):
    """Ends a forward pass at the BatchNorm whose input was needed; the rest need not be computed."""


def _next_use(
    model: Clip, batch: Batch, features: TrunkFeatures | None, size: int, found: dict[Norm, list[Statistics]]
) -> bool:
    """Compute the statistics of the first use that has none; False if all have them."""
    sums = _Sums()
    for start in range(0, len(batch), size):
        rows = slice(start, start + size)
        with _watching(found, sums):
            try:
                chunk = batch[rows]
                own = features[rows] if features else trunk_features(model, chunk)
                model.head(own, fitted_tokens(model, chunk))
                return False
            except _Reached:
                pass
    assert sums.norm is not None
    found[sums.norm].append(sums.statistics())
    return True


@contextmanager
def _watching(found: dict[Norm, list[Statistics]], sums: _Sums) -> Iterator[None]:
    """Each use runs in eval mode with its own statistics; at the first without statistics the input is summed up."""
    modes = {norm: norm.training for norm in found}
    uses = dict.fromkeys(found, 0)

    def before_use(norm: Norm, inputs: tuple[Tensor]) -> None:
        use, uses[norm] = uses[norm], uses[norm] + 1
        if use == len(found[norm]):
            sums.add(norm, inputs[0])
            raise _Reached
        _set(norm, found[norm][use])

    hooks = [norm.register_forward_pre_hook(before_use) for norm in found]
    for norm in found:
        norm.eval()
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for norm, mode in modes.items():
            norm.train(mode)


class _Sums:
    """Count, sum and sum of squares of a BatchNorm's input over micro-batches and workers.

    In fp64, because the variance is a difference of two large sums.
    """

    def __init__(self) -> None:
        self.norm: Norm | None = None
        self.totals: list[Tensor] = []

    def add(self, norm: Norm, values: Tensor) -> None:
        """Add an input. Its channels are the last dimension if the norm has ``channels_last``, else the second."""
        self.norm = norm
        channel = values.dim() - 1 if getattr(norm, "channels_last", False) else 1
        rows = values.double().movedim(channel, -1).flatten(0, -2)
        count = torch.full((rows.shape[1],), float(rows.shape[0]), dtype=rows.dtype, device=rows.device)
        self.totals.append(torch.stack([count, rows.sum(0), rows.square().sum(0)]))

    def statistics(self) -> Statistics:
        total = torch.stack(self.totals).sum(0)
        if workers() > 1:
            dist.all_reduce(total)
        count, summed, squares = total
        mean = summed / count
        # Clamped because rounding can make the variance negative; unbiased like BatchNorm's running variance.
        return mean, (squares / count - mean.square()).clamp(min=0) * count / (count - 1)


def _set(norm: Norm, statistics: Statistics) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(statistics[0])
    norm.running_var.copy_(statistics[1])
