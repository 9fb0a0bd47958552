"""A study that grew: which trainings are its best and control, which they replace, and what is registered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from siclip.checkpoints.formats import save_checkpoint
from siclip.models import create_model
from siclip_platform.display import Display
from siclip_platform.recipes.control import without_distillation
from siclip_platform.recipes.digits import digits_student
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.report.read.query import Selection, read_studies
from siclip_platform.report.read.store import Store
from siclip_platform.search.result import StudyResult, TrialOutcome
from siclip_platform.spaces import load_space
from siclip_platform.spaces.load import space_text
from siclip_platform.studies.experiment import Experiment
from siclip_platform.studies.final_runs import FinalRuns, Finished
from siclip_platform.studies.names import Names
from siclip_platform.studies.options import Options
from siclip_platform.studies.study_file import read_study
from siclip_platform.tracking import Tracker

MODEL = "best-digits"


@pytest.fixture
def out(tmp_path: Path, mlflow_database: bytes) -> Path:
    (tmp_path / "mlflow.db").write_bytes(mlflow_database)
    return tmp_path


class Ends:
    """The ends of one study: each trains best and control of a recipe, as jobs/tune_wikd.py does."""

    def __init__(self, out: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out, self.data = out, data
        self.trained: list[str] = []
        monkeypatch.setattr(FinalRuns, "_train_and_measure", self._pretend)
        monkeypatch.setattr(Experiment, "log_summary", lambda *_: None)

    def _pretend(self, name: str, recipe: Recipe, run: Any) -> Finished:
        self.trained.append(name)
        checkpoint = self.out / "study" / f"{name}.pt"
        torch.manual_seed(len(self.trained))
        save_checkpoint(checkpoint, create_model("siclip-nano"))
        return Finished(checkpoint, {"test/mean_recall@1": recipe.training.learning_rate})

    def tracker(self) -> Tracker:
        return Tracker(f"sqlite:///{self.out}/mlflow.db", artifacts=self.out / "artifacts", spool=self.out / "study")

    def experiment(self, tracker: Tracker) -> Experiment:
        options = Options(out=self.out, data=self.data, concurrent=1, register_as=MODEL)
        experiment = Experiment(options, Display(), tracker, "study")
        experiment.key = "study"
        experiment.begin(digits_student(self.data, None), {"study.metric": "validation/mean_recall@1"}, {})
        return experiment

    def __call__(self, best: Recipe, trial: str) -> dict[Any, Finished]:
        tracker = self.tracker()
        experiment = self.experiment(tracker)
        recipes = {"best": best, "control": without_distillation(best)}
        finished = experiment.train(recipes, best_trial=trial)
        assert experiment.study_run is not None
        experiment.study_run.finish("completed")
        assert tracker.close(60) == 0 and tracker.spool.folder is not None
        return finished


def test_another_best_is_trained_in_place_of_the_first_and_the_first_is_kept(
    out: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = Ends(out, digits, monkeypatch)
    first = digits_student(digits, out / "teacher.pt")
    second = first.updated({"training.learning_rate": 0.25})
    one = end(first, "trial-000")
    assert end(first, "trial-000") == one and end.trained == ["best", "control"]
    two = end(second, "trial-005")
    assert end.trained[2:] == [f"best-{second.hash}", f"control-{without_distillation(second).hash}"]
    assert two["best"].checkpoint != one["best"].checkpoint and one["best"].checkpoint.is_file()
    assert two["best"].metrics["test/mean_recall@1"] == 0.25

    def read() -> Any:
        [study] = read_studies(Store(f"sqlite:///{out}/mlflow.db"), Selection(studies=("study",)))
        return study

    study = read()
    assert (study.best.tag("best_trial"), study.best.params["training.learning_rate"]) == ("trial-005", "0.25")
    assert study.control.params["training.learning_rate"] == "0.25"
    tracker = end.tracker()
    runs = {
        (run.data.tags["siclip.kind"], run.data.params["training.learning_rate"]): run
        for run in tracker.client.search_runs([tracker.experiment_id], "tags.`siclip.kind` != 'study'")
    }
    before = str(first.training.learning_rate)
    assert runs["best", before].data.tags["siclip.superseded_by"] == f"study/best-{second.hash}"
    assert {run.info.status for run in runs.values()} == {"FINISHED"} and len(runs) == 4
    versions = tracker.client.search_model_versions(f"name = '{MODEL}'")
    newest = max(versions, key=lambda version: int(version.version))
    assert len(versions) == 2 and newest.run_id == runs["best", "0.25"].info.run_id
    tracker.close()

    assert end(first, "trial-000") == one and len(end.trained) == 4  # it is the best again
    assert read().best.tag("best_trial") == "trial-000"


def test_the_control_of_a_schedule_keeps_every_other_weight(digits: Path) -> None:
    stages = [
        {"step": 4, "weights": {"feature_distillation": 500.0, "contrastive": 2.0}},
        {"step": 8, "weights": {"interactive_contrastive": 0.5}},
    ]
    best = digits_student(digits, Path("teacher.pt")).updated({"loss.schedule": stages})
    loss = without_distillation(best).loss
    assert not loss.distils and loss.at(0).contrastive == 1.0
    assert [(stage.step, stage.weights) for stage in loss.schedule] == [(4, {"contrastive": 2.0})]


def test_a_study_that_was_stopped_while_it_grew_keeps_its_new_size(out: Path, digits: Path) -> None:
    base, kept = digits_student(digits, out / "teacher.pt"), out / "kept"
    tracker = Tracker(f"sqlite:///{out}/mlflow.db", artifacts=out / "artifacts", spool=out / "study")

    def sizes_after(trials: int, resume: str | None = None) -> list[int]:
        """The numbers of trials in the study's descriptions once it has begun."""
        options = Options(out=out, data=digits, trials=trials, resume=resume, checkpoints=kept)
        Experiment(options, Display(), tracker, "study").begin_search("search", load_space("wikd"), base)
        return [read_study(folder / "study").options.trials for folder in (out, kept)]

    assert sizes_after(24) == [24, 24]
    assert sizes_after(48, resume="study") == [48, 48]
    assert sizes_after(30, resume="study") == [48, 48]
    for folder in (out, kept):
        assert (folder / "study" / "space.yaml").read_text() == space_text("wikd")
    tracker.close()


