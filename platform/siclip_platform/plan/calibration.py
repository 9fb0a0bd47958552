"""Timed training steps on this machine: seconds per step = ``seconds_fixed`` + ``seconds_each`` · batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

from siclip.data.batch import Batch
from siclip.errors import UserError
from siclip.models.clip import Clip
from siclip.teachers import ModelTeacher, StoredTeacher, Teacher
from siclip.training.setup import make_trainer
from siclip.training.trainer import Trainer
from siclip_platform.plan.job import TeacherSource
from siclip_platform.plan.measured import Calibration
from siclip_platform.plan.work import teacher_config
from siclip_platform.recipes.control import without_distillation
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.recipes.student import recipe_model

LEAST_STEPS = 3
LARGEST = 64
"""Pairs of the larger of the two timed batches, unless the recipe's batch is smaller."""


def calibrate(make: Callable[[int], Trainer], batches: tuple[int, int], seconds: float = 60.0) -> Calibration:
    """Time whole training steps at two batch sizes.

    The first step of each, which allocates and compiles, does not count.

    Args:
        make: batch size → a trainer.
        batches: the two batch sizes.
        seconds: how long to measure, both sizes together.

    Raises:
        UserError: a step does not fit in the device's memory.
    """
    try:
        trainers = {size: make(size) for size in batches}
        data = {size: random_batch(trainer, size) for size, trainer in trainers.items()}
        timed: dict[int, list[float]] = {size: [] for size in batches}
        for size in batches:
            _step(trainers[size], data[size])
        end = time.perf_counter() + seconds
        # Alternating: a machine that slows down for a while affects both sizes alike.
        while time.perf_counter() < end or min(map(len, timed.values())) < LEAST_STEPS:
            for size in batches:
                timed[size].append(_step(trainers[size], data[size]))
    except torch.OutOfMemoryError:
        raise UserError(
            f"calibration steps of {batches} pairs do not fit on this device: choose a smaller training.batch_size"
        ) from None
    medians = [median(timed[size]) for size in batches]
    each, fixed = np.polyfit(batches, medians, 1)
    spread = max(abs(s - m) / m for size, m in zip(batches, medians, strict=True) for s in timed[size])
    # Noise can put the intercept below zero.
    return Calibration(
        _name(trainers[batches[0]].device), float(max(fixed, 0.0)), float(each), float(spread), batches
    )


def two_sizes(recipe: Recipe) -> tuple[int, int]:
    """Batch sizes to time: half of the recipe's batch size and all of it, at most `LARGEST`."""
    whole = min(recipe.training.batch_size, LARGEST)
    return max(2, whole // 2), max(3, whole)


def calibration_trainer(recipe: Recipe, batch_size: int, source: TeacherSource) -> Trainer:
    """A trainer of the recipe with random weights: the time of a step does not depend on them."""
    model = recipe_model(recipe)
    if source == "none":
        recipe = without_distillation(recipe)
    whole = recipe.training.model_copy(update={"batch_size": batch_size, "micro_batch_size": 0, "thaw_step": 0})
    teaching = teacher_config(model.name)
    base = Clip(teaching)
    targets: Teacher | None = None
    if source == "online":
        targets = ModelTeacher(Clip(teaching))  # different weights, so it shares no trunk
    elif source == "stored":
        targets = StoredTeacher((model.embed_dim, model.embed_dim), 100.0)
    return make_trainer(
        model,
        recipe.loss,
        whole,
        teacher=base,
        inherit_weights=recipe.model.inherit,
        freeze=recipe.model.freeze,
        distil_from=targets,
    )


def random_batch(trainer: Trainer, size: int) -> Batch:
    """Noise with the shapes of the model's inputs; captions have 20 tokens, or as many as the context holds."""
    config = trainer.model.config
    generator = torch.Generator().manual_seed(0)
    side, context = config.image.image_size, config.text.context_length
    images = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8, generator=generator)
    tokens = torch.zeros(size, context, dtype=torch.int64)
    words = min(20, context - 1)
    tokens[:, :words] = torch.randint(1, config.text.vocab_size - 2, (size, words), generator=generator)
    tokens[:, words] = config.text.vocab_size - 1
    ids = torch.arange(size)
    stored = torch.nn.functional.normalize(torch.randn(size, config.embed_dim, generator=generator), dim=-1)
    return Batch(images, tokens, ids, ids, teacher_image=stored, teacher_text=stored)


def _step(trainer: Trainer, batch: Batch) -> float:
    started = time.perf_counter()
    trainer.train_step(batch)
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    return time.perf_counter() - started


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
