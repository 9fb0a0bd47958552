"""Count what a model computes and keeps, on fake tensors: seconds instead of a real forward pass's half minute."""

from __future__ import annotations

from typing import get_args

import torch
from torch.utils.flop_counter import FlopCounterMode

from siclip.checkpoints.inherit import freeze_inherited
from siclip.config import FreezePolicy, ModelConfig
from siclip.diagnostics.describe import activation_bytes
from siclip.models.clip import Clip, count_parameters
from siclip.training.fake import FakeTensors, fake_clip
from siclip_platform.plan.counted import Frozen, ModelWork
from siclip_platform.storage.hashing import canonical_hash

CPU = torch.device("cpu")


def count_model(config: ModelConfig) -> ModelWork:
    """Count a model under each policy of freezing."""
    with FakeTensors():
        trunk, head = _forward_flops(fake_clip(config, CPU))
        # A new model for each policy: what an earlier one froze inside the blocks stays frozen.
        models = {policy: fake_clip(config, CPU).train() for policy in get_args(FreezePolicy)}
        frozen = {policy: _frozen(model, policy) for policy, model in models.items()}
        parameters = count_parameters(models["none"])
    return ModelWork(
        config=canonical_hash(config.model_dump(mode="json"), digits=12),
        trunk_flops=trunk,
        head_flops=head,
        parameters=parameters,
        frozen=frozen,
    )


def _frozen(model: Clip, policy: FreezePolicy) -> Frozen:
    freeze_inherited(model, policy)
    return Frozen(
        trainable=count_parameters(model, trainable=True),
        activation_bytes=activation_bytes(model),
        trunk_is_frozen=model.trunk_is_frozen(),
    )


def _forward_flops(model: Clip) -> tuple[int, int]:
    """Operations per pair in train form: (both trunks, both heads)."""
    model.requires_grad_(False).eval()
    image, text = model.config.image, model.config.text
    images = torch.empty(1, 3, image.image_size, image.image_size)
    tokens = torch.empty(1, text.context_length, dtype=torch.long)
    counts: list[int] = []
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            features = model.trunk(images, tokens)
        counts.append(counter.get_total_flops())
        with FlopCounterMode(display=False) as counter:
            model.head(features, tokens)
        counts.append(counter.get_total_flops())
    return counts[0], counts[1]
