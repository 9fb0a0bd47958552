"""The cost of a model by stage: parameters, trainable parameters, multiply-adds and activation memory.

Stages of the image tower, in order: ``stem``, ``stage 0`` …, the last stage in two parts, ``stage n downsample``
(with the position encoding) and ``stage n blocks``, then ``final conv`` and ``projection``. Stages of the text tower:
``embedding`` (with the positions), ``first RepMixer``, ``blocks``, ``last RepMixer``, ``projection`` (with the final
norm). A plain text tower has no RepMixers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import FlopCounterMode

from siclip.models.clip import Clip, count_parameters
from siclip.models.image_tower import ImageTower
from siclip.models.text_tower import TextTower

Tower = Literal["image", "text", "both"]


@dataclass(frozen=True)
class StageDescription:
    """One stage, or the sum of several. Within a stage, shared weights are counted once.

    Attributes:
        parameters, trainable_parameters: of the train form.
        reparameterized_parameters: of the deployable model.
        multiply_adds: of the deployable model for one sample; matrix products and convolutions only.
        activation_bytes: memory that autograd keeps for the backward pass per additional sample in the batch, in
            train form under bf16 autocast.
    """

    tower: Tower
    stage: str
    parameters: int
    reparameterized_parameters: int
    multiply_adds: int
    activation_bytes: int
    trainable_parameters: int


@dataclass(frozen=True)
class ModelDescription:
    """The stages of both towers in order, then the logit scale, which has the tower ``both``."""

    stages: tuple[StageDescription, ...]

    def tower(self, tower: Tower) -> StageDescription:
        """The sum over a tower's stages."""
        return _sum((s for s in self.stages if s.tower == tower), tower, "tower")

    @property
    def total(self) -> StageDescription:
        """The sum over everything; multiply-adds and memory are those of one image and one text."""
        return _sum(self.stages, "both", "total")


def describe_model(model: Clip) -> ModelDescription:
    """Measure a model on its device, without changing it. Parameters with ``requires_grad`` count as trainable.

    Multiply-adds are counted on the reparameterized model in eval mode at batch size 1. Activation memory is measured
    as in the trainer: train form, channels-last, bf16 autocast, frozen weights without gradients. It is the
    difference between batches of 3 and 2, so that everything independent of the batch cancels: the parameters, and
    the bf16 copies of them that autocast makes. A storage saved by several operations counts once, in the first stage
    that saves it. The normalisation of the embeddings and the loss belong to no tower.
    """
    trained = copy.deepcopy(model).to(memory_format=torch.channels_last).train()
    deployable = model.reparameterize()
    stages, fused = _stages(model), _stages(deployable)
    multiply_adds = _multiply_adds(deployable)
    fewer, more = (_saved_bytes(trained, batch) for batch in (2, 3))
    rows = [
        StageDescription(
            stage.tower,
            stage.name,
            parameters=count_parameters(stage.parts),
            reparameterized_parameters=count_parameters(fused[index].parts),
            multiply_adds=multiply_adds[index],
            activation_bytes=more[index] - fewer[index],
            trainable_parameters=count_parameters(stage.parts, trainable=True),
        )
        for index, stage in enumerate(stages)
    ]
    scale = model.logit_scale
    size = scale.numel()
    trainable = size if scale.requires_grad else 0
    rows.append(StageDescription("both", "logit scale", size, size, 0, 0, trainable))
    return ModelDescription(tuple(rows))


def activation_bytes(model: Clip) -> int:
    """Memory that autograd keeps per additional pair, as in `describe_model`, for a model in the trainer's form."""
    fewer, more = (sum(_saved_bytes(model, batch)) for batch in (2, 3))
    return more - fewer


def _sum(stages: Iterable[StageDescription], tower: Tower, name: str) -> StageDescription:
    rows = list(stages)
    return StageDescription(
        tower,
        name,
        parameters=sum(row.parameters for row in rows),
        reparameterized_parameters=sum(row.reparameterized_parameters for row in rows),
        multiply_adds=sum(row.multiply_adds for row in rows),
        activation_bytes=sum(row.activation_bytes for row in rows),
        trainable_parameters=sum(row.trainable_parameters for row in rows),
    )


