"""What runs in a trial's process: one training per seed, in step with each other; their mean goes to Ray Tune."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune

from siclip_platform.recipes.recipe import Recipe
from siclip_platform.search.trial.seed_run import Milestone, Run, SeedRun
from siclip_platform.training.in_process import run_recipe
from siclip_platform.training.memory import give_back_memory

REPLAY = "replay"
SECONDS = "cost/seconds"
CHECKPOINTS = "checkpoints"


class TrialDiverged(RuntimeError):
    """The metric that the study compares is not a finite number."""


def run_trial(
    values: dict[str, Any],
    recipe_json: str,
    folder: str,
    metric: str,
    seeds: tuple[int, ...],
    run: Run | None = None,
) -> None:
    """Ray Tune's function: train a setting with each seed and report at every evaluation.

    A report has the mean metrics, ``step``, ``cost/seconds``, under ``seeds`` each seed's metrics and history since
    the last report, and under ``notes`` events such as a retry.

    Before the trial starts, the driver may write ``folder/replay/TUNE_ID.json`` with, per seed, the ``milestones``
    that are known already and a ``checkpoint`` to resume from. Two more keys are a population's: ``until``, the step
    at which the trial ends (and a training that runs out of memory is not retried), and ``save_every``, the steps
    between checkpoints.

    Args:
        values: the setting, by dotted recipe path.
        recipe_json: the study's starting recipe.
        folder: the study's folder; the ids of a diverging training's batches are written there.
        metric: what the study compares.
        seeds: one training each.
        run: the training; by default the recipe's own in this process.

    Raises:
        TrialDiverged: ``metric`` is not finite; it has been reported.
    """
    recipe = Recipe.model_validate_json(recipe_json).updated(values)
    checkpoints = Path(folder) / CHECKPOINTS / tune.get_context().get_trial_id()
    known = _read_known(Path(folder))
    if "save_every" in known:
        recipe = recipe.updated({"training.checkpoint_every": known["save_every"]})
    run = run or partial(run_recipe, outputs=Path(folder))
    seed_runs = [_seed_run(recipe, seed, run, checkpoints, known) for seed in seeds]
    try:
        for milestones in zip(*seed_runs, strict=True):
            step = milestones[0].step
            result: dict[str, Any] = _mean(milestones) | {
                "step": step,
                "seeds": {
                    str(each.seed): milestone.report() for each, milestone in zip(seed_runs, milestones, strict=True)
                },
                "notes": {key: value for each in seed_runs for key, value in each.notes.items()},
            }
            tune.report(result)
            if not math.isfinite(result.get(metric, 0.0)):
                raise TrialDiverged(f"{metric} is {result[metric]} at step {step}")
            if step >= known.get("until", math.inf):
                return
    finally:
        for each in seed_runs:
            each.close()
        # The process is reused: without this, the next trial would find the memory still occupied.
        seed_runs.clear()
        give_back_memory()


def _seed_run(recipe: Recipe, seed: int, run: Run, folder: Path, known: Mapping[str, Any]) -> SeedRun:
    replay = known.get(str(seed), {})
    return SeedRun(
        recipe.updated({"training.seed": seed}),
        seed,
        run,
        folder,
        checkpoint=Path(replay["checkpoint"]) if replay.get("checkpoint") else None,
        known=[Milestone(**milestone) for milestone in replay.get("milestones", [])],
        retries="until" not in known,
    )


def _read_known(folder: Path) -> dict[str, Any]:
    file = folder / REPLAY / f"{tune.get_context().get_trial_id()}.json"
    if not file.is_file():
        return {}
    known: dict[str, Any] = json.loads(file.read_text())
    return known


def _mean(milestones: tuple[Milestone, ...]) -> dict[str, float]:
    """Means of the metrics that all seeds have; seconds are summed."""
    shared = set.intersection(*(set(milestone.metrics) for milestone in milestones))
    sums = {key: sum(milestone.metrics[key] for milestone in milestones) for key in sorted(shared)}
    return {key: total if key == SECONDS else total / len(milestones) for key, total in sums.items()}
