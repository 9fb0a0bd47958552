"""Limit the share of a training's time that evaluations take."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from siclip.models.clip import Clip

logger = logging.getLogger(__name__)


class Budgeted:
    """An evaluation that is skipped where all evaluations together would exceed their share of the time.

    An evaluation is expected to take as long as the longest so far, so the first one always runs; so does the one
    after the last step. A skipped one is logged and returns only its costs: ``cost/evaluations_skipped`` counts
    them. With a share of 1 nothing is skipped and no costs are added.
    """

    def __init__(
        self,
        evaluate: Callable[[Clip], Mapping[str, float]],
        *,
        max_share: float,
        last_step: int,
        now: Callable[[], tuple[int, float]],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """
        Args:
            evaluate: a model's metrics.
            max_share: the largest share of the time, above 0 and at most 1.
            last_step: the training's last step.
            now: returns the training's step and its seconds so far, without evaluations.
            clock: returns a time in seconds.
        """
        self.evaluate, self.max_share, self.last_step = evaluate, max_share, last_step
        self.now, self.clock = now, clock
        self.spent = self.longest = 0.0
        self.skipped = 0

    def __call__(self, model: Clip) -> dict[str, float]:
        if self.max_share >= 1:
            return dict(self.evaluate(model))
        step, trained = self.now()
        # the share that evaluations will have after this one
        expected = self.spent + self.longest
        share = expected / (expected + trained) if expected else 0.0
        if share > self.max_share and step != self.last_step:
            self.skipped += 1
            logger.warning(
                f"the evaluation at step {step} is skipped: with it evaluations would take {share:.0%} of the time, "
                f"and evaluation.max_share allows {self.max_share:.0%}"
            )
            return self._costs()
        started = self.clock()
        metrics = dict(self.evaluate(model))
        seconds = self.clock() - started
        self.spent += seconds
        self.longest = max(self.longest, seconds)
        return metrics | self._costs()

    def _costs(self) -> dict[str, float]:
        return {"cost/evaluations_skipped": float(self.skipped), "cost/evaluation_seconds": self.spent}
