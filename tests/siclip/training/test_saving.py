"""When a run saves: every ten minutes of training by default, after named steps, and before its machine is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from siclip.checkpoints.formats import read_checkpoint
from siclip.config import LossConfig, TrainingConfig
from siclip.training import saving
from siclip.training.loop import resume, train
from siclip.training.saving import Saving
from tests.siclip.training.test_schedule import Keep, same_weights
from tests.siclip.training.test_training import batches, config, student


def saved_steps(training: TrainingConfig, seconds_per_step: float, start: float = 0.0) -> list[int]:
    times = Saving(training, torch.device("cpu"), start)
    return [step for step in range(1, 25) if times.due(step, start + step * seconds_per_step)]


@pytest.mark.parametrize("start", [0.0, 5000.0])
def test_ten_minutes_of_training_lie_between_checkpoints_unless_steps_are_named(start: float) -> None:
    default = TrainingConfig(steps=100, warmup_steps=1)
    assert saved_steps(default, 100.0, start) == [6, 12, 18, 24]
    assert saved_steps(default, 1000.0, start) == list(range(1, 25))
    assert saved_steps(default, 1.0, start) == []
    assert saved_steps(default.model_copy(update={"checkpoint_every": 10}), 1000.0, start) == [10, 20]
    assert saved_steps(default.model_copy(update={"checkpoint_every": 0}), 1000.0, start) == []


def test_saving_by_time_changes_nothing_that_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = student(config(steps=4, checkpoint_every=0), LossConfig())
    train(plain, batches, Keep(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["4.pt"]
    monkeypatch.setattr(saving, "CHECKPOINT_SECONDS", 0.0)
    timed = student(config(steps=4), LossConfig())
    train(timed, batches, Keep(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.pt", "2.pt", "3.pt", "4.pt"]
    assert same_weights(plain, timed)
    # how often a run saves is not a part of what it is
    resume(student(config(steps=4, checkpoint_every=7), LossConfig()), tmp_path / "3.pt")


@pytest.mark.parametrize("every", ["auto", 0])
def test_a_notice_is_answered_by_one_checkpoint(
    every: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "NOTICE_SECONDS", 0.0)
    told = iter([False, True, True, False, True, False])
    training = config(checkpoint_every=every)
    trainer = student(training, LossConfig())
    train(trainer, batches, Keep(tmp_path), notice=lambda: next(told))
    steps = sorted(read_checkpoint(path)["training"]["step"] for path in tmp_path.iterdir())
    assert steps == [2, 5, training.steps]
