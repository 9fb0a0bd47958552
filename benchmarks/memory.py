"""Peak memory of a WIKD + PM step of siclip-s0, by batch size and micro-batch size.

    python benchmarks/memory.py [--batches 8 16 32] [--out benchmarks/results/memory.json]

Under bf16 autocast. On a GPU: the device's peak with a limit of 24 GiB
(``torch.cuda.set_per_process_memory_fraction``), for batch 1536 whole and in micro-batches, and the largest batch
that fits with gradient caching. On the CPU: the peak of the bytes that autograd saves for the backward pass (distinct
storages without parameters), and a line through the measured batches to 1536, marked as extrapolated. The CPU figure
excludes weights, gradients, optimizer state and the temporary memory of operations.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from siclip.config import LossConfig, TrainingConfig
from siclip.data.batch import Batch
from siclip.models import create_model, model_config
from siclip.training.memory import peak_memory
from siclip.training.setup import make_trainer
from siclip.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "memory.json"
FULL_BATCH, CAP_BYTES = 1536, 24 * 2**30


class PeakSavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Inside the block, ``peak`` is the largest number of bytes in distinct storages that autograd has saved.

    Args:
        excluded: addresses of storages that do not count.
    """

    def __init__(self, excluded: set[int]) -> None:
        super().__init__(self._pack, lambda saved: saved.tensor)
        self.excluded = excluded
        self.users: Counter[int] = Counter()
        self.now = self.peak = 0

    def _pack(self, tensor: Tensor) -> Saved:
        return Saved(self, tensor.detach())


class Saved:
    """A saved tensor, counted until autograd frees it."""

    def __init__(self, counter: PeakSavedBytes, tensor: Tensor) -> None:
        self.counter, self.tensor = counter, tensor
        storage = tensor.untyped_storage()
        self.address, self.bytes = storage.data_ptr(), storage.nbytes()
        self.counts = self.address not in counter.excluded
        if self.counts:
            counter.now += self.bytes if counter.users[self.address] == 0 else 0
            counter.users[self.address] += 1
            counter.peak = max(counter.peak, counter.now)

    def __del__(self) -> None:
        if self.counts:
            self.counter.users[self.address] -= 1
            self.counter.now -= self.bytes if self.counter.users[self.address] == 0 else 0


def trainer_of(batch: int, micro: int, device: torch.device) -> Trainer:
    torch.manual_seed(0)
    sizes = {"batch_size": batch, "micro_batch_size": micro}
    return make_trainer(
        model_config("siclip-s0"),
        LossConfig(pair_matching=0.3),
        TrainingConfig(steps=1000, batch_norm="eval", precision="bf16", **sizes),
        teacher=create_model("mobileclip-s0"),
        inherit_weights=True,
        device=device,
    )


def batch_of(size: int) -> Batch:
    images = torch.randint(0, 256, (size, 256, 256, 3), dtype=torch.uint8)
    tokens = torch.zeros(size, 77, dtype=torch.int64)
    tokens[:, :20] = torch.randint(1, 49000, (size, 20))
    tokens[:, 20] = 49407
    ids = torch.arange(size)
    return Batch(images, tokens, ids, ids)


def saved_bytes(batch: int, micro: int) -> int:
    """Peak of the bytes that autograd saves in one step on the CPU."""
    trainer = trainer_of(batch, micro, torch.device("cpu"))
    owned = [*trainer.model.parameters(), *trainer.model.buffers(), *trainer.objective.parameters()]
    counter = PeakSavedBytes({tensor.untyped_storage().data_ptr() for tensor in owned})
    with counter:
        trainer.train_step(batch_of(batch))
    return counter.peak


def measure_cpu(batches: list[int]) -> dict[str, Any]:
    rows = []
    for batch in batches:
        for parts in (1, 2, 8):
            if batch % parts == 0:
                saved = saved_bytes(batch, batch // parts)
                rows.append({"batch": batch, "micro_batch": batch // parts, "saved_mib": saved / 2**20})
    whole = [row for row in rows if row["batch"] == row["micro_batch"]]
    slope, offset = np.polyfit([r["batch"] for r in whole], [r["saved_mib"] for r in whole], 1)
    line = {
        "mib_a_sample": slope,
        "mib_fixed": offset,
        f"extrapolated_mib_at_{FULL_BATCH}": offset + slope * FULL_BATCH,
    }
    return {
        "measured": "bytes saved for backward on the CPU, bf16 autocast",
        "rows": rows,
        "line_through_whole_batches": line,
    }


def measure_gpu() -> dict[str, Any]:
    """Steps under the memory limit; a batch that does not fit has no figure."""
    device = torch.device("cuda")
    share = CAP_BYTES / torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, share), device)
    rows, largest = [], 0
    for batch, micro in ((FULL_BATCH, FULL_BATCH), (FULL_BATCH, 768), (FULL_BATCH, 384), (FULL_BATCH, 192)):
        rows.append({"batch": batch, "micro_batch": micro, "peak_mib": gpu_peak(batch, micro, device)})
    batch = FULL_BATCH
    while gpu_peak(batch, 256, device) is not None:
        largest, batch = batch, batch * 2
    return {
        "measured": f"device peak with a limit of {CAP_BYTES / 2**30:.0f} GiB, bf16",
        "card": torch.cuda.get_device_name(device),
        "rows": rows,
        "largest_batch_with_micro_batch_256": largest,
    }


def gpu_peak(batch: int, micro: int, device: torch.device) -> float | None:
    """Peak MiB of two steps; None if they do not fit. The second step has the optimizer's state from its start."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        trainer, data = trainer_of(batch, micro, device), batch_of(batch)
        trainer.train_step(data)
        trainer.train_step(data)
    except torch.OutOfMemoryError:
        return None
    return peak_memory(device) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    found = measure_gpu() if torch.cuda.is_available() else measure_cpu(options.batches)
    result = {"cores": os.cpu_count(), "versions": {"torch": version("torch")}, **found}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    json.dump(result, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
