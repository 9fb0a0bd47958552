"""A training that is resumed with more steps: what may change, and the state that it begins with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from siclip.errors import UserError
from siclip.training.identity import LENGTH, follows_length, same_steps
from siclip_platform.cluster.connect import prepare_environment, quieten
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.storage import AnyPath
from siclip_platform.studies.names import Names

if TYPE_CHECKING:
    from siclip_platform.studies.study_file import StudyFile
    from siclip_platform.training.ray_train import SavedState

FIELDS = frozenset(f"training.{name}" for name in LENGTH)
"""Fields of a recipe that may change when a training is extended."""


def may_be_extended(recipe: Recipe, asked: Recipe) -> bool:
    """Whether what a training has computed can be a part of what another recipe asks for: both rates are constant."""
    return "cosine" not in (recipe.training.schedule, asked.training.schedule)


def extended(study: StudyFile, asked: Recipe) -> StudyFile:
    """The study of a training with the length that is asked for; as it is if nothing changes.

    A warm-up that is a share of the steps stays as long as it was, unless another one is asked for.

    Raises:
        UserError: none of the states that the training has saved belongs to the recipe that is asked for.
    """
    if asked == study.base:
        return study
    before, share = study.base.training, asked.training.warmup_share
    if share and share == before.warmup_share:
        asked = asked.updated({"training.warmup_share": 0, "training.warmup_steps": before.warmup})
    # Ray reads its settings when it is imported, which otherwise happens only once everything is checked.
    prepare_environment(study.options.verbose)
    import ray.train  # noqa: F401

    quieten(study.options.verbose)
    longer = study.model_copy(update={"base": asked, "earlier": (*study.earlier, study.base)})
    first_state(longer.folder, longer.earlier, asked, longer.checkpoints)
    return longer


def first_state(
    folder: Path, earlier: Sequence[Recipe], asked: Recipe, checkpoints: AnyPath | None
) -> SavedState | None:
    """The newest state of earlier recipes that a run of ``asked`` would have reached; None if none was saved.

    Args:
        folder: the study's.
        earlier: its recipes, the oldest first.
        asked: the recipe that is to train.
        checkpoints: the study's folder in ``--checkpoints``, if it has one.

    Raises:
        UserError: states were saved, and none fits; the message says up to which step one would.
    """
    from siclip_platform.training.ray_train import saved_state

    refused = []
    for recipe in reversed(earlier):
        stem = Names(folder).known(recipe)
        state = stem and saved_state(stem, (checkpoints or folder) / "train")
        if not state:
            continue
        part = follows_length(asked.loss)
        same = (
            0
            if part and recipe.training.steps != asked.training.steps
            else same_steps(recipe.training, asked.training)
        )
        if state.step <= same:
            return state
        why = f"{part} follows the share of the steps that are done" if part else "another learning rate after them"
        refused.append(f"{stem} has done {state.step:,} steps, {same:,} of which are the same ({why})")
    if refused:
        raise UserError(
            "\n  ".join(["the training cannot be extended like this:", *refused])
            + "\ngive it more steps or a shorter cool-down, or begin a new training without --resume"
        )
    return None
