"""Every shipped space trains two trials, and an ablation its settings, with small models and data in one Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState

from siclip_platform.display import Display
from siclip_platform.recipes.digits import digits_student
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.search.ledger.recorder import Recorder
from siclip_platform.search.policy.defaults import population_of, scheduler_of
from siclip_platform.search.policy.searcher import make_searcher
from siclip_platform.search.study import StudyPlan
from siclip_platform.search.tune_run import run_study
from siclip_platform.spaces.ablation import load_ablation
from siclip_platform.spaces.load import load_space
from siclip_platform.studies.ablation import begin_ablation, run_ablation
from siclip_platform.studies.experiment import Experiment
from siclip_platform.studies.options import Options, check_sharing
from siclip_platform.tracking import Tracker

pytestmark = pytest.mark.slow
NAMES = sorted(path.stem for path in (Path(__file__).parents[3] / "search_spaces").glob("*.yaml"))
# those for another model have the fields of their namesakes, see test_options.py
SPACES = [name for name in NAMES if not name.endswith("_siclip2")]
IN_CI = ("pm_mining", "wikd")  # the others differ in their fields; test_population.py runs loss_schedule's kind
SMALL_DATA = {
    "data_scaling": [{"data.limit": 500}, {"data.limit": 520}]
}  # the space's own limits require all digit scenes
STEPS = 10


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, nano_teacher: Path) -> Recipe:
    from siclip_platform.datasets.digits.digits import (
        NAME,
        VERSION,
        DigitScenesConfig,
        compose_shard,
        digit_scenes_recipe,
        shard_specs,
    )
    from siclip_platform.datasets.manifest import Manifest, ShardEntry, write_manifest, write_shard

    folder = tmp_path_factory.mktemp("scenes")
    config = DigitScenesConfig(
        train_scenes=540, validation_scenes=24, test_scenes=24, shard_rows=270, row_group_rows=30
    )
    splits: dict[str, list[ShardEntry]] = {}
    for spec in shard_specs(config):
        entry = write_shard(compose_shard(spec), folder / spec.file_name, config.row_group_rows)
        splits.setdefault(spec.split, []).append(entry)
    recipe = digit_scenes_recipe(config)
    write_manifest(folder, Manifest(name=NAME, version=VERSION, recipe=recipe, splits=splits))
    torch.set_num_threads(1)
    return digits_student(folder, nano_teacher, steps=STEPS).updated(
        {"training.batch_size": 8, "training.evaluate_every": 5, "evaluation.validation_samples": 24}
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, mlflow_database: bytes) -> Path:
    out = tmp_path_factory.mktemp("spaces")
    (out / "mlflow.db").write_bytes(mlflow_database)
    return out


@pytest.fixture(scope="module")
def tracker(out: Path) -> Iterator[Tracker]:
    tracker = Tracker(f"sqlite:///{out}/mlflow.db", artifacts=out / "artifacts", spool=out / "spool")
    yield tracker
    tracker.close()


@pytest.mark.usefixtures("own_ray")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name not in IN_CI)) for name in SPACES]
)
def test_two_trials_of_every_space(name: str, base: Recipe, out: Path, tracker: Tracker) -> None:
    space = load_space(name, check_value=check_sharing(base.model.name))
    points: list[dict[str, Any]] = SMALL_DATA.get(name, [])
    folder = out / name
    searcher = make_searcher(
        space,
        seed=0,
        num_trials=2,
        max_steps=STEPS,
        study_name=name,
        storage=folder / "optuna.db",
        points_to_evaluate=points,
    )
    plan = StudyPlan(
        name=name,
        folder=folder,
        base=base,
        metric=space.metric,
        trials=2,
        searcher=searcher,
        scheduler=scheduler_of(space, base, 0),
        concurrent=1,
        population=population_of(space, base, trials=2, seed=0, backend="process"),
    )
    study = tracker.start(name, "study", params={}, tags={"study": name}, key=name)
    result = run_study(plan, Recorder(tracker, study, {"study": name}))
    assert [trial.reason for trial in result.trials if trial.state == "failed"] == []
    assert len(result.trials) == 2 and result.trials[0].recipe != result.trials[1].recipe
    for trial in result.trials:
        assert space.restrict(trial.values) == {k: v for k, v in trial.values.items() if k != "loss.schedule"}
    in_optuna = optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/optuna.db").get_trials()
    ended = [trial for trial in in_optuna if trial.state.is_finished()]
    states = {"completed": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
    # A member that was replaced by a copy of another one ends as pruned in Optuna: its own setting did.
    expected = ["pruned" if "loss.schedule" in trial.values else trial.state for trial in result.trials]
    assert expected.count("pruned") == 1 or space.scheduler.name != "pbt"
    assert [trial.state for trial in ended] == [states[state] for state in expected]
    assert all(len(trial.values) == len(space.directions) for trial in ended if trial.state == TrialState.COMPLETE)


@pytest.mark.usefixtures("own_ray")
def test_an_ablation_trains_each_setting_with_the_same_seeds(base: Recipe, out: Path, tracker: Tracker) -> None:
    ablation = load_ablation("paper_experiments")
    settings = ablation.only(["wikd"])
    options = Options(out=out, data=Path(base.data.path), seeds=2, concurrent=2, trials=len(settings))
    experiment = Experiment(options, Display(), tracker, "ablation")
    experiment.dataset()
    begin_ablation(experiment, ablation, settings, base)
    result = run_ablation(experiment, ablation, settings, base, {})
    assert experiment.study_run is not None
    experiment.study_run.finish("completed")
    assert tracker.flush() == 0

    assert [trial.state for trial in result.trials] == ["completed", "completed"]
    runs = tracker.client.search_runs([tracker.experiment_id], "tags.`siclip.study` = 'ablation'")
    tags = [{key.removeprefix("siclip."): value for key, value in run.data.tags.items()} for run in runs]
    (study,) = [tag for tag in tags if tag["kind"] == "study"]
    assert (study["study_type"], study["baseline"]) == ("ablation", "contrastive")
    trials = {tag["setting"]: tag["setting_order"] for tag in tags if tag["kind"] == "trial"}
    assert trials == {"contrastive": "0", "wikd": "1"}
    seeds = sorted((tag["mlflow.runName"], tag["seed"]) for tag in tags if tag["kind"] == "seed")
    assert [seed for _, seed in seeds] == ["0", "1", "0", "1"]
    contrastive, wikd = (trial.recipe for trial in result.trials)
    assert (contrastive.model.inherit, contrastive.loss.distils) == (False, False)
    assert (wikd.model.inherit, wikd.loss.distils, wikd.loss.pair_matching) == (True, True, 0.0)
