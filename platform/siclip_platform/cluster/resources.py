"""How many trials fit at the same time, computed before the first starts."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Literal

from siclip.errors import UserError
from siclip_platform.cluster.connect import COORDINATOR_CPUS, DATA_CPUS

HEADROOM = 1.15
GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """What Ray has: logical CPUs, GPUs, the bytes of the smallest GPU's memory (0 without)."""

    cpus: float
    gpus: float
    gpu_bytes: int = 0


@dataclass(frozen=True)
class Layout:
    """How a study uses a machine: trials at a time, what Ray gives each, and why."""

    concurrent: int
    resources: dict[str, float]
    reason: str


def lay_out(
    machine: Machine,
    *,
    wished: int | None,
    seeds: int,
    worker_cpus: float,
    peak_bytes: int | None = None,
    backend: Backend = "process",
) -> Layout:
    """Lay a study out; ``wished``: the trials at a time that were asked for, None for as many as fit.

    ``peak_bytes``: GPU memory that one training was measured to hold at its peak; a trial holds that of all its
    ``seeds``, and 15 % stay free. Without it a GPU is not shared. Under Ray Train a trial has a coordinator, a worker
    and tasks that read, and one CPU stays free for Ray Data's metadata.

    Raises:
        UserError: what was asked for does not fit, or not even one trial; the message has the numbers.
    """
    of_trial, kept = worker_cpus, 0.0
    if backend == "train":
        of_trial, kept = COORDINATOR_CPUS + worker_cpus + DATA_CPUS, 1.0
    limits = {f"{machine.cpus:g} CPUs, {of_trial:g} a trial": math.floor((machine.cpus - kept) / of_trial + 1e-9)}
    share = _gpu_share(machine, seeds, peak_bytes)
    if share:
        per_gpu = math.floor(1 / share + 1e-9)
        held = f", {seeds * peak_bytes / GIB:.1f} GiB a trial at its peak" if peak_bytes else ", one trial each"
        limits[f"{machine.gpus:g} GPUs of {machine.gpu_bytes / GIB:.0f} GiB{held}"] = int(machine.gpus) * per_gpu
    fits = min(limits.values())
    why = "; ".join(limits)
    if fits < max(1, wished or 1):
        raise UserError(
            f"{wished or 1} trials at a time do not fit: {why}: {max(0, fits)} do. "
            "Take --concurrent down, --seeds down, a smaller batch, or start Ray with a higher --num-cpus "
            "(logical CPUs may exceed the cores)"
        )
    concurrent = wished or fits
    resources = {"CPU": COORDINATOR_CPUS if backend == "train" else worker_cpus}
    if share and backend == "process":
        resources["GPU"] = _fraction(machine, concurrent, share)
    return Layout(concurrent, resources, f"{concurrent} trials at a time ({why})")


def _gpu_share(machine: Machine, seeds: int, peak_bytes: int | None) -> float:
    """The share of a GPU that one trial needs; 0 without a GPU."""
    if machine.gpus < 1:
        return 0.0
    if not peak_bytes or not machine.gpu_bytes:
        return 1.0
    share = seeds * peak_bytes * HEADROOM / machine.gpu_bytes
    if share > 1:
        raise UserError(
            f"a trial of {seeds} seeds takes {seeds * peak_bytes / GIB:.1f} GiB of GPU memory at its peak and the "
            f"GPU has {machine.gpu_bytes / GIB:.0f} GiB: set training.micro_batch_size, or take --seeds down"
        )
    return share


def _fraction(machine: Machine, concurrent: int, share: float) -> float:
    """What Ray is told: equal parts of a GPU, none smaller than the trial needs."""
    per_gpu = math.ceil(concurrent / machine.gpus)
    return max(share, math.floor(1e4 / per_gpu) / 1e4)


def machine_of_ray(own: bool) -> Machine:
    """What the connected Ray has; GPU memory is asked of a task on a GPU.

    ``own``: this process started it, with more logical CPUs than there are cores: the cores count.
    """
    import ray

    resources = ray.cluster_resources()
    gpus = float(resources.get("GPU", 0))
    memory = ray.get(ray.remote(num_gpus=1, num_cpus=0)(_gpu_bytes).remote()) if gpus >= 1 else 0
    logical = float(resources.get("CPU", 0))
    return Machine(min(logical, os.cpu_count() or 1) if own else logical, gpus, int(memory))


def _gpu_bytes() -> int:
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else 0


Backend = Literal["process", "train"]
