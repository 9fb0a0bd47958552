"""Memory of a training: its peak, running out of it, and releasing it."""

from __future__ import annotations

import gc
import sys

from siclip_platform.recipes.recipe import Recipe


def measure_peak(recipe: Recipe) -> int:
    """Run a recipe's first step on a GPU of the cluster and return its peak GPU memory in bytes."""
    import ray

    # the process ends after the call, so that it leaves no memory reserved on the GPU
    peak = ray.remote(num_gpus=1, num_cpus=1, max_calls=1)(_peak_of_first_step)
    return int(ray.get(peak.remote(recipe.model_dump_json())))


def _peak_of_first_step(recipe_json: str) -> int:
    import torch

    from siclip_platform.training.build import prepare

    recipe = Recipe.model_validate_json(recipe_json)
    prepared = prepare(recipe)
    for batch in prepared.batches(0, recipe.training.batch_size):
        prepared.trainer.train_step(batch)
    return torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the device or the host ran out of memory."""
    # PyTorch raises OutOfMemoryError for CUDA, and plain RuntimeErrors for the host's allocator and for libraries
    text = str(error).lower()
    says_so = "out of memory" in text or "can't allocate memory" in text
    by_name = "outofmemory" in type(error).__name__.lower()
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and (says_so or by_name))


def give_back_memory() -> None:
    """Release unreferenced memory on the host and on the device."""
    gc.collect()
    torch = sys.modules.get("torch")  # without torch nothing is on a device, and importing it would take seconds
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def process_metrics() -> dict[str, float]:
    """Return the memory and threads that this process uses, as ``system/…`` metrics."""
    import psutil

    process = psutil.Process()
    metrics = {
        "system/process_memory_mib": process.memory_info().rss / 2**20,
        "system/process_threads": float(process.num_threads()),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        metrics["system/gpu_memory_reserved_mib"] = torch.cuda.memory_reserved() / 2**20
    return metrics


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; its type's name if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
