"""Which items each model of a study gets right: the report compares them on the same items, with an interval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from siclip_platform.report.read.items import LEADING, NAME, Items, ModelItems
from siclip_platform.storage.atomic import write_text_atomically

if TYPE_CHECKING:
    from siclip_platform.recipes.recipe import Recipe
    from siclip_platform.search.result import StudyResult
    from siclip_platform.studies.experiment import Experiment


def starting_checkpoint(study: StudyResult, base: Recipe) -> Path | None:
    """The checkpoint of the trial of the starting recipe; None if that was reused, stopped early or removed."""
    trial = next((each for each in study.trials if each.recipe == base and each.state == "completed"), None)
    return trial.checkpoint if trial else None


def log_items(experiment: Experiment, trial: str, models: Mapping[str, Path | None]) -> None:
    """Measure models on every item of the study's `final_split`, and log the outcomes with the study's run.

    Args:
        experiment: the study.
        trial: the leading trial.
        models: key of `siclip_platform.report.read.items.Items` → checkpoint; those that are None are left out.
    """
    known = {name: path for name, path in models.items() if path is not None and path.is_file()}
    if experiment.study_run is None or LEADING not in known or len(known) < 2:
        return
    # Imported late: torch.
    from siclip_platform.evaluation.items import item_hits

    split, data = experiment.final_split, experiment.options.dataset_folder
    with experiment.timeline.span("items"):
        hits = {name: item_hits(path, data, split) for name, path in known.items()}
    found = Items(
        split=split,
        captions=next(iter(hits.values())).captions,
        models={
            name: ModelItems(
                trial=trial if name == LEADING else "",
                text_to_image=each.text_to_image,
                image_to_text=each.image_to_text,
            )
            for name, each in hits.items()
        },
    )
    path = experiment.folder / NAME
    write_text_atomically(path, found.model_dump_json() + "\n")
    experiment.study_run.artifact(path)
