"""Evaluations in training keep to their share of the run's time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from siclip.models.clip import Clip

logger = logging.getLogger(__name__)


class Budgeted:
    """An evaluation that is left out where all of them together would take more than ``max_share`` of the time.

    An evaluation is expected to take as long as the longest so far, so the first one always runs, and the one after
    the last step does too. One that is left out is logged, and counted in the metric ``cost/evaluations_skipped``
    that stands in its place. A share of 1 leaves nothing out and adds nothing.
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
        """``now``: the step the training is at, and the seconds it took without evaluations."""
        self.evaluate, self.max_share, self.last_step = evaluate, max_share, last_step
        self.now, self.clock = now, clock
        self.spent = self.longest = 0.0
        self.skipped = 0

    def __call__(self, model: Clip) -> dict[str, float]:
        if self.max_share >= 1:
            return dict(self.evaluate(model))
        step, trained = self.now()
        expected = self.spent + self.longest
        share = expected / (expected + trained) if expected else 0.0
        if share > self.max_share and step != self.last_step:
            self.skipped += 1
            logger.warning(
                "the evaluation at step %d is left out: with it evaluations would take %.0f %% of the time, "
                "evaluation.max_share allows %.0f %%",
                step, 100 * share, 100 * self.max_share,
            )  # fmt: skip
            return self._costs()
        started = self.clock()
        metrics = dict(self.evaluate(model))
        seconds = self.clock() - started
        self.spent += seconds
        self.longest = max(self.longest, seconds)
        return metrics | self._costs()

    def _costs(self) -> dict[str, float]:
        return {"cost/evaluations_skipped": float(self.skipped), "cost/evaluation_seconds": self.spent}