class _Stage:
    """A stage's modules, and its parameters outside of them; the stage begins when one of its modules is called."""

    def __init__(self, tower: Tower, name: str, *parts: nn.Module) -> None:
        self.tower = tower
        self.name = name
        self.parts = nn.ModuleList(parts)


def _stages(model: Clip) -> list[_Stage]:
    return [*_image_stages(model.image_encoder), *_text_stages(model.text_encoder)]


def _image_stages(tower: ImageTower) -> list[_Stage]:
    stem, *stages, downsample, positions = tower.trunk_modules()
    last = len(stages)
    return [
        _Stage("image", "stem", stem),
        *(_Stage("image", f"stage {index}", stage) for index, stage in enumerate(stages)),
        _Stage("image", f"stage {last} downsample", downsample, positions),
        _Stage("image", f"stage {last} blocks", *tower.blocks),
        _Stage("image", "final conv", tower.model.final_conv),
        _Stage("image", "projection", tower.model.head),
    ]


def _text_stages(tower: TextTower) -> list[_Stage]:
    embedding, positions, *first = tower.trunk_modules()
    last = [] if tower.last_mixer is None else [tower.last_mixer]
    projection = nn.ParameterList([tower.projection_layer])
    return [
        _Stage("text", "embedding", embedding, positions),
        *(_Stage("text", "first RepMixer", mixer) for mixer in first),
        _Stage("text", "blocks", *tower.blocks),
        *(_Stage("text", "last RepMixer", mixer) for mixer in last),
        _Stage("text", "projection", tower.final_layer_norm, projection),
    ]


def _multiply_adds(model: Clip) -> list[int]:
    # At batch size 1 no computation is shared among the samples of a batch.
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        operations = _by_stage(model, batch=1, reading=counter.get_total_flops)
    # The counter counts a multiply-add as two operations.
    return [count // 2 for count in operations]


def _saved_bytes(model: Clip, batch: int) -> list[int]:
    saved = SavedBytes()
    with saved, torch.autocast(model.logit_scale.device.type, dtype=torch.bfloat16):
        return _by_stage(model, batch, reading=lambda: saved.total)


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Inside the block, ``total`` is the number of bytes in distinct storages that autograd has saved so far.

    Views of one storage count once, at its full size. Saved parameters and inputs are included.
    """

    def __init__(self) -> None:
        super().__init__(self._pack, lambda tensor: tensor)
        self.total = 0
        self._storages: set[StorageWeakRef] = set()

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # Not the address of its data: fake tensors have none.
        key = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        if key not in self._storages:
            # The weak reference alone keeps the storage's address from being given to another one.
            self._storages.add(key)
            self.total += storage.nbytes()
        # Detached, because an output that saves itself would be a reference cycle.
        return tensor.detach()


def _by_stage(model: Clip, batch: int, reading: Callable[[], int]) -> list[int]:
    """Run both towers on a batch and attribute the growth of ``reading`` to the stage that was running."""
    stages = _stages(model)
    amounts = [0] * len(stages)
    current, before = 0, reading()

    def enter(stage: int, *_: Any) -> None:
        nonlocal current, before
        now = reading()
        amounts[current] += now - before
        current, before = stage, now

    image, text = model.config.image, model.config.text
    device = model.logit_scale.device
    images = torch.zeros(batch, 3, image.image_size, image.image_size, device=device)
    # Different texts without padding: equal tokens at the end would be computed once for the batch.
    tokens = torch.arange(batch * text.context_length, device=device).view(batch, -1) % text.vocab_size
    with ExitStack() as hooks:
        for index, stage in enumerate(stages):
            for module in stage.parts.modules():
                hooks.enter_context(module.register_forward_pre_hook(partial(enter, index)))
        model.encode_image(images)
        model.encode_text(tokens)
    enter(0)
    return amounts
