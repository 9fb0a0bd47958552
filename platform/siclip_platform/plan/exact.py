"""The memory of a job's training step, counted operation by operation on fake tensors: ``plan --exact``."""

from __future__ import annotations

import math

import torch

from siclip.diagnostics.memory import StepMemory, step_memory
from siclip.errors import UserError
from siclip.teachers import StoredTeacher, Teacher
from siclip.training.fake import FakeTensors, ToldTeacher, fake_batch, fake_clip, fake_trainer
from siclip_platform.plan.job import Job
from siclip_platform.plan.work import teacher_config
from siclip_platform.recipes.control import without_distillation
from siclip_platform.recipes.student import recipe_model

# A backward pass on fake CUDA tensors needs a driver. Operations and types, and so the sizes, are those of a card.
DEVICE = torch.device("cpu")


def exact_memory(job: Job) -> StepMemory:
    """Count a step of a job on one card, in half a minute of one core. Nothing is allocated.

    Raises:
        UserError: the job has several cards: their gathered batch is not counted.
    """
    if job.cards > 1:
        raise UserError(
            f"--exact counts a step on one card, this job has {job.cards}: remove --exact or --cards; with "
            f"--batch-size {math.ceil(job.recipe.training.batch_size / job.cards)} it counts one card's share"
        )
    recipe = job.recipe if job.teacher != "none" else without_distillation(job.recipe)
    config, training = recipe_model(recipe), recipe.training
    micro = training.micro_batch_size if isinstance(training.micro_batch_size, int) else 0
    # fp16 has the sizes of bf16, and a CPU does not train in it.
    precision = "bf16" if training.precision == "fp16" else training.precision
    changes = {"micro_batch_size": micro, "precision": precision, "compile": False}
    # oneDNN's fused convolutions are a CPU's alone.
    with FakeTensors(), torch.backends.mkldnn.flags(enabled=False):
        teacher: Teacher | None = None
        if recipe.loss.needs_teacher and job.teacher == "stored":
            teacher = StoredTeacher((config.embed_dim, config.embed_dim), 100.0)
        elif recipe.loss.needs_teacher:
            same_trunk = job.teacher == "shared trunk" and recipe.model.inherit
            teacher = ToldTeacher(fake_clip(teacher_config(config.name), DEVICE), same_trunk)
        trainer = fake_trainer(
            config,
            recipe.loss,
            training.model_copy(update=changes),
            teacher=teacher,
            freeze=recipe.model.freeze if recipe.model.inherit else "none",
            device=DEVICE,
        )
        stored = config.embed_dim if isinstance(teacher, StoredTeacher) else 0
        return step_memory(
            trainer,
            lambda: fake_batch(
                config,
                training.batch_size,
                DEVICE,
                features=job.trunk_cache,
                teacher=stored,
                negatives=recipe.data.negatives_per_sample if recipe.loss.uses_generated else 0,
            ),
        )
