"""Population based training under Ray: its record, and that a training by the record computes the same."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from siclip.checkpoints.formats import read_checkpoint
from siclip_platform.recipes.load import load_recipe
from siclip_platform.report.draw.values import Table
from siclip_platform.report.read.query import Selection, read_studies
from siclip_platform.report.read.store import Store
from siclip_platform.report.sections.schedules import schedules
from siclip_platform.search.ledger.recorder import Recorder
from siclip_platform.search.result import StudyResult
from siclip_platform.search.tune_run import run_study
from siclip_platform.tracking import Tracker
from siclip_platform.training.in_process import run_recipe
from tests.support import study_parts as parts
from tests.support.population_parts import CRASHES, PATH, STEPS, base, follow, gain, plan_of, population

WEIGHTS = [100.0, 300.0, 900.0, 200.0, 1000.0, 400.0]


class Last:
    """Keeps a training's last metric, and its last checkpoint."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.value = math.nan

    def log(self, step: int, metrics: Any) -> None:
        pass

    def milestone(self, step: int, metrics: Any, save: Any) -> None:
        self.value = metrics.get(parts.METRIC, self.value)
        if save and self.path:
            save(self.path)


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory, mlflow_database: bytes) -> Iterator[Tracker]:
    out = tmp_path_factory.mktemp("populations")
    (out / "mlflow.db").write_bytes(mlflow_database)
    tracker = Tracker(f"sqlite:///{out}/mlflow.db", artifacts=out / "artifacts")
    yield tracker
    tracker.close()


def run(tracker: Tracker, key: str, folder: Path, plan: Any) -> StudyResult:
    params = {"study.scheduler": "pbt", "study.metric": parts.METRIC}
    study = tracker.start(key, "study", params=params, tags={"study": key}, key=key, reopen=True)
    result = run_study(plan, Recorder(tracker, study, {"study": key}))
    study.finish("completed")
    assert tracker.flush() == 0 and tracker.spool.problems() == []
    return result


def member_runs(tracker: Tracker, key: str) -> dict[str, Any]:
    query = f"tags.`siclip.study` = '{key}' and tags.`siclip.kind` = 'trial'"
    return {run.info.run_name: run for run in tracker.client.search_runs([tracker.experiment_id], query)}


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def outcome(result: StudyResult) -> list[tuple[Any, ...]]:
    return [(trial.values, trial.value, trial.state, trial.steps) for trial in result.trials]


@pytest.mark.slow
def test_a_population_is_recorded_as_schedules_that_compute_the_same(
    own_ray: None, tmp_path: Path, tracker: Tracker, digits: Path
) -> None:
    folder = tmp_path / "p"
    result = run(tracker, "p", folder, plan_of(folder, digits, WEIGHTS))
    runs = member_runs(tracker, "p")
    assert [trial.state for trial in result.trials] == ["completed"] * 6
    assert {member.data.tags["siclip.state"] for member in runs.values()} == {"completed"}
    happened = events(folder)
    turns = [event for event in happened if event["event"] == "turned"]
    assert [turn["step"] for turn in turns] == [4, 8] and all(len(turn["changes"]) == 3 for turn in turns)

    first: dict[str, int] = {}
    for turn in turns:
        results = [event for event in happened if event["event"] == "result" and event["step"] == turn["step"]]
        at = {event["trial"]: event["metrics"][parts.METRIC] for event in results}
        order = sorted(at, key=at.__getitem__)
        assert set(turn["changes"]) == set(order[:3])
        assert {parent for parent, _ in turn["changes"].values()} <= set(order[3:])
        first = dict.fromkeys(turn["changes"], turn["step"]) | first

    for trial in result.trials:
        stages = json.loads(runs[trial.trial_id].data.tags["siclip.schedule"])
        recorded = [next(s["weights"][PATH] for s in reversed(stages) if s["step"] <= step) for step in range(STEPS)]
        assert trial.checkpoint is not None
        assert json.loads(trial.checkpoint.read_text())["applied"] == recorded  # what was applied
        assert trial.value == pytest.approx(
            sum(gain(weight, step) for step, weight in enumerate(recorded)), abs=1e-12
        )
        again = Last()
        written = load_recipe(folder / "schedules" / f"{trial.trial_id}.yaml")
        follow(written, again, None)
        assert again.value == trial.value
        assert written.hash == trial.recipe.hash == runs[trial.trial_id].data.tags["siclip.recipe_hash"]
        assert "siclip.identity" not in runs[trial.trial_id].data.tags
        points = tracker.client.get_metric_history(runs[trial.trial_id].info.run_id, f"schedule/{PATH}")
        assert points[-1].value == stages[-1]["weights"][PATH]
    assert max(trial.value for trial in result.trials) > max(
        sum(gain(weight, step) for step in range(STEPS)) for weight in WEIGHTS
    )

    (study,) = read_studies(Store(tracker.uri), Selection(studies=("p",)))
    section = schedules(study)
    assert section is not None
    (table,) = [block for block in section.blocks if isinstance(block, Table)]
    best = json.loads(runs[result.best.trial_id].data.tags["siclip.schedule"])
    shown = [(row[0].value, row[1].text, row[2].value) for row in table.rows]
    assert shown == [(stage["step"], stage["parent"] or "—", stage["weights"][PATH]) for stage in best]

    received = optuna.load_study(study_name="p", storage=f"sqlite:///{folder}/optuna.db").trials
    for trial in received:
        name, weight = trial.user_attrs["trial_id"], trial.params[PATH]
        until = first.get(name, STEPS)
        expected = {s: sum(gain(weight, step) for step in range(s)) for s in range(2, until + 1, 2)}
        assert trial.intermediate_values == pytest.approx(expected), name
        assert trial.state.name == ("PRUNED" if name in first else "COMPLETE")
    assert not list((folder / "checkpoints").glob("*/seed-0.step-4.pt"))


