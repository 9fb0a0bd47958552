"""A study without a test split shows the validation figures of its finished models, and says so."""

from __future__ import annotations

import pytest

from siclip_platform.report.read.runs import Run, Study
from siclip_platform.report.sections.leaderboard import comparison
from siclip_platform.report.sections.summary import summary

FIGURES = {"mean_recall@1": 0.5, "image_retrieval_recall@1": 0.4, "beats_all_negatives": 0.25}


def finished(kind: str, split: str, less: float) -> Run:
    metrics = {f"{split}/{name}": value - less for name, value in FIGURES.items()}
    # every training is measured on validation; a study with a test split has that too
    metrics |= {"validation/mean_recall@1": 0.75}
    tags = {"siclip.final_split": split, "siclip.best_trial": "t"}
    return Run(run_id=kind, name=kind, kind=kind, state="completed", tags=tags, metrics=metrics)


@pytest.mark.parametrize("split", ["test", "validation"])
def test_finished_models_are_shown_on_the_split_that_measured_them(split: str) -> None:
    trial = Run(run_id="t", name="t", kind="trial", state="completed", metrics={"validation/mean_recall@1": 0.6})
    both = {"best": finished("best", split, 0.0), "control": finished("control", split, 0.1)}
    study = Study(
        run=Run(run_id="s", name="s", kind="study", state="completed"), experiment="e", trials=(trial,), **both
    )
    text = " ".join(str(block) for block in summary(study).blocks)
    gain = "+10.0 points test mean R@1 (50.0 % against 40.0 %)"
    assert (gain if split == "test" else "+0.0 points validation mean R@1 (75.0 % against 75.0 %)") in text
    assert ("The dataset has no test split" in text) == (split == "validation")
    section = comparison(study)
    assert section is not None
    table = str(section.blocks[1])
    assert f"{split} text → image R@1" in table and ("test " in table) == (split == "test")
