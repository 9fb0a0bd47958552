"""Fresh seeds at the end of a study: what is trained, its tags, and the status that the report gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from siclip.checkpoints.formats import save_checkpoint
from siclip.models import create_model
from siclip_platform.datasets.tools.summary import DataSummary
from siclip_platform.display import Display
from siclip_platform.recipes.digits import digits_student
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.report.judge.winner import find_winner
from siclip_platform.report.read.query import DATA_SUMMARY, Selection, read_studies
from siclip_platform.report.read.store import Store
from siclip_platform.search.result import StudyResult, TrialOutcome
from siclip_platform.spaces import load_space
from siclip_platform.spaces.ablation import parse_ablation
from siclip_platform.studies.ablation import confirm_ablation
from siclip_platform.studies.confirmation import confirm, confirm_search
from siclip_platform.studies.experiment import Experiment
from siclip_platform.studies.final_runs import FinalRuns, Finished
from siclip_platform.studies.options import Options
from siclip_platform.studies.timeline import Timeline
from siclip_platform.tracking import Tracker, default_tracking_uri


@pytest.mark.parametrize(("gain", "status"), [(0.1, "confirmed"), (0.0, "not confirmed"), (-0.1, "contradicted")])
def test_fresh_seeds_decide_what_the_report_calls_best(
    gain: float, status: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "model.pt"
    torch.manual_seed(0)
    save_checkpoint(checkpoint, create_model("siclip-nano"))
    trained: list[tuple[str, int]] = []

    def pretend(self: FinalRuns, name: str, recipe: Recipe, run: object) -> Finished:
        seed = recipe.training.seed
        trained.append((name, seed))
        level = 0.3 + 0.01 * (seed % 3) + (gain + 0.002 * (-1) ** seed if "best" in name else 0)
        return Finished(checkpoint, {"test/mean_recall@1": level, "validation/mean_recall@1": level})

    monkeypatch.setattr(FinalRuns, "_train_and_measure", pretend)
    tracker = Tracker(default_tracking_uri(tmp_path), artifacts=tmp_path / "artifacts", spool=tmp_path / "study")
    options = Options(out=tmp_path, data=digits, seeds=2, concurrent=1)
    experiment = Experiment(options, Display(), tracker, "study")
    experiment.dataset()
    base = digits_student(digits, checkpoint, seed=5)
    experiment.begin_search("search", load_space("wikd"), base)
    experiment.train({"best": base, "control": base}, best_trial="trial-003")
    confirm(experiment, base, base, 4, "trial-003")
    assert experiment.study_run is not None
    experiment.study_run.finish("completed")
    assert tracker.close(30) == 0
    expected = [(f"confirm-trial-003-{role}-{seed}", seed) for seed in (7, 8, 9, 10) for role in ("best", "rival")]
    assert trained[2:] == expected

    [study] = read_studies(Store(tracker.uri), Selection(studies=("study",)))
    winner = find_winner(study)
    assert winner.status == status
    assert winner.difference is not None and winner.difference.mean == pytest.approx(gain, abs=1e-9)
    assert len(winner.fresh) == 4

    [summary] = (tmp_path / "artifacts").rglob(DATA_SUMMARY)
    examples = DataSummary.model_validate_json(summary.read_text()).examples
    assert examples and all(example.retrieved for example in examples)


class Recorded:
    """An experiment that records what it would train and print."""

    def __init__(self, seeds: int) -> None:
        self.options = Options(out=Path(), seeds=seeds)
        self.timeline = Timeline()
        self.display = self
        self.printed: list[str] = []
        self.jobs: dict[str, tuple[Recipe, Mapping[str, str]]] = {}

    def say(self, text: str) -> None:
        self.printed.append(text)

    def train_all(self, jobs: Mapping[str, tuple[Recipe, Mapping[str, str]]]) -> None:
        self.jobs.update(jobs)

    def trainings(self) -> set[tuple[int, str | None, str, float]]:
        """Seed, setting, selected trial and learning rate of each training."""
        return {
            (recipe.training.seed, tags.get("setting"), tags["best_trial"], recipe.training.learning_rate)
            for recipe, tags in self.jobs.values()
        }


def outcome(number: int, value: float, recipe: Recipe) -> TrialOutcome:
    return TrialOutcome(f"trial-{number:03d}", {}, recipe, "completed", 12, value, 1.0)


def test_a_search_confirms_its_best_trial_against_its_starting_recipe() -> None:
    base = digits_student(Path("digits"), Path("teacher.pt"), seed=7)
    better = base.updated({"training.learning_rate": 0.5})
    result = StudyResult("validation/mean_recall@1", [outcome(0, 0.2, base), outcome(1, 0.3, better)])
    recorded: Any = Recorded(seeds=2)
    confirm_search(recorded, result, base, 2)
    fresh = [(None, "trial-001", 0.5), ("baseline", "trial-001", base.training.learning_rate)]
    assert recorded.trainings() == {(seed, *training) for seed in (9, 10) for training in fresh}
    itself: Any = Recorded(seeds=2)
    confirm_search(itself, StudyResult(result.metric, [outcome(0, 0.4, base)]), base, 2)
    assert not itself.jobs and "recipe itself" in itself.printed[0]


@pytest.mark.parametrize(("values", "leader"), [((0.2, 0.1, 0.3), "two"), ((0.4, 0.1, 0.3), None)])
def test_an_ablation_confirms_its_leader_against_the_baseline(values: tuple[float, ...], leader: str | None) -> None:
    study = parse_ablation(
        "name: x\nmetric: validation/mean_recall@1\nbaseline: zero\nsettings:\n"
        "  zero: {set: {loss.pair_matching: 0}}\n  one: {set: {loss.pair_matching: 1}}\n"
        "  two: {set: {loss.pair_matching: 2}}\n",
        "study.yaml",
    )
    base = digits_student(Path("digits"), Path("teacher.pt"), seed=1)
    recipes = [base.updated({"training.learning_rate": 0.1 * (index + 1)}) for index in range(3)]
    trials = [outcome(index, *pair) for index, pair in enumerate(zip(values, recipes, strict=True))]
    recorded: Any = Recorded(seeds=3)
    confirm_ablation(recorded, study, study.settings, StudyResult(study.metric, trials), 1)
    if leader is None:
        assert not recorded.jobs and "no setting is above the baseline" in recorded.printed[0]
        return
    index = ("zero", "one", "two").index(leader)
    trial = f"trial-{index:03d}"
    rates = [recipe.training.learning_rate for recipe in recipes]
    assert recorded.trainings() == {(4, leader, trial, rates[index]), (4, "zero", trial, rates[0])}


def test_a_control_is_confirmed_beside_the_starting_recipe() -> None:
    """A lead over the control is distillation's; only one over the starting recipe is the search's."""
    base = digits_student(Path("digits"), Path("teacher.pt"), seed=7)
    best, control = (base.updated({"training.learning_rate": rate}) for rate in (0.5, 0.25))
    recorded: Any = Recorded(seeds=1)
    confirm(recorded, best, control, 2, "trial-001", start=base)
    roles = [(None, 0.5), ("control", 0.25), ("baseline", base.training.learning_rate)]
    assert recorded.trainings() == {(seed, name, "trial-001", rate) for seed in (8, 9) for name, rate in roles}
    led: Any = Recorded(seeds=1)
    confirm(led, base, control, 1, "trial-000", start=base)  # the starting recipe leads
    assert {name for _, name, *_ in led.trainings()} == {None, "control"}


def test_no_seeds_confirm_nothing() -> None:
    recorded: Any = Recorded(seeds=1)
    base = digits_student(Path("digits"), Path("teacher.pt"))
    confirm(recorded, base, base, 0, "trial-000")
    assert not recorded.jobs
