"""Studies of fake trainings: each trial's state in Ray Tune, Optuna and MLflow, and what is not trained again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState

from siclip.checkpoints.formats import read_checkpoint
from siclip_platform.metrics import METRICS
from siclip_platform.search.conductor import RETRIES, Conductor
from siclip_platform.search.ledger.journal import Journal
from siclip_platform.search.ledger.recorder import Recorder
from siclip_platform.search.policy.searcher import make_searcher
from siclip_platform.search.result import StudyResult
from siclip_platform.search.tune_run import run_study
from siclip_platform.spaces.parsing import parse_space
from siclip_platform.tracking import Tracker, default_tracking_uri
from tests.support import study_parts as parts

pytestmark = pytest.mark.slow
SPACE = """\
name: t
metric: validation/mean_recall@1
parameters:
  training.weight_decay: {distribution: uniform, low: 0, high: 1}
"""
OPTUNA = {TrialState.COMPLETE: "completed", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
OPTUNA[TrialState.RUNNING] = "failed"  # for a reason outside its recipe: a resumed study runs it again


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studies")


@pytest.fixture(scope="module")
def tracker(out: Path) -> Iterator[Tracker]:
    tracker = Tracker(default_tracking_uri(out), artifacts=out / "artifacts")
    yield tracker
    assert tracker.close() == 0


def run(tracker: Tracker, key: str, plan: Any, rerun: bool = False) -> tuple[StudyResult, dict[str, Any]]:
    """The study's result, and its MLflow runs by name."""
    study = tracker.start(key, "study", params={}, tags={"study": key}, key=key)
    result = run_study(plan, Recorder(tracker, study, {"study": key}), rerun=rerun)
    study.finish("completed")
    assert tracker.flush() == 0
    assert tracker.spool.problems() == []
    wanted = f"tags.`siclip.study` = '{key}'"
    runs = tracker.client.search_runs([tracker.experiment_id], wanted)
    assert len({run.info.run_name for run in runs}) == len(runs)
    return result, {run.info.run_name: run for run in runs}


