"""What a training state belongs to: going on with another model, loss, teacher or freezing would be another run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from siclip.config import LossConfig, ModelConfig, TrainingConfig
from siclip.data.cursor import Cursor, check_cursor
from siclip.errors import UserError

STATE = {"step", "skipped", "diverging", "micro_batch_size", "card", "seconds", "identity", "averaging"}
"""What every training state has."""


def identity(
    training: TrainingConfig, model: ModelConfig, loss: LossConfig, frozen: Collection[str], teacher: str
) -> dict[str, Any]:
    """Plain values by name. ``frozen``: parameters that do not train at the start. ``teacher``: its identity."""
    return {
        "training": training.model_dump(mode="json"),
        "model": model.model_dump(mode="json"),
        "loss": loss.model_dump(mode="json"),
        "frozen": sorted(frozen),
        "teacher": teacher,
    }


def check_state(state: Mapping[str, Any], here: Mapping[str, Any], cursor: Cursor | None) -> None:
    """Whether a checkpoint's training state can be continued by a run of the identity ``here``.

    ``cursor``: where its data begin, None where nothing is known of them.

    Raises:
        UserError: it lacks something, is of another run or of other data.
    """
    if lacks := STATE - state.keys():
        raise UserError(
            f"the checkpoint's training state lacks {', '.join(sorted(lacks))}, an earlier version wrote it: it can "
            "be a teacher, but not be continued"
        )
    check_same(*(begun(one, state["step"]) for one in (state["identity"], here)))
    if cursor is not None and state.get("cursor"):
        check_cursor(state["cursor"], cursor)


def begun(run: Mapping[str, Any], step: int) -> dict[str, Any]:
    """An identity without the stages of the loss schedule that are to come after ``step`` steps: they may change."""
    loss = dict(run.get("loss") or {})
    loss["schedule"] = [stage for stage in loss.get("schedule", ()) if stage["step"] < step]
    return {**run, "loss": loss}


def check_same(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Whether a training state is of this run.

    Raises:
        UserError: it names every field that differs, with both values.
    """
    differences = []
    for part, here in ours.items():
        there = saved.get(part)
        if there == here:
            continue
        if part == "frozen":
            differences.append(_frozen(list(there or ()), list(here)))
        elif isinstance(here, Mapping) and isinstance(there, Mapping):
            differences += _fields(there, here, part)
        else:
            differences.append(f"{part} {there!r} there, {here!r} here")
    if differences:
        raise UserError(
            f"the checkpoint is of another run: {'; '.join(differences)}. Continue it with what it was begun with, "
            "or take it as a teacher"
        )


def _fields(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str) -> list[str]:
    found = []
    for name in sorted(there.keys() | here.keys()):
        path, one, other = f"{prefix}.{name}", there.get(name), here.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += _fields(one, other, path)
        elif one != other:
            found.append(f"{path} {one!r} there, {other!r} here")
    return found


def _frozen(there: list[str], here: list[str]) -> str:
    differing = sorted(set(there) ^ set(here))
    return (
        f"{len(there)} frozen parameters there, {len(here)} here (model.inherit, model.freeze), such as "
        f"{', '.join(differing[:3])}"
    )
