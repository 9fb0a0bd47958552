"""One training step, and everything a checkpoint needs to go on exactly."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from siclip.config import LossConfig, TrainingConfig
from siclip.data.batch import Batch, to_float_images
from siclip.errors import UserError
from siclip.losses import Embeddings, Objective, PairIds
from siclip.models.clip import MAX_LOGIT_SCALE, Clip
from siclip.teachers import Teacher
from siclip.training.optimizer import learning_rate, make_optimizer

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number."""


class Trainer:
    """A model, its teacher and objective, the optimizer, and the number of steps done.

    A step depends only on the state and the batch: the miner's generator is seeded by (seed, step), so a run
    continued from a checkpoint computes what the uninterrupted run would have.

    ``frozen`` names the parameters that weight inheritance froze: after ``config.thaw_step`` steps they train too,
    and their BatchNorms with them.

    Raises:
        UserError: fp16 without a CUDA device, or a thaw step with nothing frozen.
    """

    def __init__(
        self,
        model: Clip,
        teacher: Teacher | None,
        loss: LossConfig,
        config: TrainingConfig,
        device: torch.device,
        frozen: Collection[str] = (),
    ) -> None:
        if config.precision == "fp16" and device.type != "cuda":
            raise UserError("training.precision fp16 needs a CUDA device: take bf16 or fp32 here")
        if config.thaw_step and not frozen:
            raise UserError(
                f"training.thaw_step {config.thaw_step} has nothing to thaw: let the model inherit and freeze "
                "(model.inherit true, model.freeze 'inherited' or 'before_sasp'), or set it to 0"
            )
        self.config = config
        self.device = device
        self.model = model.to(device).to(memory_format=torch.channels_last).train()
        self.teacher = teacher
        if teacher is not None:
            teacher.model.to(device).to(memory_format=torch.channels_last)
        width = model.config.embed_dim
        teacher_width = teacher.model.config.embed_dim if teacher else width
        self.objective = Objective(loss, width, (teacher_width, teacher_width) if teacher else None).to(device)
        self.thawing = frozenset(frozen) if config.thaw_step else frozenset()
        self.thawed = False
        named = [*self.model.named_parameters(), *self.objective.named_parameters()]
        self.optimizer = make_optimizer(named, config, self.thawing)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.step = 0

    def train_step(self, batch: Batch) -> dict[str, Tensor | float]:
        """One optimizer step; returns the loss parts, gradient norm, learning rate and logit scale.

        Raises:
            TrainingDiverged: the loss is not finite; the weights are those of the step before.
        """
        self._thaw_when_due()
        rate = learning_rate(self.step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = batch.to(self.device)
        parts = self._losses(batch)
        if not torch.isfinite(parts["loss"]):
            ids = batch.image_ids[:8].tolist()
            raise TrainingDiverged(f"loss is {parts['loss'].item()} at step {self.step}; image ids {ids}, …")
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(parts["loss"]).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._trained(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._clamp_scale()
        self.step += 1
        metrics: dict[str, Tensor | float] = {name: value.detach() for name, value in parts.items()}
        metrics |= {"gradient_norm": norm, "learning_rate": rate, "logit_scale": self.model.scale().detach()}
        return metrics

    def _thaw_when_due(self) -> None:
        due = 0 < self.config.thaw_step <= self.step
        if due == self.thawed:
            return
        for name, parameter in self.model.named_parameters():
            if name in self.thawing:
                parameter.requires_grad_(due)
        self.model.train()
        if self.teacher:
            self.teacher.compare(self.model)
        self.thawed = due

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        if batch.images is None:
            raise UserError("the batch holds no images, and this trainer runs the trunk itself")
        images = to_float_images(batch.images)
        with self._autocast():
            features = self.model.trunk(images, batch.tokens)
            image, text = self.model.head(features, batch.tokens)
            teacher = self.teacher.embed(images, batch.tokens, features) if self.teacher else None
        student = Embeddings(image=image, text=text, logit_scale=self.model.scale())
        generator = torch.Generator(device=self.device)
        generator.manual_seed((self.config.seed << 32) + self.step)
        parts: dict[str, Tensor] = self.objective(
            student, teacher, PairIds(image=batch.image_ids, caption=batch.caption_ids), generator
        )
        return parts

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = _AUTOCAST.get(self.config.precision)
        return torch.autocast(self.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def _trained(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @torch.no_grad()
    def _clamp_scale(self) -> None:
        self.model.logit_scale.clamp_(0, math.log(MAX_LOGIT_SCALE))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the model's weights: plain tensors and numbers only."""
        return {
            "step": self.step,
            "config": self.config.model_dump(mode="json"),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            UserError: the state is of a run with another training config.
        """
        saved = TrainingConfig.model_validate(state["config"])
        if saved != self.config:
            changed = [k for k in type(saved).model_fields if getattr(saved, k) != getattr(self.config, k)]
            raise UserError(f"the checkpoint is of a run with another training config: {', '.join(changed)}")
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self._thaw_when_due()
