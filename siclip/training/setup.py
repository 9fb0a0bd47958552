"""Build a trainer from configs, ready for its first step."""

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
    """Seed, build the student, inherit weights, and create the trainer on its device.

    Args:
        model, loss, training: configs of the run.
        teacher: the model that the student inherits from and, without ``distil_from``, is distilled from. If no loss
            part needs a teacher, only its weights are used, as in the control of a distilled run.
        inherit_weights: initialise the student from ``teacher``.
        freeze: which inherited weights do not train (see `siclip.checkpoints.inherit.freeze_inherited`), permanently
            or until ``training.thaw_step``.
        distil_from: another source to distil from.
        device: default: CUDA if available, otherwise the CPU.

    Raises:
        UserError: a part needs a teacher and there is none; ``distil_from`` is given and no part needs it; the
            teacher has other inputs or another structure; or there is nothing to train or to thaw.
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
            "distil_from names a teacher, but no part of the loss uses one: set loss.feature_distillation, "
            "loss.contrastive_relational or loss.interactive_contrastive above 0, or omit distil_from"
        )
    if teacher is not None:
        _check_inputs(model, teacher.config)
    for source_model in _models_of(distil_from):
        _check_inputs(model, source_model.config)
    # Nothing since seeding has drawn a random number, so the weights depend only on the seed and the config.
    student = Clip(model)
    frozen: tuple[str, ...] = ()
    if inherit_weights and teacher is not None:
        frozen = inherit(student, teacher, freeze).frozen
    source: Teacher | None = None
    if loss.needs_teacher:
        source = distil_from or (ModelTeacher(teacher, student) if teacher is not None else None)
    return Trainer(student, source, loss, training, device, frozen)


def _models_of(source: Teacher | None) -> list[Clip]:
    """The siclip models among a source's teachers."""
    if isinstance(source, TeacherEnsemble):
        return [model for teacher in source.teachers for model in _models_of(teacher)]
    return [source.model] if isinstance(source, ModelTeacher) else []


def _check_inputs(student: ModelConfig, teacher: ModelConfig) -> None:
    """Both receive the same batch, so both must take the same images and tokens; a student may truncate texts."""
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
                "name a teacher with the same input"
            )
