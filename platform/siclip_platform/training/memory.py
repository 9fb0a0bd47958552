"""Memory of a training: its peak, and what to do when there is not enough."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

from siclip_platform.recipes.recipe import Recipe

if TYPE_CHECKING:
    pass


def measure_peak(recipe: Recipe) -> int:
    """Bytes of GPU memory at the peak of the recipe's first step, measured by doing it on a GPU of the cluster."""
    import ray

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
    """Of the device or of the host."""
    text = str(error).lower()
    told = "outofmemory" in type(error).__name__.lower() or "out of memory" in text or "can't allocate memory" in text
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and told)


def give_back_memory() -> None:
    """Free what nothing refers to any more, on the host and on the device."""
    gc.collect()
    torch = sys.modules.get("torch")  # a training imports it; nothing is on a device before
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def process_figures() -> dict[str, float]:
    """What this process takes of its machine."""
    import psutil

    process = psutil.Process()
    figures = {
        "system/process_memory_mib": process.memory_info().rss / 2**20,
        "system/process_threads": float(process.num_threads()),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        figures["system/gpu_memory_reserved_mib"] = torch.cuda.memory_reserved() / 2**20
    return figures


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
