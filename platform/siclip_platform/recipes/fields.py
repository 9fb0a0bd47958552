"""What the recipe allows at a dotted path: which paths can be searched, and which values a field takes."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from siclip.errors import UserError
from siclip_platform.recipes.problems import choices_of, closest
from siclip_platform.recipes.recipe import Recipe, find_field, leaf_paths

NOT_SEARCHED = {
    "training.steps": "every trial has the same budget of steps",
    "training.epochs": "every trial has the same budget of steps",
    "training.log_every": "it changes nothing that is computed",
    "training.evaluate_every": "it changes nothing that is computed",
    "training.checkpoint_every": "it changes nothing that is computed",
    "evaluation.validation_samples": "scores of different samples do not compare",
    "evaluation.subset_seed": "scores of different samples do not compare",
    "evaluation.max_share": "it changes nothing that is computed",
    "loss.schedule": "scheduler {name: pbt} finds schedules of the loss weights",
    "training.seed": "a seed is not a setting, and scores of different seeds do not compare",
    "data.path": "scores on different data do not compare",
    "data.reader": "it changes nothing that is computed",
    "data.decode": "it changes nothing that is computed",
    "data.concurrent_reads": "it changes nothing that is computed",
    "data.reader_nodes": "it changes nothing that is computed",
    "teacher": "a checkpoint is a path, not a range",
}


def path_problem(path: str) -> str | None:
    """Why this path cannot be searched, with the remedy; None if it can."""
    if path in NOT_SEARCHED:
        return f"{path!r} cannot be searched: {NOT_SEARCHED[path]}; set it in the recipe"
    paths = list(leaf_paths())
    if path in paths:
        return None
    try:
        find_field(Recipe, path)
    except UserError as error:
        return str(error)
    parts = ", ".join(p for p in paths if p.startswith(f"{path}."))
    if not parts:  # a key of a mapping, such as data.caption_weights
        return None
    return f"{path!r} is a group of the recipe; name one of its fields: {parts}"


@cache
def _adapter(path: str) -> TypeAdapter[Any]:
    field = find_field(Recipe, path)
    annotated: Any = Annotated[field.annotation, field]
    return TypeAdapter(annotated, config=ConfigDict(allow_inf_nan=False))


def read_value(path: str, value: Any) -> tuple[Any, str | None]:
    """The value as the recipe's field holds it (1 as 1.0 in a float field), or why it is refused, with a remedy."""
    try:
        return _adapter(path).validate_python(value, strict=True), None
    except ValidationError as error:
        first = error.errors()[0]
        hint = closest(str(value), choices_of(first)) if first["type"] == "literal_error" else ""
        return None, f"{first['msg']}{hint or '; change or remove it'}"
