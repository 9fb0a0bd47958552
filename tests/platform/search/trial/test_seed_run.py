"""One seed of a trial: its milestones, its checkpoints, its thread, and what it does when memory runs out."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from siclip_platform.search.trial.seed_run import Milestone, OutOfMemory, SeedRun
from tests.support import study_parts as parts


def seed_run(tmp_path: Path, digits: Path, decay: float, **options: Any) -> SeedRun:
    recipe = parts.base_recipe(digits, **options.pop("training", {})).updated({"training.weight_decay": decay})
    given = {"checkpoint": None, "known": []} | options
    return SeedRun(recipe, 0, parts.pretend, tmp_path / "checkpoints", **given)


def test_a_run_out_of_memory_is_retried_once_with_half_the_micro_batch_and_repeats_no_milestone(
    tmp_path: Path, digits: Path
) -> None:
    short = seed_run(tmp_path, digits, parts.OOM)
    assert [milestone.step for milestone in short] == [2, 4, 6, 8]
    assert short.notes == {"oom_retries": "1", "micro_batch_size": "4"}
    assert short.recipe.training.micro_batch_size == 4
    with pytest.raises(OutOfMemory, match="also with half the micro-batch: no room for 12 GiB"):
        list(seed_run(tmp_path, digits, parts.OOM_ALWAYS))
    with pytest.raises(OutOfMemory, match="of 3 cannot be halved"):
        list(seed_run(tmp_path, digits, parts.OOM_ALWAYS, training={"batch_size": 3}))
    with pytest.raises(OutOfMemory, match="all members of a population need the same micro-batch"):
        list(seed_run(tmp_path, digits, parts.OOM, retries=False))


def test_a_run_waits_between_milestones_and_its_thread_ends_when_it_is_closed(tmp_path: Path, digits: Path) -> None:
    threads = threading.active_count()
    waiting = seed_run(tmp_path, digits, 0.5, training={"checkpoint_every": 2})
    milestones = iter(waiting)
    assert next(milestones).step == 2
    assert threading.active_count() == threads + 1
    waiting.close()
    assert threading.active_count() == threads
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["seed-0.step-2.pt"]


def test_a_run_replays_known_milestones_and_then_resumes_its_training(tmp_path: Path, digits: Path) -> None:
    (tmp_path / "c.pt").write_text("4")
    known = [Milestone(step, {parts.METRIC: 0.5, "cost/seconds": 10.0}) for step in (2, 4)]
    resumed = seed_run(tmp_path, digits, 0.5, known=known, checkpoint=tmp_path / "c.pt")
    milestones = list(resumed)
    assert [milestone.step for milestone in milestones] == [2, 4, 6, 8]
    assert milestones[0] is known[0]
    assert [step for step, metrics in milestones[2].history if "train/loss" in metrics] == [5, 6]
    assert milestones[2].metrics["cost/seconds"] >= 10.0