@pytest.mark.long
def test_a_population_whose_journal_was_cut_at_any_line_ends_like_an_undisturbed_one(
    own_ray: None, tmp_path: Path, tracker: Tracker, digits: Path
) -> None:
    weights = WEIGHTS[:3]
    undisturbed = run(tracker, "whole", tmp_path / "whole", plan_of(tmp_path / "whole", digits, weights))
    lines = (tmp_path / "whole" / "journal.jsonl").read_text().splitlines(keepends=True)
    turned = [number for number, line in enumerate(lines) if '"turned"' in line]
    open_end = [line for line in lines if '"ended"' not in line and '"told"' not in line]
    cuts = {str(kept): lines[:kept] for kept in (turned[0], turned[0] + 1, turned[1] + 3)} | {"end": open_end}
    for kept, rest in cuts.items():
        folder = tmp_path / f"cut-{kept}"
        folder.mkdir()
        (folder / "journal.jsonl").write_text("".join(rest))
        result = run(tracker, f"cut-{kept}", folder, plan_of(folder, digits, weights))
        assert outcome(result) == outcome(undisturbed), kept


@pytest.mark.long
def test_a_member_that_fails_leaves_the_population(
    own_ray: None, tmp_path: Path, tracker: Tracker, digits: Path
) -> None:
    result = run(tracker, "fails", tmp_path, plan_of(tmp_path, digits, [100.0, CRASHES, 30.0, 1.0]))
    assert [trial.state for trial in result.trials] == ["completed", "failed", "completed", "completed"]
    assert "died" in result.trials[1].reason and result.trials[1].steps == 0
    turns = [event for event in events(tmp_path) if event["event"] == "turned"]
    assert [turn["step"] for turn in turns] == [4, 8]
    assert all(len(turn["changes"]) == 1 and "trial-001" not in str(turn) for turn in turns)


@pytest.mark.slow
def test_a_member_has_the_parameters_of_a_training_by_its_schedule(
    own_ray: None, tmp_path: Path, tracker: Tracker, digits: Path, nano_teacher: Path
) -> None:
    torch.set_num_threads(1)
    small = {
        "model.name": "siclip-nano",
        "model.inherit": True,
        "teacher": str(nano_teacher),
        "training.threads": 1,
        "training.steps": 4,
        "evaluation.validation_samples": 20,
    }
    recipe = base(digits).updated(small)
    turning = population(interval=2)
    result = run(
        tracker, "real", tmp_path, plan_of(tmp_path, digits, [100.0, 5.0], base=recipe, population=turning, run=None)
    )
    (taken,) = [trial for trial in result.trials if "loss.schedule" in trial.values]
    run_recipe(taken.recipe, Last(tmp_path / "again.pt"), None)
    assert taken.checkpoint is not None
    member, again = (read_checkpoint(path) for path in (taken.checkpoint, tmp_path / "again.pt"))
    assert member["training"]["step"] == again["training"]["step"] == 4
    for name, value in again["model"].items():
        assert torch.equal(value, member["model"][name]), name
    objective = member["training"]["objective"]
    assert all(torch.equal(value, objective[name]) for name, value in again["training"]["objective"].items())
