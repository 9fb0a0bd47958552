"""A trial whose training diverges writes the ids of the batches that it diverged on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from siclip.checkpoints.formats import load_model, save_checkpoint
from siclip.training.diverged import TrainingDiverged
from siclip_platform.recipes.presets import digits_student
from siclip_platform.search.trial import trial
from siclip_platform.training.build import prepare

BATCH, SEED = 16, 7


@pytest.fixture
def outside_tune(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Lets `run_trial` run in this process; the results that it reports."""
    results: list[dict[str, Any]] = []
    context = SimpleNamespace(get_trial_id=lambda: "trial-000")
    monkeypatch.setattr(trial, "tune", SimpleNamespace(get_context=lambda: context, report=results.append))
    return results


def test_the_ids_of_a_diverging_trial_are_in_the_studys_folder(
    digits: Path, nano_teacher: Path, tmp_path: Path, outside_tune: list[dict[str, Any]]
) -> None:
    broken = load_model(nano_teacher)
    with torch.no_grad():
        broken.text_encoder.projection_layer.fill_(float("nan"))
    save_checkpoint(tmp_path / "broken.pt", broken)
    recipe = digits_student(digits, nano_teacher, steps=4).updated(
        {"training.batch_size": BATCH, "training.evaluate_every": 2, "training.max_skipped_steps": 2}
    )
    values = {"distil_from": [str(tmp_path / "broken.pt")]}
    with pytest.raises(TrainingDiverged, match=r"the ids of their samples are in .*-diverged-at-1\.csv"):
        trial.run_trial(values, recipe.model_dump_json(), str(tmp_path / "study"), "validation/x", (SEED,))
    assert outside_tune == []
    trained = recipe.updated(values | {"training.seed": SEED})
    (file,) = (tmp_path / "study").glob("*.csv")
    assert file.name == f"{trained.hash}-diverged-at-1.csv"
    written = [int(line.split(",")[1]) for line in file.read_text().splitlines()[1:]]
    assert written == [int(i) for batch in prepare(trained).batches(0, 2 * BATCH) for i in batch.image_ids]
