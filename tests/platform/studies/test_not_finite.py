"""A search whose trials all end with a model that is not finite has no best; one trial of them is FAIL."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import yaml
from mlflow import MlflowClient

from siclip.models.finite import NotFinite
from siclip_platform.search.trial import trial
from tests.support.study_parts import METRIC, base_recipe

SPACE = """\
name: nanspace
metric: validation/mean_recall@1
parameters:
  training.learning_rate: {distribution: choice, values: [1e30, 1e32]}
scheduler: {name: none}
"""


def test_a_trial_ends_before_it_reports_figures_of_a_broken_model(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[dict[str, Any]] = []
    context = SimpleNamespace(get_trial_id=lambda: "trial-000")
    monkeypatch.setattr(trial, "tune", SimpleNamespace(get_context=lambda: context, report=reported.append))
    recipe = base_recipe(digits, steps=4)
    with pytest.raises(NotFinite, match=r"^the model at step 2 is not finite: \d+ of \d+ outputs"):
        trial.run_trial({"training.learning_rate": 1e30}, recipe.model_dump_json(), str(tmp_path), METRIC, (0,))
    assert reported == [] and not list(tmp_path.rglob("*.pt"))
    trial.run_trial({"training.learning_rate": 1e-3}, recipe.model_dump_json(), str(tmp_path), METRIC, (0,))
    assert [result["step"] for result in reported] == [2, 4]


@pytest.mark.slow
def test_a_search_without_a_finite_model_reports_no_best(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(base_recipe(digits, steps=4).model_dump(mode="json")))
    command = ["-m", "siclip_platform", "tune", "--space", "space.yaml", "--recipe", "recipe.yaml", "--trials", "2"]
    more = ["--set", "training.learning_rate=1e30", "--concurrent", "2", "--out", "out"]
    done = subprocess.run(
        [sys.executable, *command, *more],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "best of" not in done.stdout
    assert "no trial of the study ran to its end, so it has no best" in done.stderr
    assert "the model at step 2 is not finite" in done.stderr
    storage = f"sqlite:///{tmp_path / 'out' / 'nanspace' / 'optuna.db'}"
    (found,) = optuna.get_all_study_summaries(storage)
    trials = optuna.load_study(study_name=found.study_name, storage=storage).trials
    assert [each.state for each in trials] == [optuna.trial.TrialState.FAIL] * 2
    (run,) = MlflowClient(f"sqlite:///{tmp_path / 'out' / 'mlflow.db'}").search_runs(
        ["0", "1"], "tags.`siclip.kind` = 'study'"
    )
    assert run.info.status == "FAILED" and "study/failed" in run.data.metrics
    assert not [name for name in run.data.metrics if name.startswith("study/best")]
