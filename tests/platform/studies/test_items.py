"""Which items models get right: their means are the metrics of the evaluation, and a study logs them once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from siclip.checkpoints.formats import save_checkpoint
from siclip.models import create_model
from siclip_platform.evaluation import evaluate_checkpoint
from siclip_platform.recipes.digits import digits_student
from siclip_platform.report.judge.items import item_gap
from siclip_platform.report.read.items import Items, read_items
from siclip_platform.search.result import StudyResult, TrialOutcome
from siclip_platform.studies.items import log_items, starting_checkpoint
from siclip_platform.studies.timeline import Timeline


def test_a_study_logs_the_outcomes_of_which_its_metrics_are_means(
    digits: Path, nano_teacher: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.pt"
    torch.manual_seed(4)
    save_checkpoint(other, create_model("siclip-nano"))
    logged: list[Path] = []
    experiment: Any = SimpleNamespace(
        study_run=SimpleNamespace(artifact=logged.append),
        final_split="test",
        options=SimpleNamespace(dataset_folder=digits),
        folder=tmp_path,
        timeline=Timeline(),
    )
    log_items(experiment, "trial-001", {"leading": nano_teacher, "start": other, "control": None})
    (path,) = logged
    found = read_items(path.read_text())
    assert isinstance(found, Items)
    assert (found.split, len(found.captions), found.models.keys()) == ("test", 60, {"leading", "start"})
    assert found.models["leading"].trial == "trial-001"
    metrics = [evaluate_checkpoint(checkpoint, digits, "test") for checkpoint in (nano_teacher, other)]
    for name in ("mean_recall@1", "image_retrieval_recall@1", "text_retrieval_recall@1"):
        gap = item_gap(found, "leading", "start", f"test/{name}")
        assert gap is not None
        assert (gap.first, gap.second) == pytest.approx(tuple(each[f"test/{name}"] for each in metrics))
        assert gap.mean == pytest.approx(gap.first - gap.second) and gap.low <= gap.mean <= gap.high
    assert item_gap(found, "leading", "control", "test/mean_recall@1") is None
    assert item_gap(found, "leading", "start", "validation/mean_recall@1") is None
    assert item_gap(found, "leading", "start", "test/beats_all_negatives") is None
    # One model has nothing to be compared with.
    log_items(experiment, "trial-001", {"leading": nano_teacher, "start": tmp_path / "gone.pt"})
    assert len(logged) == 1


def test_the_starting_recipe_is_found_by_its_recipe() -> None:
    base = digits_student(Path("digits"), Path("teacher.pt"), seed=7)
    changed = base.updated({"training.learning_rate": 0.5})
    path = Path("one.pt")
    trials = [
        TrialOutcome("trial-000", {}, changed, "completed", 1, 0.5, 1.0, checkpoint=Path("other.pt")),
        TrialOutcome("trial-001", {}, base, "completed", 1, 0.4, 1.0, checkpoint=path),
    ]
    assert starting_checkpoint(StudyResult("m", trials), base) == path
    assert starting_checkpoint(StudyResult("m", trials[:1]), base) is None
