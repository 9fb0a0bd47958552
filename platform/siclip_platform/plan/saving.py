"""How much of a training is lost at most when its machine is."""

from __future__ import annotations

from siclip.config import CHECKPOINT_SECONDS, TrainingConfig

HOUR = 3600.0


def unsaved_seconds(training: TrainingConfig, step_seconds: float) -> float:
    """The longest training time between two checkpoints, or until the only one.

    Args:
        training: with its steps counted.
        step_seconds: of one step.
    """
    whole = training.steps * step_seconds
    every = training.checkpoint_every
    # A checkpoint that is due by time is written after the step that is running.
    between = CHECKPOINT_SECONDS + step_seconds if every == "auto" else (every or training.steps) * step_seconds
    return min(whole, between)


def unsaved(training: TrainingConfig, step_seconds: float) -> str | None:
    """A sentence with the remedy where a training could lose more than an hour of work; None elsewhere.

    Args:
        training, step_seconds: as of `unsaved_seconds`.
    """
    seconds = unsaved_seconds(training, step_seconds)
    if seconds <= HOUR:
        return None
    every = training.checkpoint_every
    if every == "auto":
        return f"one step takes {step_seconds / HOUR:,.1f} h, and a run is saved between steps: lower the batch size"
    when = f"only every {every:,} steps" if every else "only after its last step"
    minutes = CHECKPOINT_SECONDS / 60
    return (
        f"the run is saved {when} and could lose {seconds / HOUR:,.1f} h of training: remove "
        f"training.checkpoint_every, whose default saves every {minutes:.0f} minutes"
    )
