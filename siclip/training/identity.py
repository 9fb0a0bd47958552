"""The identity of a training run: a state may only be resumed with the same model, loss, teacher and freezing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from siclip.config import LossConfig, ModelConfig, TrainingConfig
from siclip.data.cursor import Cursor, check_cursor
from siclip.errors import UserError

STATE = {"step", "skipped", "diverging", "micro_batch_size", "card", "seconds", "identity", "averaging"}
"""Keys that every training state has."""


def identity(
    training: TrainingConfig, model: ModelConfig, loss: LossConfig, frozen: Collection[str], teacher: str
) -> dict[str, Any]:
    """The identity of a run as plain values.

    Args:
        training, model, loss: configs of the run.
        frozen: names of the parameters that do not train at the start.
        teacher: the teacher's identity.
    """
    return {
        "training": training.model_dump(mode="json"),
        "model": model.model_dump(mode="json"),
        "loss": loss.model_dump(mode="json"),
        "frozen": sorted(frozen),
        "teacher": teacher,
    }


def check_state(state: Mapping[str, Any], here: Mapping[str, Any], cursor: Cursor | None) -> None:
    """Check that a run can resume from a checkpoint's training state.

    Args:
        state: the training state.
        here: identity of the run that is to resume.
        cursor: the start of its data; None if unknown.

    Raises:
        UserError: a key is missing, or the state is of another run or other data.
    """
    if lacks := STATE - state.keys():
        raise UserError(
            f"the checkpoint's training state lacks {', '.join(sorted(lacks))}, because an earlier version wrote it: "
            "it can be used as a teacher, but not resumed"
        )
    check_same(*(_without_later_stages(one, state["step"]) for one in (state["identity"], here)))
    if cursor is not None and state.get("cursor"):
        check_cursor(state["cursor"], cursor)


def _without_later_stages(run: Mapping[str, Any], step: int) -> dict[str, Any]:
    """An identity without the stages of the loss schedule from ``step`` on, which may still change."""
    loss = dict(run.get("loss") or {})
    loss["schedule"] = [stage for stage in loss.get("schedule", ()) if stage["step"] < step]
    return {**run, "loss": loss}


def check_same(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Check that a training state is of this run.

    Raises:
        UserError: the message lists every field that differs, with both values.
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
            f"the checkpoint is of another run: {'; '.join(differences)}. Resume it with the settings it was started "
            "with, or use it as a teacher"
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
