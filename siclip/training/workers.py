"""Several training processes that share a batch: gathering of rows, reduction of gradients.

Shapes: B samples of this worker, W workers.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from siclip.models.clip import Clip


def workers() -> int:
    """Number of training processes that share a batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def joined(chunks: Iterable[Tensor]) -> Tensor:
    """Rows of all micro-batches, gathered from all workers in rank order: (W·B, …)."""
    own = torch.cat(list(chunks)).contiguous()
    if workers() == 1:
        return own
    gathered = [torch.empty_like(own) for _ in range(workers())]
    dist.all_gather(gathered, own)
    return torch.cat(gathered)


def own_rows(joined: Tensor) -> Tensor:
    """This worker's rows (B, …) of gathered rows (W·B, …)."""
    if workers() == 1:
        return joined
    return joined.chunk(workers())[dist.get_rank()]


def of_first_worker(value: int, device: torch.device) -> int:
    """The first worker's value, in every worker."""
    if workers() == 1:
        return value
    shared = torch.tensor([value], device=device)
    dist.broadcast(shared, src=0)
    return int(shared.item())


@torch.no_grad()
def reduce_gradients(model: Clip, objective: nn.Module) -> None:
    """Sum the towers' gradients over the workers, and average those of the logit scale and the objective.

    Each worker propagates only its own rows through the towers, but computes the whole loss. A worker without a
    gradient for a parameter contributes zeros; if no worker has one, the parameter gets none.
    """
    if workers() == 1:
        return
    towers = [p for tower in (model.image_encoder, model.text_encoder) for p in tower.parameters()]
    whole = [model.logit_scale, *objective.parameters()]
    for parameters, divisor in ((towers, 1), (whole, workers())):
        trained = [p for p in parameters if p.requires_grad]
        if not trained:
            continue
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        has_one = torch.tensor([float(p.grad is not None) for p in trained], device=grads[0].device)
        # One all-reduce for everything: its cost is mostly per call.
        flat = torch.cat([*(grad.reshape(-1) for grad in grads), has_one])
        dist.all_reduce(flat)
        *sums, counts = torch.split(flat.div_(divisor), [*(grad.numel() for grad in grads), len(trained)])
        for parameter, summed, has_gradient in zip(trained, sums, (counts > 0).tolist(), strict=True):
            parameter.grad = summed.view_as(parameter).clone() if has_gradient else None
