"""When a run saves a checkpoint: after steps, after a time, or before its machine is taken away."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from siclip.config import CHECKPOINT_SECONDS, TrainingConfig
from siclip.training.workers import of_first_worker

NOTICE_SECONDS = 5.0
"""Seconds between two questions whether a machine will be taken away."""
Notice = Callable[[], bool]
"""Whether a machine of this run is about to be taken away. Every worker asks it after the same steps."""


class Saving:
    """Decides after each step whether a checkpoint is due; the clock of the first worker decides for all.

    Args:
        config: ``checkpoint_every``.
        device: of the run.
        seconds: training time so far, from which the next ten minutes count.
        notice: None where no such notice can come.
    """

    def __init__(
        self, config: TrainingConfig, device: torch.device, seconds: float, notice: Notice | None = None
    ) -> None:
        self.every = config.checkpoint_every
        self.device = device
        self.saved_at = seconds
        self.notice = notice
        self.asked_at = time.monotonic()
        self.noticed = False

    def due(self, step: int, seconds: float) -> bool:
        """Whether to save after ``step``, at ``seconds`` of training time. Every worker calls it after every step."""
        by_steps = isinstance(self.every, int) and self.every > 0 and step % self.every == 0
        by_time = asks = False
        if self.every == "auto" or self.notice is not None:
            by_time, asks = self._agreed(seconds)
        before_the_end = asks and self._is_new_notice()
        due = by_steps or by_time or before_the_end
        if due:
            self.saved_at = seconds
        return due

    def _agreed(self, seconds: float) -> tuple[bool, bool]:
        """Whether it is time to save, and to ask for a notice, by the first worker's clock."""
        by_time = self.every == "auto" and seconds - self.saved_at >= CHECKPOINT_SECONDS
        asks = self.notice is not None and time.monotonic() - self.asked_at >= NOTICE_SECONDS
        agreed = of_first_worker(by_time + 2 * asks, self.device)
        return bool(agreed & 1), bool(agreed & 2)

    def _is_new_notice(self) -> bool:
        """Ask; a notice stays until the machine is gone, and one checkpoint per notice is enough."""
        self.asked_at = time.monotonic()
        assert self.notice is not None
        before, self.noticed = self.noticed, self.notice()
        return self.noticed and not before
