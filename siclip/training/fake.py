"""A trainer of fake tensors: shapes, types and devices without values, in no memory and on absent devices.

Inside `FakeTensors` a training step runs as it is, and shows what it would allocate (`siclip.diagnostics.memory`) and
on which device. What a step decides by the values of tensors is decided here by what it takes as arguments: the text
tower computes every token (``skips_padding``), the teacher is told what it shares, the miners draw from torch's
default generator, and the caller of `Trainer.gradients` and `Trainer.apply` reads no norm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from siclip.checkpoints.inherit import freeze_inherited
from siclip.config import FreezePolicy, LossConfig, ModelConfig, TrainingConfig
from siclip.data.batch import Batch, Negatives, TrunkFeatures
from siclip.models.clip import Clip
from siclip.teachers import ModelTeacher, Teacher
from siclip.training.trainer import Trainer


class FakeTensors(FakeTensorMode):  # type: ignore[no-untyped-call]
    """The mode in which every new tensor is fake; a context manager."""

    def __deepcopy__(self, memo: object) -> FakeTensors:
        # A copy of a module (a folded trunk, a moving average) contains tensors of the same mode.
        return self


class ToldTeacher(ModelTeacher):
    """A `ModelTeacher` that has no weights to compare with the student's: it is told whether they are the same.

    Args:
        model: the teacher's model.
        same_trunk: whether the student inherited this model's trunk.
    """

    def __init__(self, model: Clip, same_trunk: bool) -> None:
        self.same_trunk = same_trunk
        super().__init__(model)

    def follow(self, student: Clip) -> None:
        shared = self.same_trunk and student.trunk_is_frozen()
        self.shares = {"image": shared, "text": shared}


def fake_clip(config: ModelConfig, device: torch.device) -> Clip:
    """A model of fake tensors; requires an active FakeTensorMode."""
    # Built on the meta device: timm reads values of small tensors while it builds.
    with unset_fake_temporarily(), torch.device("meta"):
        model = Clip(config).to(memory_format=torch.channels_last)
    model.text_encoder.skips_padding = False
    return _on(model, device)


def fake_trainer(
    model: ModelConfig,
    loss: LossConfig,
    training: TrainingConfig,
    *,
    teacher: Teacher | None = None,
    freeze: FreezePolicy = "none",
    device: torch.device,
) -> Trainer:
    """A trainer of fake tensors; requires an active FakeTensorMode.

    Args:
        model, loss, training: configs of the run.
        teacher: of fake tensors, see `ToldTeacher` and `fake_clip`.
        freeze: which inherited weights do not train.
        device: any device; a backward pass on a CUDA device requires its driver.
    """
    student = fake_clip(model, device)
    frozen = freeze_inherited(student, freeze)
    # What the trainer creates is created where it belongs: fake tensors cannot be moved.
    with device:
        return Trainer(student, teacher, loss, training, device, frozen)


def fake_batch(
    config: ModelConfig,
    size: int,
    device: torch.device,
    *,
    features: bool = False,
    teacher: int = 0,
    negatives: int = 0,
) -> Batch:
    """A batch of fake tensors; requires an active FakeTensorMode.

    Args:
        config: of the model that reads it.
        size: samples.
        device: of its tensors.
        features: stored outputs of the trunk, bf16, instead of images.
        teacher: width of stored teacher embeddings; 0: none.
        negatives: generated false captions of each sample; 0: none.
    """
    image, text = config.image, config.text

    def ids(*more: int) -> Tensor:
        return torch.empty(size, *more, dtype=torch.int64, device=device)

    def embeddings() -> Tensor | None:
        return torch.empty(size, teacher, device=device) if teacher else None

    stored = None
    if features:
        side = feature_side(config)
        stored = TrunkFeatures(
            torch.empty(size, image.widths[-1], side, side, dtype=torch.bfloat16, device=device),
            torch.empty(size, text.context_length, text.width, dtype=torch.bfloat16, device=device),
        )
    return Batch(
        None
        if features
        else torch.empty(size, image.image_size, image.image_size, 3, dtype=torch.uint8, device=device),
        ids(text.context_length),
        ids(),
        ids(),
        features=stored,
        teacher_image=embeddings(),
        teacher_text=embeddings(),
        negatives=Negatives(ids(negatives, text.context_length), ids(negatives), ids(negatives))
        if negatives
        else None,
    )


def feature_side(config: ModelConfig) -> int:
    """Height and width of the image trunk's output."""
    # The stem divides the side by 4, every stage after the first by 2; strided convolutions round up.
    return -(-config.image.image_size // (1 << (len(config.image.widths) + 1)))


def _on(model: Clip, device: torch.device) -> Clip:
    """The model with a new tensor on the device for each of its meta tensors."""
    new: dict[int, Tensor] = {}

    def moved(tensor: Tensor) -> Tensor:
        if id(tensor) not in new:
            empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
            is_parameter = isinstance(tensor, nn.Parameter)
            new[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        return new[id(tensor)]

    # The old tensors stay alive until the end, so that no id is used twice.
    old = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            setattr(module, name, moved(tensor))
    del old
    return model
