"""Optimizer steps, and the training state that a checkpoint needs to resume exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from siclip.config import LossConfig, TrainingConfig
from siclip.data.batch import Batch
from siclip.data.cursor import Cursor
from siclip.errors import UserError
from siclip.losses import Objective
from siclip.models.clip import MAX_LOGIT_SCALE, Clip
from siclip.models.freezing import eval_mode
from siclip.models.placing import placed
from siclip.teachers import Teacher
from siclip.training.batch_norms import check_exactness, fix_statistics, moving_statistics, restore_statistics
from siclip.training.calibration import calibrate
from siclip.training.diverged import SkippedBatch, TrainingDiverged
from siclip.training.identity import check_state, identity
from siclip.training.memory import card_name, find_micro_batch_size, moments_held, with_longest_captions
from siclip.training.monitor import SAMPLES, divergences, gains
from siclip.training.optimizer import learning_rate, make_optimizer, moving_average
from siclip.training.step import Step, trunk_features
from siclip.training.workers import workers

__all__ = ["Trainer", "TrainingDiverged"]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """A model, its teacher and objective, the optimizer, and the number of completed steps.

    A step depends only on the state and the batch: the miner's generator is seeded by (seed, step), so a run resumed
    from a checkpoint computes what the uninterrupted run would have computed.

    Args:
        model: the student.
        teacher: None without distillation.
        loss: of the objective.
        config: of the training.
        device: the model, teacher and objective are moved to it.
        frozen: names of the parameters that weight inheritance froze. After ``config.thaw_step`` steps they and
            their BatchNorms train too.

    Raises:
        UserError: a config without steps, fp16 without a CUDA device, a thaw step with nothing frozen, or a split
            batch with BatchNorms in train mode.
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
        if not config.steps:
            raise UserError(
                f"training.epochs {config.epochs:g} are steps only once the samples are counted: "
                "use TrainingConfig.with_steps"
            )
        if config.precision == "fp16" and device.type != "cuda":
            raise UserError("training.precision fp16 requires a CUDA device: use bf16 or fp32 here")
        if config.thaw_step and not frozen:
            raise UserError(
                f"training.thaw_step {config.thaw_step} has nothing to thaw: inherit and freeze weights "
                "(model.inherit true, model.freeze 'inherited' or 'before_sasp'), or set it to 0"
            )
        self.config = config
        self.device = device
        self.model = placed(model, device)
        self.teacher = teacher
        if teacher is not None:
            teacher.to(device)
            teacher.follow(self.model)
        objective = Objective(loss, model.config.embed_dim, teacher.widths if teacher else None)
        self.objective = placed(objective, device)
        self.thawing = frozenset(frozen) if config.thaw_step else frozenset()
        self.thawed = False
        self.frozen = tuple(name for name, p in self.model.named_parameters() if not p.requires_grad)
        self._set_mode()
        check_exactness(self.model, config, workers())
        named = [*self.model.named_parameters(), *self.objective.named_parameters()]
        self.optimizer = make_optimizer(named, config, self.thawing)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.average = moving_average(self.model, config.ema_decay) if config.ema_decay else None
        # Only the heads: a frozen trunk already runs in folded form.
        head = torch.compile(self.model.head) if config.compile else None
        self._step = Step(self.model, self.objective, teacher, autocast=self.autocast, compiled_head=head)
        # Position in samples → data cursor; set by the owner of the data, if the data has cursors.
        self.cursor_of: Callable[[int], Cursor] | None = None
        self.probes = config.micro_batch_size == "auto"
        self.micro_batch_size = 0 if config.micro_batch_size == "auto" else config.micro_batch_size
        self.step = self.skipped = 0
        self.diverging: list[SkippedBatch] = []
        self.training_seconds = 0.0
        self._earlier_seconds, self._started = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the run began, including evaluations and earlier sessions."""
        return self._earlier_seconds + time.perf_counter() - self._started

    @property
    def result(self) -> Clip:
        """The model that the run produces: the exponential moving average if there is one."""
        if self.average is None:
            return self.model
        return cast(Clip, self.average.module)

    def train_step(self, batch: Batch) -> dict[str, Tensor | float]:
        """One optimizer step; returns the loss parts, gradient norms, learning rate and logit scale.

        A step with a loss or gradient that is not finite changes no weight and is counted in ``skipped_steps``.

        Raises:
            TrainingDiverged: too many such steps in a row; the weights are those of the last finite step.
        """
        self.thaw_when_due()
        batch = batch.to(self.device)
        self.probe(batch)
        if self.step == 0 and self.config.batch_norm == "eval":
            with self.autocast():
                calibrate(self.model, batch, self.micro_batch_size)
            # The calibration restores the modes that it found.
            self._set_mode()
        rate = learning_rate(self.step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        statistics = moving_statistics(self.model)
        parts, norms = self.gradients(batch, self._generator())
        # loss · 0 adds nothing to a finite norm and makes it nan if the loss is not finite: one test for both.
        if not self._update(batch, norms["gradient_norm"] + parts["loss"].detach() * 0):
            restore_statistics(statistics)
            self._stop_if_diverged()
        self.step += 1
        metrics: dict[str, Tensor | float] = {name: value.detach() for name, value in parts.items()}
        micro = self.micro_batch_size or len(batch)
        metrics |= norms | {"learning_rate": rate, "logit_scale": self.model.scale().detach()}
        return metrics | {"skipped_steps": float(self.skipped), "micro_batch_size": float(micro)}

    @torch.no_grad()
    def diagnose(self, batch: Batch) -> dict[str, float]:
        """Gains of the SAS-P blocks and the divergence of their attention, see `siclip.training.monitor`."""
        some = batch[slice(0, SAMPLES)].to(self.device)
        # A diagnosis must not change a BatchNorm's statistics.
        with eval_mode(self.model):
            return gains(self.model) | divergences(self.model, trunk_features(self.model, some))

    def gradients(
        self, batch: Batch, generator: torch.Generator | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor | float]]:
        """Compute the gradients of a batch: the part of `train_step` that reads no value of a tensor.

        Args:
            batch: on the trainer's device.
            generator: for the miners of pair matching, see `siclip.losses.mine_negatives`.

        Returns:
            The scalars of the objective, and the norms of the unscaled gradients.
        """
        # None instead of zeros: AdamW skips parameters without a gradient, those that are still frozen.
        self.optimizer.zero_grad(set_to_none=True)
        parts = self._gradients(batch, self.micro_batch_size, generator)
        # Norms and clipping need unscaled gradients.
        self.scaler.unscale_(self.optimizer)
        return parts, self._gradient_norms()

    def apply(self, norm: Tensor) -> None:
        """Clip the gradients, whose norm is finite, and step."""
        nn.utils.clip_grads_with_norm_(self._trained(), self.config.clip_norm, norm)
        self.scaler.step(self.optimizer)

    def _generator(self) -> torch.Generator:
        generator = torch.Generator(device=self.device)
        # Seed and step in disjoint bits (a seed has 32), so that no two runs share a step's draws.
        return generator.manual_seed((self.config.seed << 32) + self.step)

    def _gradients(self, batch: Batch, micro_batch_size: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        step = replace(self._step, micro_batch_size=micro_batch_size)
        progress = self.step / self.config.steps
        self.objective.begin(self.step)
        return step.gradients(batch, generator, progress=progress, scale=self.scaler.scale)

    def probe(self, batch: Batch) -> None:
        """With ``micro_batch_size: auto``, measure the micro-batch size if that is not done yet.

        It is measured with captions that fill the context and with every parameter training that ever will. Apart
        from the size, no state of the training changes.
        """
        if not self.probes:
            return
        thawed, devices = self.thawed, [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), moments_held(self.optimizer):
            self._thaw(bool(self.thawing))
            statistics = moving_statistics(self.model)
            longest = with_longest_captions(batch.to(self.device))
            self.micro_batch_size = find_micro_batch_size(
                lambda size: self._gradients(longest, size, self._generator()), len(batch), self.device
            )
            restore_statistics(statistics)
            self.optimizer.zero_grad(set_to_none=True)
            self._thaw(thawed)
        self.probes = False

    def _update(self, batch: Batch, norm: Tensor | float) -> bool:
        """Clip the gradient and step, or skip the step if ``norm`` is not finite; returns whether it stepped."""
        finite = math.isfinite(float(norm))
        if finite:
            self.apply(torch.as_tensor(norm))
            self.diverging = []
        else:
            self.skipped += 1
            self.diverging.append(SkippedBatch.of(self.step, batch))
        self.scaler.update()
        # The same bounds as in open_clip's training.
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(MAX_LOGIT_SCALE))
        if self.average is not None and finite:
            self.average.update_parameters(self.model)
        return finite

    def _stop_if_diverged(self) -> None:
        row = len(self.diverging)
        if row >= self.config.max_skipped_steps:
            raise TrainingDiverged(
                f"loss or gradient was not finite in {row} consecutive steps, up to step {self.step}", self.diverging
            )

    def _gradient_norms(self) -> dict[str, Tensor | float]:
        """L2 norms of the gradient: total, of each tower, and of the logit scale with the objective's parameters."""
        groups = {
            "image": self.model.image_encoder.parameters(),
            "text": self.model.text_encoder.parameters(),
            "objective": [self.model.logit_scale, *self.objective.parameters()],
        }
        norms = {
            f"gradient_norm/{name}": nn.utils.get_total_norm([p.grad for p in group if p.grad is not None])
            for name, group in groups.items()
        }
        total = torch.stack([norm.to(self.device) for norm in norms.values()]).norm()
        return {"gradient_norm": total, **norms}

    def _set_mode(self) -> None:
        self.model.train()
        if self.config.batch_norm == "eval":
            fix_statistics(self.model)

    def thaw_when_due(self) -> None:
        self._thaw(0 < self.config.thaw_step <= self.step)

    def _thaw(self, due: bool) -> None:
        if due == self.thawed:
            return
        for name, parameter in self.model.named_parameters():
            if name in self.thawing:
                parameter.requires_grad_(due)
        self._set_mode()
        if self.teacher:
            self.teacher.follow(self.model)
        self.thawed = due

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which encoding runs."""
        dtype = _AUTOCAST.get(self.config.precision)
        return torch.autocast(self.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def _trained(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def identity(self) -> dict[str, Any]:
        """What a training state must match to be resumed here."""
        teacher = "none" if self.teacher is None else self.teacher.identity
        return identity(self.config, self.model.config, self.objective.config, self.frozen, teacher)

    def state_dict(self) -> dict[str, Any]:
        """The training state beyond the weights of `result`: only plain tensors, strings and numbers."""
        averaging = {"model": self.model.state_dict(), "updates": self.average.n_averaged} if self.average else None
        return {
            "step": self.step,
            "skipped": self.skipped,
            "diverging": [batch.as_plain() for batch in self.diverging],
            "micro_batch_size": self.micro_batch_size,
            "card": card_name(self.device),
            "seconds": {"training": self.training_seconds, "total": self.seconds},
            "identity": self.identity,
            "cursor": self.cursor_of and self.cursor_of(self.step * self.config.batch_size).model_dump(mode="json"),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "averaging": averaging,
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Check that `load_state_dict` accepts this state, without changing anything.

        Raises:
            UserError: a key is missing, or the state is of a run with another training config, model, loss, freezing,
                teacher or data.
        """
        check_state(state, self.identity, self.cursor_of(0) if self.cursor_of else None)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a `state_dict`. The weights of `result` must already be loaded into `model`.

        Raises:
            UserError: as `check_state`.
        """
        self.check_state(state)
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.skipped = state["step"], state["skipped"]
        self.diverging = [SkippedBatch.from_plain(plain) for plain in state["diverging"]]
        self.micro_batch_size = int(state["micro_batch_size"])
        self.probes = self.config.micro_batch_size == "auto" and state["card"] != card_name(self.device)
        self.training_seconds, self._earlier_seconds = state["seconds"]["training"], state["seconds"]["total"]
        self._started = time.perf_counter()
        # The checkpoint's weights are those of the average; the trained ones are in the training state.
        if self.average is not None:
            self.average.module.load_state_dict(self.model.state_dict())
            self.model.load_state_dict(state["averaging"]["model"])
            self.average.n_averaged.copy_(state["averaging"]["updates"])
        self.thaw_when_due()