def test_a_best_that_a_kill_left_unfinished_is_closed_when_another_is_trained(
    out: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = Ends(out, digits, monkeypatch)
    first = digits_student(digits, out / "teacher.pt")
    tracker = end.tracker()
    killed = end.experiment(tracker)
    Names(killed.folder).stem("best", first)
    tracker.start("best", "best", params=first.flat(), tags=killed.tags, parent=killed.study_run, key="study/best")
    tracker.close(60)
    second = first.updated({"training.learning_rate": 0.25})
    end(second, "trial-005")
    assert end.trained[0] == f"best-{second.hash}"
    tracker = end.tracker()
    statuses = [run.info.status for run in tracker.client.search_runs([tracker.experiment_id])]
    assert sorted(statuses) == ["FINISHED", "FINISHED", "FINISHED", "KILLED"]
    tracker.close()


def test_the_studys_own_model_follows_its_best_trial(
    out: Path, digits: Path, monkeypatch: pytest.MonkeyPatch, nano_teacher: Path
) -> None:
    end = Ends(out, digits, monkeypatch)
    tracker = end.tracker()
    experiment = end.experiment(tracker)
    recipe = digits_student(digits, nano_teacher)
    best = TrialOutcome("trial-000", {}, recipe, "completed", 8, 0.5, 1.0, checkpoint=nano_teacher)
    other = out / "other.pt"
    torch.manual_seed(9)
    save_checkpoint(other, create_model("mobileclip-nano"))
    changed = recipe.updated({"training.learning_rate": 0.25})
    better = TrialOutcome("trial-001", {}, changed, "completed", 8, 0.6, 1.0, checkpoint=other)
    for trials in ([best], [best], [best, better]):
        experiment.log_best(StudyResult("validation/mean_recall@1", trials))
        assert tracker.flush(60) == 0 and tracker.spool.problems() == []
    versions = tracker.client.search_model_versions(f"name = '{MODEL}'")
    assert len(versions) == 2
    models = tracker.client.search_logged_models([tracker.experiment_id])
    contents = {(Path(model.artifact_location.removeprefix("file://")) / "model.pt").read_bytes() for model in models}
    assert contents == {nano_teacher.read_bytes(), other.read_bytes()}
    tracker.close()
