"""What fits into the device's memory."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from siclip.data.batch import Batch
from siclip.errors import UserError


def find_micro_batch_size(run: Callable[[int], object], batch_size: int, device: torch.device) -> int:
    """The largest of batch_size, batch_size/2, batch_size/4, … that fits into the device's memory.

    Each size is run once; after an out-of-memory error the cache is emptied and the size halved. On the CPU the
    whole batch is returned without a test, because running out of memory would kill the process.

    Args:
        run: runs a step with a micro-batch size.
        batch_size: the largest candidate.
        device: on which ``run`` computes.

    Raises:
        UserError: not even the smallest size fits.
    """
    if not is_limited(device):
        return batch_size
    size = batch_size
    while True:
        try:
            run(size)
        except torch.OutOfMemoryError:
            pass
        else:
            return size
        # After the except block: inside it the traceback keeps the tensors alive, and nothing would be freed.
        torch.cuda.empty_cache()
        if size % 2:
            raise UserError(
                f"no micro-batch of {batch_size} samples fits: {size} is too large for {device} and cannot be "
                "halved; choose a batch_size with more factors of 2, or a smaller model"
            )
        size //= 2


def with_longest_captions(batch: Batch) -> Batch:
    """The batch with random captions that fill the context: the case that needs the most memory."""
    end = batch.tokens.max()
    tokens = torch.randint_like(batch.tokens, max(1, int(end)))
    tokens[:, -1] = end
    negatives = batch.negatives
    if negatives is not None:
        false = torch.randint_like(negatives.tokens, max(1, int(end)))
        false[..., -1] = end
        negatives = replace(negatives, tokens=false)
    features = batch.features
    if features is not None:
        features = replace(features, text=torch.randn_like(features.text))
    return replace(batch, tokens=tokens, features=features, negatives=negatives)


def is_limited(device: torch.device) -> bool:
    """Whether a step that is too large raises an error that can be caught."""
    return device.type != "cpu"


def card_name(device: torch.device) -> str:
    """Identifies the device on which a micro-batch size was measured: name and bytes of memory of a GPU."""
    if device.type != "cuda":
        return device.type
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory} bytes"


@contextmanager
def moments_held(optimizer: torch.optim.AdamW) -> Iterator[None]:
    """Inside the block, reserve the memory of AdamW's two moments for parameters that do not have them yet.

    AdamW allocates them in its first step, after the micro-batch size was measured.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p not in optimizer.state]
    reserved = [torch.empty_like(p) for p in parameters for _ in ("exp_avg", "exp_avg_sq")]
    try:
        yield
    finally:
        reserved.clear()


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of tensors on a CUDA device, on the CPU of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    # Not getrusage where avoidable: its peak includes the process before exec, such as a large parent that forked.
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])  # type: ignore[index]
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
