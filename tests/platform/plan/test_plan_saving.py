"""A run that could lose more than an hour of work is warned of."""

from __future__ import annotations

import pytest

from siclip.config import TrainingConfig
from siclip_platform.plan.saving import unsaved, unsaved_seconds


@pytest.mark.parametrize(
    ("every", "step_seconds", "lost", "warns"),
    [
        ("auto", 3.0, 603.0, False),
        ("auto", 0.01, 100.0, False),  # the whole run
        ("auto", 4000.0, 4600.0, True),
        (0, 0.3, 3000.0, False),
        (0, 3.0, 30_000.0, True),
        (1000, 3.0, 3000.0, False),
        (2000, 3.0, 6000.0, True),
        (20_000, 0.1, 1000.0, False),
    ],
)
def test_the_longest_time_between_checkpoints(every: object, step_seconds: float, lost: float, warns: bool) -> None:
    training = TrainingConfig.model_validate({"steps": 10_000, "checkpoint_every": every})
    assert unsaved_seconds(training, step_seconds) == pytest.approx(lost)
    sentence = unsaved(training, step_seconds)
    assert (sentence is not None) == warns
    if sentence and every != "auto":
        assert f"could lose {lost / 3600:.1f} h" in sentence and "remove training.checkpoint_every" in sentence
