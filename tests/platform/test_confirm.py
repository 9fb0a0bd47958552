"""Fresh seeds at the end of a study: what is trained, how it is tagged, and what the report then says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from siclip.checkpoints.formats import save_checkpoint
from siclip.models import create_model
from siclip_platform.display import Display
from siclip_platform.experiment import Experiment, Finished
from siclip_platform.options import Options
from siclip_platform.presets import digits_student
from siclip_platform.recipe import Recipe
from siclip_platform.report.data_summary import DataSummary
from siclip_platform.report.query import DATA_SUMMARY, Selection, read_studies
from siclip_platform.report.store import Store
from siclip_platform.report.winner import find_winner
from siclip_platform.search import load_space
from siclip_platform.tracking import Tracker, default_tracking_uri


@pytest.mark.parametrize(("gain", "status"), [(0.1, "confirmed"), (0.0, "not confirmed"), (-0.1, "contradicted")])
def test_fresh_seeds_decide_what_the_report_calls_best(
    gain: float, status: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "model.pt"
    torch.manual_seed(0)
    save_checkpoint(checkpoint, create_model("siclip-nano"))
    trained: list[tuple[str, int]] = []

    def pretend(self: Experiment, name: str, recipe: Recipe, run: object) -> Finished:
        seed = recipe.training.seed
        trained.append((name, seed))
        level = 0.3 + 0.01 * (seed % 3) + (gain + 0.002 * (-1) ** seed if "best" in name else 0)
        return Finished(checkpoint, {"test/mean_recall@1": level, "validation/mean_recall@1": level})

    monkeypatch.setattr(Experiment, "_under_ray_train", pretend)
    tracker = Tracker(default_tracking_uri(tmp_path), artifacts=tmp_path / "artifacts", spool=tmp_path / "study")
    options = Options(out=tmp_path, data=digits, seed=5, seeds=2, concurrent=1)
    experiment = Experiment(options, Display(), tracker, "study")
    experiment.dataset()
    base = digits_student(digits, checkpoint)
    experiment.begin_study(load_space("wikd"), base)
    experiment.train({"best": base, "control": base}, best_trial="trial-003")
    experiment.confirm(base, base, 4, "trial-003")
    assert experiment.study_run is not None
    experiment.study_run.finish("completed")
    assert tracker.close(30) == 0
    assert trained[2:] == [(f"confirm-{s}-{seed}", seed) for seed in (7, 8, 9, 10) for s in ("best", "control")]

    [study] = read_studies(Store(tracker.uri), Selection(studies=("study",)))
    winner = find_winner(study)
    assert winner.status == status
    assert winner.difference is not None and winner.difference.mean == pytest.approx(gain, abs=1e-9)
    assert len(winner.fresh) == 4

    [summary] = (tmp_path / "artifacts").rglob(DATA_SUMMARY)
    examples = DataSummary.model_validate_json(summary.read_text()).examples
    assert examples and all(example.retrieved for example in examples)
