"""The searcher under Ray Tune: a trial that ASHA stops is PRUNED in Optuna, one that raises is FAIL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
from optuna.trial import TrialState
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from siclip_platform.metrics import METRICS
from siclip_platform.search.policy.searcher import make_searcher
from siclip_platform.spaces.parsing import parse_space

METRIC = "validation/mean_recall@1"
SPACE = """\
name: t
metric: validation/mean_recall@1
parameters:
  training.weight_decay: {distribution: uniform, low: 0, high: 1}
"""
SCORES = [0.8, 0.1, 0.9, 0.2]  # one trial at a time: ASHA stops the second and the fourth at their first rung


def trainable(config: dict[str, Any]) -> None:
    score = config["training.weight_decay"]
    if score == 0.0:
        raise RuntimeError("a trial that breaks")
    for step in (10, 20, 40):
        tune.report({"step": step, METRIC: score + step / 1000})


@pytest.mark.slow
def test_states_under_tune(tmp_path: Path) -> None:
    space = parse_space(SPACE, "t.yaml", METRICS, None)
    points = [{"training.weight_decay": score} for score in (*SCORES, 0.0)]
    search = make_searcher(
        space,
        seed=0,
        num_trials=5,
        max_steps=40,
        study_name="s",
        storage=tmp_path / "study.db",
        points_to_evaluate=points,
    )
    asha = ASHAScheduler(time_attr="step", metric=METRIC, mode="max", max_t=40, grace_period=10, reduction_factor=2)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=search, scheduler=asha, num_samples=5, max_concurrent_trials=1, reuse_actors=True
            ),
            run_config=tune.RunConfig(storage_path=str(tmp_path / "tune"), name="s", verbose=0),
        ).fit()
    finally:
        ray.shutdown()

    trials = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/study.db").trials
    assert [trial.state for trial in trials] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
    ]
    assert trials[0].intermediate_values == pytest.approx({10: 0.81, 20: 0.82, 40: 0.84})
    assert trials[1].intermediate_values == pytest.approx({10: 0.11})
    assert trials[0].value == pytest.approx(0.84)
