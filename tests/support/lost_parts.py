"""A training whose process is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from siclip_platform.recipes.recipe import Recipe
from tests.support.study_parts import pretend


def pretend_and_die(
    recipe: Recipe, reporter: Any, checkpoint: Path | None, *, decay: float, marks: str, times: int
) -> None:
    """As `pretend`; with a weight decay of ``decay`` the process is killed at step 5 in the first ``times`` attempts.

    The step at which each attempt of that setting started is written to the file ``marks``.
    """
    if recipe.training.weight_decay != decay:
        return pretend(recipe, reporter, checkpoint)
    with Path(marks).open("a") as file:
        file.write(f"{checkpoint.read_text() if checkpoint else 0}\n")
    attempts = len(Path(marks).read_text().split())
    return pretend(recipe, _Dying(reporter) if attempts <= times else reporter, checkpoint)


class _Dying:
    """A reporter that kills its process at step 5."""

    def __init__(self, reporter: Any) -> None:
        self.reporter = reporter

    def log(self, step: int, metrics: Any) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        self.reporter.log(step, metrics)

    def milestone(self, step: int, metrics: Any, save: Any) -> None:
        self.reporter.milestone(step, metrics, save)
