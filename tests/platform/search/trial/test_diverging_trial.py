"""A trial whose training diverges writes the ids of the batches that it diverged on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from siclip.training.diverged import TrainingDiverged
from siclip_platform.search.trial import trial
from tests.support.diverging_parts import assert_ids_are_written, diverging_recipe

SEED = 7


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Lets `run_trial` run in this process; what it reports to Tune."""
    reported: list[dict[str, Any]] = []
    context = SimpleNamespace(get_trial_id=lambda: "trial-000")
    monkeypatch.setattr(trial, "tune", SimpleNamespace(get_context=lambda: context, report=reported.append))
    return reported


def test_the_ids_of_a_diverging_trial_are_in_the_studys_folder(
    digits: Path, nano_teacher: Path, tmp_path: Path, results: list[dict[str, Any]]
) -> None:
    recipe = diverging_recipe(digits, nano_teacher, tmp_path)
    study = tmp_path / "study"
    with pytest.raises(TrainingDiverged, match=r"the ids of their \w+ are in .*-diverged-at-1\.csv"):
        trial.run_trial({}, recipe.model_dump_json(), str(study), "validation/mean_recall@1", (SEED,))
    assert results == []
    assert_ids_are_written(recipe.updated({"training.seed": SEED}), study)
