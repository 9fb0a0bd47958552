"""A trial whose process is lost is run on from its last checkpoint; one that is always lost fails, until a resume."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import cloudpickle
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import (
    ActorDiedError,
    LocalRayletDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.train.v2.api.exceptions import WorkerGroupError

from siclip.errors import UserError
from siclip_platform.cluster import losses
from siclip_platform.metrics import METRICS
from siclip_platform.search import conductor as conducting
from siclip_platform.search.conductor import RETRIES
from siclip_platform.search.ledger.journal import Journal
from siclip_platform.search.ledger.recorder import Recorder
from siclip_platform.search.policy.schedulers import make_scheduler
from siclip_platform.search.replay import forget_in_scheduler
from siclip_platform.search.result import StudyResult
from siclip_platform.search.tune_run import run_study
from siclip_platform.spaces.parsing import parse_space
from siclip_platform.spaces.policy import SchedulerConfig
from siclip_platform.tracking import Tracker, default_tracking_uri
from tests.platform.search.test_conductor import SPACE, Tune
from tests.support import study_parts as parts
from tests.support.lost_parts import pretend_and_die

DECAYS = [0.2, 0.4, 0.1, 0.3]
DYING = DECAYS[1]


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracker]:
    out = tmp_path_factory.mktemp("lost")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    tracker = Tracker(default_tracking_uri(out), artifacts=out / "artifacts")
    yield tracker
    assert tracker.close() == 0
    ray.shutdown()


def run(tracker: Tracker, folder: Path, data: Path, times: int) -> tuple[StudyResult, parts.InOrder, dict[str, Any]]:
    """A study in which the process of one trial is killed ``times`` times, one trial at a time."""
    base = parts.base_recipe(data, checkpoint_every=2)
    die = functools.partial(pretend_and_die, decay=DYING, marks=str(folder / "marks"), times=times)
    plan = parts.plan(folder, data, DECAYS, base=base, run=die, scheduler=parts.asha())
    study = tracker.start(folder.name, "study", params={}, tags={"study": folder.name}, key=folder.name, reopen=True)
    result = run_study(plan, Recorder(tracker, study, {"study": folder.name}), rerun=True)
    study.finish("completed")
    assert tracker.flush() == 0
    runs = tracker.client.search_runs([tracker.experiment_id], f"tags.`siclip.study` = '{folder.name}'")
    assert isinstance(plan.searcher, parts.InOrder)
    return result, plan.searcher, {run.info.run_name: run for run in runs}


def ends(result: StudyResult) -> list[tuple[str, str, int, float]]:
    return [(trial.trial_id, trial.state, trial.steps, trial.value) for trial in result.trials]


def results(folder: Path) -> list[Any]:
    journal = Journal(folder)
    journal.close()
    return [(entry.name, entry.results) for entry in journal.entries.values()]


def without_time(found: list[Any]) -> list[Any]:
    return [
        (
            name,
            [(step, {key: value for key, value in means.items() if "cost/" not in key}) for step, means, _ in each],
        )
        for name, each in found
    ]


@pytest.mark.slow
@pytest.mark.chaos
def test_a_study_with_a_killed_trial_ends_as_an_undisturbed_one(
    tracker: Tracker, tmp_path: Path, digits: Path
) -> None:
    undisturbed, told, _ = run(tracker, tmp_path / "undisturbed", digits, 0)
    disturbed, told_too, runs = run(tracker, tmp_path / "disturbed", digits, 1)
    assert (tmp_path / "disturbed" / "marks").read_text().split() == ["0", "4"]  # it went on from its checkpoint
    assert ends(disturbed) == ends(undisturbed)
    assert without_time(results(tmp_path / "disturbed")) == without_time(results(tmp_path / "undisturbed"))
    assert {name: error for name, (_, error) in told.completed.items()} == {
        name: error for name, (_, error) in told_too.completed.items()
    }
    tags = runs["trial-001"].data.tags
    assert (tags["siclip.losses"], tags["siclip.loss"]) == ("1", losses.PROCESS)


@pytest.mark.slow
@pytest.mark.chaos
def test_a_trial_that_dies_every_time_fails_alone_and_is_run_again_by_a_resumed_study(
    tracker: Tracker, tmp_path: Path, digits: Path
) -> None:
    folder = tmp_path / "dies"
    undisturbed, _, _ = run(tracker, tmp_path / "lives", digits, 0)
    result, told, runs = run(tracker, folder, digits, 1 + RETRIES)
    assert (folder / "marks").read_text().split() == ["0"] + ["4"] * RETRIES
    states = {trial.trial_id: trial.state for trial in result.trials}
    assert len(states) == len(DECAYS) and states.pop("trial-001") == "failed"
    assert "failed" not in states.values()
    assert "trial-001" not in told.completed  # its setting did not fail
    assert runs["trial-001"].info.status == "FAILED"
    reason = runs["trial-001"].data.tags["siclip.reason"]
    assert reason.startswith(losses.PROCESS) and "a resumed study runs the trial again" in reason
    assert "\n" not in reason and "raylet" not in reason

    again, told, runs = run(tracker, folder, digits, 0)
    assert (folder / "marks").read_text().split() == ["0"] + ["4"] * (1 + RETRIES)
    assert {trial.trial_id: trial.state for trial in again.trials}["trial-001"] == "completed"
    assert ends(again)[1] == ends(undisturbed)[1]
    assert "trial-001" in told.completed and not told.completed["trial-001"][1]
    assert runs["trial-001"].info.status == "FINISHED"
    assert not runs["trial-001"].data.tags.get("siclip.reason")


def died(message: str) -> ActorDiedError:
    return ActorDiedError(ActorDiedErrorContext(error_message=message, actor_id=b"0" * 16))


def test_only_losses_are_losses() -> None:
    dump = "The actor died unexpectedly.\n\tclass_name: Wrapper\nraylet state: ..."
    low = "Task was killed due to the node running low on memory.\nMemory on the node ... was 60GB / 62GB"
    assert losses.loss(died(dump)) == losses.PROCESS
    assert losses.loss(WorkerCrashedError()) == losses.PROCESS
    assert losses.loss(OutOfMemoryError(low)) == losses.loss(died(low)) == losses.MEMORY
    assert losses.loss(died("The actor died because its node has died.")) == losses.MACHINE
    for error in (UserError("bad"), ValueError("bad"), MemoryError(), None):
        assert losses.loss(error) is None
        if error:
            assert losses.loss(RayTaskError("train", "Traceback", error)) is None
    # the trial's own set-up raised
    assert losses.loss(ActorDiedError(RayTaskError("train", "Traceback", ValueError("bad")))) is None
    assert losses.loss(RayTaskError("train", "Traceback", losses.ProcessLost("gone"))) == "gone"
    for error in (
        WorkerCrashedError(),
        OutOfMemoryError(low),
        LocalRayletDiedError(),
        ObjectLostError("a", "b", "c"),
    ):
        assert losses.loss_in(f"Failure # 1\n{error}\n") == losses.loss(error)
    assert losses.loss_in("Failure # 1\nValueError: a bad value\n") is None
    lost, broken = died(dump), RayTaskError("train", "Traceback", ValueError("bad"))
    assert losses.training_loss(WorkerGroupError("two", {0: lost, 1: lost})) == losses.PROCESS
    assert losses.training_loss(WorkerGroupError("two", {0: lost, 1: broken})) is None


@pytest.mark.parametrize(("started", "pickled"), [(True, True), (True, False), (False, False)])
def test_a_trial_waits_for_the_machine_to_have_memory_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: bool, pickled: bool
) -> None:
    now = [1000.0]
    monkeypatch.setattr(conducting, "time", SimpleNamespace(monotonic=lambda: now[0]))
    tune = Tune(parts.plan(tmp_path, tmp_path, [0.2, 0.3]))
    assert tune.start("a") == {"training.weight_decay": 0.2}
    lost, error = OutOfMemoryError("Task was killed due to the node running low on memory."), tmp_path / "error"
    error.write_bytes(cloudpickle.dumps(lost) if pickled else f"Failure # 1\n{lost}\nraylet: a dump\n".encode())
    trial = tune.conductor.trials.pop("a")
    if started:
        tune.conductor.trials["a"] = trial
    trial.pickled_error_file, trial.error_file = (str(error), None) if pickled else (None, str(error))
    tune.conductor.listed = [trial]
    unfinished = tmp_path / "checkpoints" / "a" / f"seed-0.step-4.pt.{os.getpid()}.tmp"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_bytes(b"half")
    tune.searcher.on_trial_complete("a", None, True)
    assert not unfinished.exists()
    assert tune.searcher.suggest("b") is None  # neither FINISHED nor the next trial
    now[0] += conducting.MEMORY_SECONDS
    assert tune.start("b") == {"training.weight_decay": 0.2}
    assert (tune.conductor.journal.entries["trial-000"].losses, tune.conductor.remaining) == (1, 2)


class Trial:
    """The part of a Tune trial that schedulers read."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id, self.config = trial_id, {}


@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
def test_a_scheduler_forgets_a_lost_trial(tmp_path: Path, name: Any) -> None:
    space = parse_space(SPACE, "t.yaml", METRICS, None)
    scheduler = make_scheduler(SchedulerConfig(name=name), space, steps=32)
    plan = parts.plan(tmp_path, tmp_path, [0.2], scheduler=scheduler)
    before, lost, again = (Trial(each) for each in ("before", "lost", "again"))
    controller: Any = SimpleNamespace(get_live_trials=list)
    result = {"step": 16, "training_iteration": 1, parts.METRIC: 0.5}
    for trial in (before, lost):
        scheduler.on_trial_add(controller, trial)
        scheduler.on_trial_result(controller, trial, dict(result))
    once = scheduler.debug_string()
    forget_in_scheduler(plan, lost)
    scheduler.on_trial_add(controller, again)
    scheduler.on_trial_result(controller, again, dict(result))
    assert scheduler.debug_string() == once
    if name == "median":
        assert set(scheduler._results) == {before, again}
    else:
        recorded = [set(of_rung) for bracket in scheduler._brackets for _, of_rung in bracket._rungs]
        assert set().union(*recorded) == {"before", "again"}