def injected(count: int) -> list[float]:
    """Weight decays: halving stops many, two crash, one diverges, two run out of memory, one of these twice."""
    decays = [0.3 + 0.3 * ((7 * number) % count) / count for number in range(count)]
    decays[count // 4], decays[count // 2] = parts.CRASH, parts.CRASH + 0.005
    decays[count // 3] = parts.NAN
    decays[count // 8] = parts.OOM
    decays[-1] = parts.OOM_ALWAYS
    return decays


@contextmanager
def trials_of_tune() -> Iterator[dict[str, Any]]:
    """Ray Tune's trial objects by id, in their final state, which its files may not have yet."""
    found: dict[str, Any] = {}
    result = Conductor.result

    def kept(conductor: Conductor, interrupted: bool = False) -> StudyResult:
        found.update(conductor.trials)
        return result(conductor, interrupted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Conductor, "result", kept)
        yield found


def check_states_agree(out: Path, tracker: Tracker, digits: Path, count: int) -> None:
    decays, folder = injected(count), out / f"injected-{count}"
    space = parse_space(SPACE, "t.yaml", METRICS, None)
    searcher = make_searcher(
        space,
        seed=0,
        num_trials=count,
        max_steps=parts.STEPS,
        study_name="s",
        storage=folder / "optuna.db",
        points_to_evaluate=[{"training.weight_decay": decay} for decay in decays],
    )
    plan = parts.plan(folder, digits, decays, searcher=searcher, scheduler=parts.asha(), trials=count)
    with trials_of_tune() as tune:
        # Without reuse: another study of this module has trained some of these settings.
        result, runs = run(tracker, f"injected-{count}", plan, rerun=True)

    stored = {
        trial.user_attrs["trial_id"]: trial
        for trial in optuna.load_study(study_name="s", storage=f"sqlite:///{folder}/optuna.db").trials
        if trial.state != TrialState.WAITING
    }
    assert len(result.trials) == len(stored) == count
    assert len(tune) == count + 2 * RETRIES  # two die in every attempt
    for number, trial in enumerate(result.trials):
        ended = runs[trial.trial_id]
        tags = ended.data.tags
        assert trial.values["training.weight_decay"] == pytest.approx(
            stored[trial.trial_id].params["training.weight_decay"]
        )
        of_tune = tune[tags["siclip.tune_trial"]]
        assert of_tune.config == trial.values
        states = (trial.state, OPTUNA[stored[trial.trial_id].state], tags["siclip.state"])
        assert set(states) == {trial.state}, (number, states)
        assert of_tune.status == ("ERROR" if trial.state == "failed" else "TERMINATED")
        assert ended.info.status == {"failed": "FAILED", "pruned": "KILLED"}.get(trial.state, "FINISHED")
        assert float(ended.data.params["training.weight_decay"]) == pytest.approx(decays[number], abs=1e-9)
        reported = stored[trial.trial_id].intermediate_values
        if decays[number] != parts.NAN:
            assert parts.curve(tracker, ended, "validation/mean_recall_at_1") == pytest.approx(reported)
            wanted = {step: parts.score(decays[number], 0, step) for step in range(2, trial.steps + 1, parts.EVERY)}
            assert reported == pytest.approx(wanted)

    by_decay = {trial.values["training.weight_decay"]: trial for trial in result.trials}
    reasons = {
        parts.CRASH: "died",
        parts.NAN: "is nan at step 4",
        parts.OOM_ALWAYS: "also with half the micro-batch",
    }
    for decay, reason in reasons.items():
        assert by_decay[decay].state == "failed"
        assert reason in by_decay[decay].reason
    retried = runs[by_decay[parts.OOM].trial_id]
    if (
        by_decay[parts.OOM].state == "completed"
    ):  # otherwise it was stopped before the step that needs too much memory
        assert retried.data.tags["siclip.oom_retries"] == "1"
        assert retried.data.tags["siclip.micro_batch_size"] == "4"
    states = [trial.state for trial in result.trials]
    assert states.count("pruned") >= count // 4 and states.count("completed") >= 1 and states.count("failed") == 4


def test_states_of_every_trial_agree_in_tune_optuna_and_mlflow(
    own_ray: None, out: Path, tracker: Tracker, digits: Path
) -> None:
    check_states_agree(out, tracker, digits, 16)


@pytest.mark.long
def test_states_of_fifty_trials_agree(own_ray: None, out: Path, tracker: Tracker, digits: Path) -> None:
    check_states_agree(out, tracker, digits, 50)


def test_seeds_reach_the_searcher_as_their_mean_and_are_runs_below_the_trial(
    own_ray: None, out: Path, tracker: Tracker, digits: Path
) -> None:
    plan = parts.plan(out / "seeds", digits, [0.5, 0.2], seeds=3, base=parts.base_recipe(digits, seed=4))
    result, runs = run(tracker, "seeds", plan)
    for name, decay in (("trial-000", 0.5), ("trial-001", 0.2)):
        wanted = {
            step: sum(parts.score(decay, seed, step) for seed in (4, 5, 6)) / 3
            for step in range(2, parts.STEPS + 1, 2)
        }
        assert parts.curve(tracker, runs[name], "validation/mean_recall_at_1") == pytest.approx(wanted)
        last, error = plan.searcher.completed[name]
        assert last[parts.METRIC] == pytest.approx(wanted[8]) and not error
        for seed in (4, 5, 6):
            of_seed = runs[f"{name}/seed-{seed}"]
            assert of_seed.data.tags["mlflow.parentRunId"] == runs[name].info.run_id
            assert of_seed.data.tags["siclip.kind"] == "seed" and of_seed.data.tags["siclip.seed"] == str(seed)
            assert of_seed.data.params["training.seed"] == str(seed)
            assert len(parts.curve(tracker, of_seed, "train/loss")) == parts.STEPS
            assert of_seed.data.metrics["validation/mean_recall_at_1"] == pytest.approx(parts.score(decay, seed, 8))
        assert runs[name].data.tags["mlflow.parentRunId"] == runs["seeds"].info.run_id
    assert result.best.trial_id == "trial-000"


def test_a_finished_training_is_reused_in_its_study_in_another_one_and_with_more_seeds(
    own_ray: None, out: Path, tracker: Tracker, digits: Path
) -> None:
    first, runs = run(tracker, "first", parts.plan(out / "first", digits, [0.61, 0.61, 0.62]))
    original = runs["trial-000"].info.run_id
    assert runs["trial-001"].data.tags["siclip.reused_from"] == original
    assert "train/loss" not in runs["trial-001"].data.metrics  # it was not trained
    assert first.trials[1].value == first.trials[0].value

    again, runs = run(tracker, "again", parts.plan(out / "again", digits, [0.62, 0.63]))
    assert "train/loss" not in runs["trial-000"].data.metrics
    assert again.trials[0].value == first.trials[2].value
    assert again.trials[0].state == "completed" and "siclip.reused_from" not in runs["trial-001"].data.tags
    key = "validation/mean_recall_at_1"
    assert parts.curve(tracker, runs["trial-000"], key).keys() == {2, 4, 6, 8}

    _, runs = run(tracker, "more", parts.plan(out / "more", digits, [0.61], seeds=2))
    assert runs["trial-000/seed-0"].data.tags["siclip.reused_from"] == original
    assert "siclip.reused_from" not in runs["trial-000/seed-1"].data.tags
    assert parts.curve(tracker, runs["trial-000"], key)[8] == pytest.approx(parts.score(0.61, 0.5, 8))

    _, runs = run(tracker, "rerun", parts.plan(out / "rerun", digits, [0.61]), rerun=True)
    assert "siclip.reused_from" not in runs["trial-000"].data.tags
    assert "train/loss" in runs["trial-000"].data.metrics


def test_a_study_that_grows_trains_its_new_trials_alone(
    own_ray: None, out: Path, tracker: Tracker, digits: Path
) -> None:
    folder = out / "grows"
    run(tracker, "grows", parts.plan(folder, digits, [0.71, 0.72]))
    result, runs = run(tracker, "grows", parts.plan(folder, digits, [0.71, 0.72, 0.73]))
    assert [trial.values["training.weight_decay"] for trial in result.trials] == [0.71, 0.72, 0.73]
    assert sorted(runs) == ["grows", "trial-000", "trial-001", "trial-002"]
    assert len(parts.curve(tracker, runs["trial-000"], "train/loss")) == parts.STEPS
    starts = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "started" for event in starts) == 3


def test_a_trial_in_flight_resumes_from_its_last_checkpoint_that_the_journal_has(
    own_ray: None, out: Path, tracker: Tracker, digits: Path
) -> None:
    """A kill left results up to step 4 in the journal, and checkpoints of steps 4 and 6 on disk."""
    folder = out / "flight"
    journal = Journal(folder)
    journal.suggested("trial-000", {"training.weight_decay": 0.81})
    journal.started("trial-000", "old")
    for step in (2, 4):
        metrics = {parts.METRIC: parts.score(0.81, 0, step), "cost/seconds": 1.0 * step}
        journal.result("trial-000", step, metrics, {"0": metrics})
    journal.close()
    for step in (4, 6):
        path = folder / "checkpoints" / "old" / f"seed-0.step-{step}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(step))
    result, runs = run(tracker, "flight", parts.plan(folder, digits, [0.81]))
    assert result.trials[0].state == "completed"
    assert parts.curve(tracker, runs["trial-000"], "train/first") == {0: 4.0}
    assert parts.curve(tracker, runs["trial-000"], "train/loss").keys() == {5, 6, 7, 8}
    assert parts.curve(tracker, runs["trial-000"], "validation/mean_recall_at_1").keys() == {2, 4, 6, 8}
    assert result.trials[0].seconds > 4.0


def test_a_stopped_trial_releases_its_memory_before_the_next_one_starts(
    own_ray: None, out: Path, tracker: Tracker, digits: Path
) -> None:
    decays = [0.9, *(0.2 - 0.01 * number for number in range(5))]
    plan = parts.plan(out / "memory", digits, decays, scheduler=parts.asha(), run=parts.hold_memory)
    result, runs = run(tracker, "memory", plan)
    assert [trial.state for trial in result.trials] == ["completed", *["pruned"] * 5]
    held = [runs[trial.trial_id].data.metrics["train/held_before"] for trial in result.trials]
    assert held == [0.0] * 6
    assert len({runs[trial.trial_id].data.metrics["train/process"] for trial in result.trials}) == 1


# In CI test_run_both_ways.py compares the two without a search.
@pytest.mark.long
def test_trials_under_ray_train_compute_what_trials_in_a_process_compute(
    own_ray: None, out: Path, tracker: Tracker, digits: Path
) -> None:
    """The same metrics and weights, with costs among the metrics and nothing of Ray Train's left on disk."""
    base = parts.base_recipe(digits, steps=4, threads=1).updated({"evaluation.validation_samples": 20})
    found = {}
    for backend, resources in (("process", {"CPU": 1.0}), ("train", {"CPU": 0.01})):
        folder = out / f"backend-{backend}"
        plan = parts.plan(folder, digits, [0.1], base=base, run=None, backend=backend, resources=resources)
        result, runs = run(tracker, f"backend-{backend}", plan, rerun=True)
        (trial,) = result.trials
        assert (trial.state, trial.reason, trial.steps) == ("completed", "", 4)
        metrics = runs["trial-000"].data.metrics
        assert metrics["cost/parameters_trainable"] > 0 and metrics["cost/seconds"] > 0
        validation = {
            name: parts.curve(tracker, runs["trial-000"], name) for name in metrics if name.startswith("valid")
        }
        assert trial.checkpoint is not None
        found[backend] = (validation, read_checkpoint(trial.checkpoint)["model"])
        assert [path.name for path in folder.rglob("*.pt")] == ["seed-0.step-4.pt"]
    process, train = found["process"], found["train"]
    assert process[0] == train[0] and len(process[0]) > 5
    assert all(curve.keys() == {2, 4} for curve in train[0].values())
    assert all(torch.equal(value, train[1][name]) for name, value in process[1].items())
