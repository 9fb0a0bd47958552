"""What fits on the device."""

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
    """The largest of batch_size, batch_size/2, batch_size/4, … whose step ``run(size)`` fits in the memory.

    Each size is run once, on a real batch; an out-of-memory error is caught, the cache emptied and the size halved.
    On the CPU memory is not the limit and cannot be tested without being killed: the whole batch.

    Raises:
        UserError: not even the smallest fits.
    """
    if not is_limited(device):
        return batch_size
    size = batch_size
    while True:
        try:
            run(size)
        except torch.OutOfMemoryError:
            pass  # until here the error's traceback holds what was computed: emptying the cache would free nothing
        else:
            return size
        torch.cuda.empty_cache()
        if size % 2:
            raise UserError(
                f"no micro-batch of {batch_size} pairs fits: {size} is too large for {device} and cannot be halved; "
                "take a batch_size with more factors of 2, or a smaller model"
            )
        size //= 2


def with_longest_captions(batch: Batch) -> Batch:
    """The batch with captions that fill the context and have nothing in common: those take the most memory."""
    end = batch.tokens.max()
    tokens = torch.randint_like(batch.tokens, max(1, int(end)))
    tokens[:, -1] = end
    features = batch.features
    if features is not None:
        features = replace(features, text=torch.randn_like(features.text))
    return replace(batch, tokens=tokens, features=features)


def is_limited(device: torch.device) -> bool:
    """Whether too large a step ends in an error that can be caught."""
    return device.type != "cpu"


def card_name(device: torch.device) -> str:
    """What a micro-batch size was found on."""
    if device.type != "cuda":
        return device.type
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory} bytes"


@contextmanager
def moments_held(optimizer: torch.optim.AdamW) -> Iterator[None]:
    """Inside, the memory is taken that AdamW's two moments will need, where its first step has not made them yet."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p not in optimizer.state]
    held = [torch.empty_like(p) for p in parameters for _ in ("exp_avg", "exp_avg_sq")]
    try:
        yield
    finally:
        held.clear()


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that the device held for tensors; on the CPU the most that this process was given."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # of this program alone; getrusage counts what the process was before it became this one
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])  # type: ignore[index]
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
