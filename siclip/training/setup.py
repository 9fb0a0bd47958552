"""From configs to a trainer that is ready for its first step."""

from __future__ import annotations

import torch

from siclip.checkpoints.inherit import inherit
from siclip.config import FreezePolicy, LossConfig, ModelConfig, TrainingConfig
from siclip.errors import UserError
from siclip.models.clip import Clip
from siclip.teachers import ModelTeacher, Teacher, TeacherEnsemble
from siclip.training.trainer import Trainer


def make_trainer(
    model: ModelConfig,
    loss: LossConfig,
    training: TrainingConfig,
    *,
    teacher: Clip | None = None,
    inherit_weights: bool = False,
    freeze: FreezePolicy = "inherited",
    distil_from: Teacher | None = None,
    device: torch.device | None = None,
) -> Trainer:
    """Seed, build, inherit, and put the trainer on its device (the best one here if none is given).

    ``teacher``: what the student inherits from and, unless ``distil_from`` names another source, is distilled from.
    The teacher's forward pass is left out when no loss part needs it: then it is inherited from alone, as in the
    control of a distilled run. ``freeze``: what of the inherited weights does not train (see
    `siclip.checkpoints.inherit.freeze_inherited`), for good or until ``training.thaw_step``.

    Raises:
        UserError: a part needs a teacher and there is none, or none needs ``distil_from``; the teacher takes other
            input or is another model; or there is nothing to train, or nothing to thaw.
    """
    if training.threads:
        torch.set_num_threads(training.threads)
    torch.manual_seed(training.seed)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if teacher is None and (inherit_weights or (loss.needs_teacher and distil_from is None)):
        what = "model.inherit" if inherit_weights else "a loss part"
        raise UserError(f"{what} needs a teacher: name its checkpoint in the recipe's 'teacher'")
    if distil_from is not None and not loss.needs_teacher:
        raise UserError(
            "distil_from names a teacher, and no part of the loss looks at one: set loss.feature_distillation, "
            "loss.contrastive_relational or loss.interactive_contrastive above 0, or leave distil_from out"
        )
    if teacher is not None:
        _check_inputs(model, teacher.config)
    for source_model in _models_of(distil_from):
        _check_inputs(model, source_model.config)
    student = Clip(model)
    frozen: tuple[str, ...] = ()
    if inherit_weights and teacher is not None:
        frozen = inherit(student, teacher, freeze).frozen
    source: Teacher | None = None
    if loss.needs_teacher:
        source = distil_from or (ModelTeacher(teacher, student) if teacher is not None else None)
    return Trainer(student, source, loss, training, device, frozen)


def _models_of(source: Teacher | None) -> list[Clip]:
    """The models of ours among a source's teachers."""
    if isinstance(source, TeacherEnsemble):
        return [model for teacher in source.teachers for model in _models_of(teacher)]
    return [source.model] if isinstance(source, ModelTeacher) else []


def _check_inputs(student: ModelConfig, teacher: ModelConfig) -> None:
    """Both see the same batch, so both must take the same images and tokens; a student may cut them shorter."""
    longest = max(student.text.context_length, teacher.text.context_length)
    pairs = {
        "image size": (student.image.image_size, teacher.image.image_size),
        "context length": (longest, teacher.text.context_length),
        "vocabulary": (student.text.vocab_size, teacher.text.vocab_size),
    }
    for what, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise UserError(
                f"the teacher {teacher.name!r} has another {what} ({theirs}) than {student.name!r} ({ours}): "
                "name a teacher that takes the same input"
            )
