"""What runs in a trial's process: one training for each seed, in step with each other, and their mean to Tune."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune

from siclip_platform.recipes.recipe import Recipe
from siclip_platform.search.trial.seed_run import Lane, Milestone, Run
from siclip_platform.training.in_process import run_recipe
from siclip_platform.training.memory import give_back_memory

REPLAY = "replay"
SECONDS = "cost/seconds"
CHECKPOINTS = "checkpoints"


class TrialDiverged(RuntimeError):
    """A figure that the study compares is not a finite number."""


def run_trial(
    values: dict[str, Any],
    recipe_json: str,
    folder: str,
    metric: str,
    seeds: tuple[int, ...],
    run: Run | None = None,
) -> None:
    """Tune's function: train ``values`` around a recipe with each of ``seeds``; report at every evaluation.

    Before it starts, the driver may leave ``folder/replay/TUNE_ID.json``: for a seed, the milestones that are known
    already and a checkpoint to go on from. A report holds the means, ``step``, ``cost/seconds`` and under ``seeds``
    each seed's own figures since the last report. With ``until`` in that file the trial ends after so many steps, and
    one that runs out of memory is not started once more; ``save_every``: a checkpoint is written as often.

    Raises:
        TrialDiverged: ``metric`` is not finite; the report with it has been made.
    """
    recipe = Recipe.model_validate_json(recipe_json).updated(values)
    place = Path(folder) / CHECKPOINTS / tune.get_context().get_trial_id()
    known = _known(Path(folder))
    if "save_every" in known:
        recipe = recipe.updated({"training.checkpoint_every": known["save_every"]})
    run = run or partial(run_recipe, outputs=Path(folder))
    lanes = [_lane(recipe, seed, run, place, known) for seed in seeds]
    try:
        for moments in zip(*lanes, strict=True):
            result: dict[str, Any] = _mean(moments) | {
                "step": moments[0].step,
                "seeds": {str(lane.seed): moment.figures() for lane, moment in zip(lanes, moments, strict=True)},
                "notes": {key: value for lane in lanes for key, value in lane.notes.items()},
            }
            tune.report(result)
            if not math.isfinite(result.get(metric, 0.0)):
                raise TrialDiverged(f"{metric} is {result[metric]} at step {moments[0].step}")
            if moments[0].step >= known.get("until", math.inf):
                return
    finally:
        for lane in lanes:
            lane.close()
        lanes.clear()
        give_back_memory()


def _lane(recipe: Recipe, seed: int, run: Run, place: Path, known: Mapping[str, Any]) -> Lane:
    replay = known.get(str(seed), {})
    checkpoint = Path(replay["checkpoint"]) if replay.get("checkpoint") else None
    return Lane(
        recipe.updated({"training.seed": seed}), seed, run, place, checkpoint,
        [Milestone(**moment) for moment in replay.get("milestones", [])], again="until" not in known,
    )  # fmt: skip


def _known(folder: Path) -> dict[str, Any]:
    file = folder / REPLAY / f"{tune.get_context().get_trial_id()}.json"
    if not file.is_file():
        return {}
    known: dict[str, Any] = json.loads(file.read_text())
    return known


def _mean(moments: tuple[Milestone, ...]) -> dict[str, float]:
    """Means of the figures that all seeds have; of the seconds the sum."""
    shared = set.intersection(*(set(moment.metrics) for moment in moments))
    sums = {key: sum(moment.metrics[key] for moment in moments) for key in sorted(shared)}
    return {key: total if key == SECONDS else total / len(moments) for key, total in sums.items()}
