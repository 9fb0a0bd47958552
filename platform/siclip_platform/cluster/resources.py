"""How many trials fit at the same time, computed before the first trial starts."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Literal

from siclip.errors import UserError
from siclip_platform.cluster.connect import COORDINATOR_CPUS, DATA_CPUS

HEADROOM = 1.15  # 15 % free for CUDA contexts, which a measured peak does not include
GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """What Ray has: logical CPUs, GPUs, and the memory of a GPU in bytes (0 without a GPU)."""

    cpus: float
    gpus: float
    gpu_bytes: int = 0


@dataclass(frozen=True)
class Layout:
    """How a study uses a machine: concurrent trials, the resources that Ray gives each, and the reason."""

    concurrent: int
    resources: dict[str, float]
    reason: str


def lay_out(
    machine: Machine,
    *,
    requested: int | None,
    seeds: int,
    worker_cpus: float,
    peak_bytes: int | None = None,
    backend: Backend = "process",
    data_tasks: bool = False,
) -> Layout:
    """Decide how many trials run at a time.

    Args:
        machine: what Ray has.
        requested: trials at a time; None for as many as fit.
        seeds: trainings that a trial runs side by side.
        worker_cpus: CPUs per training.
        peak_bytes: GPU memory that one training was measured to use at its peak; a trial uses that for each of its
            seeds, and 15 % stay free. Without it a GPU is not shared.
        backend: under Ray Train (``train``) a trial has a coordinator, a worker and tasks that read, and one CPU
            stays free for Ray Data's metadata.
        data_tasks: Ray Data reads for the trials of backend ``process`` too.

    Raises:
        UserError: the request does not fit, or not even one trial fits; the message has the numbers.
    """
    per_trial, reserved = worker_cpus, 0.0
    if backend == "train":
        per_trial, reserved = COORDINATOR_CPUS + worker_cpus + DATA_CPUS, 1.0
    elif data_tasks:
        per_trial, reserved = worker_cpus + seeds * DATA_CPUS, 1.0
    # 1e-9: 3 / 0.3 is 9.999… in floating point.
    cpu_limit = math.floor((machine.cpus - reserved) / per_trial + 1e-9)
    limits = {f"{machine.cpus:g} CPUs, {per_trial:g} per trial": cpu_limit}
    share = _gpu_share(machine, seeds, peak_bytes)
    if share:
        per_gpu = math.floor(1 / share + 1e-9)
        need = f", {seeds * peak_bytes / GIB:.1f} GiB per trial at its peak" if peak_bytes else ", one trial each"
        limits[f"{machine.gpus:g} GPUs of {machine.gpu_bytes / GIB:.0f} GiB{need}"] = int(machine.gpus) * per_gpu
    fits = min(limits.values())
    reason = "; ".join(limits)
    if fits < max(1, requested or 1):
        raise UserError(
            f"{requested or 1} trials at a time do not fit: {reason}: {max(0, fits)} do. "
            "Lower --concurrent, --seeds or the batch size, or start Ray with a higher --num-cpus "
            "(logical CPUs may exceed the cores)"
        )
    concurrent = requested or fits
    resources = {"CPU": COORDINATOR_CPUS if backend == "train" else worker_cpus}
    if share and backend == "process":
        resources["GPU"] = _fraction(machine, concurrent, share)
    return Layout(concurrent, resources, f"{concurrent} trials at a time ({reason})")


def _gpu_share(machine: Machine, seeds: int, peak_bytes: int | None) -> float:
    """The share of a GPU that one trial needs; 0 without a GPU."""
    if machine.gpus < 1:
        return 0.0
    if not peak_bytes or not machine.gpu_bytes:
        return 1.0
    share = seeds * peak_bytes * HEADROOM / machine.gpu_bytes
    if share > 1:
        raise UserError(
            f"a trial of {seeds} seeds needs {seeds * peak_bytes / GIB:.1f} GiB of GPU memory at its peak and the "
            f"GPU has {machine.gpu_bytes / GIB:.0f} GiB: set training.micro_batch_size, or lower --seeds"
        )
    return share


def _fraction(machine: Machine, concurrent: int, share: float) -> float:
    """The share of a GPU to request from Ray: equal parts, each at least what a trial needs."""
    per_gpu = math.ceil(concurrent / machine.gpus)
    # Ray counts resources in units of 1e-4: rounded up, the parts would exceed the GPU.
    return max(share, math.floor(1e4 / per_gpu) / 1e4)


def machine_of_ray(own: bool) -> Machine:
    """What the connected Ray has; a task on a GPU reads the size of its memory.

    Args:
        own: this process started Ray, with more logical CPUs than there are cores: then the cores count.
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
