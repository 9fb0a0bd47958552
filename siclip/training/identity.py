"""The identity of a training run: a state may only be resumed with the same model, loss, teacher and freezing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ValidationError

from siclip.config import Config, LossConfig, ModelConfig, TrainingConfig
from siclip.data.cursor import Cursor, check_cursor
from siclip.errors import UserError
from siclip.training.optimizer import learning_rate

STATE = {"step", "skipped", "diverging", "micro_batch_size", "card", "seconds", "identity", "averaging"}
"""Keys that every training state has."""
LENGTH = ("steps", "schedule", "warmup_steps", "warmup_share", "cooldown_steps", "cooldown_share")
"""Fields of `TrainingConfig` that act through the learning rate of each step alone, but for `follows_length`."""


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
    check_same(*(_comparable(one, state["step"]) for one in (state["identity"], here)))
    _check_length(state["identity"], here, state["step"])
    if cursor is not None and state.get("cursor"):
        check_cursor(state["cursor"], cursor)


def _comparable(run: Mapping[str, Any], step: int) -> dict[str, Any]:
    """An identity without what may still change after ``step`` steps, and without what changes no result.

    These are the stages of the loss schedule from that step on, and the fields that `_check_length` compares.
    """
    loss = _with_defaults(dict(run.get("loss") or {}), LossConfig)
    loss["schedule"] = [stage for stage in loss.get("schedule", ()) if stage["step"] < step]
    training = _with_defaults(dict(run.get("training") or {}), TrainingConfig)
    kept = {name: value for name, value in training.items() if name not in (*LENGTH, "checkpoint_every")}
    return {**run, "loss": loss, "training": kept}


def _with_defaults(values: dict[str, Any], config: type[Config]) -> dict[str, Any]:
    """A config of an earlier version with the fields that it did not have; as it is if it is not valid."""
    try:
        return config.model_validate(values).model_dump(mode="json")
    except ValidationError:
        return values


def same_steps(one: TrainingConfig, other: TrainingConfig) -> int:
    """How many steps from the first one on have the same learning rate under both configs."""
    most = min(one.steps, other.steps)
    return next((step for step in range(most) if learning_rate(step, one) != learning_rate(step, other)), most)


def follows_length(loss: LossConfig) -> str | None:
    """The part of a loss that depends on the share of the steps that are done; None if there is none."""
    if loss.pair_matching and loss.pair_matching_warmup:
        return "loss.pair_matching_warmup"
    return "loss.negatives annealed" if loss.pair_matching and loss.negatives == "annealed" else None


def _check_length(saved: Mapping[str, Any], here: Mapping[str, Any], step: int) -> None:
    """Check that the steps that are done are those that this run would have computed.

    Raises:
        UserError: another schedule or number of steps has given one of them another learning rate or loss.
    """
    there, ours = (TrainingConfig.model_validate(run["training"]) for run in (saved, here))
    changed = [f"training.{name}" for name in LENGTH if getattr(there, name) != getattr(ours, name)]
    if not changed:
        return
    found = "; ".join(f"{name} {_value(there, name)} there, {_value(ours, name)} here" for name in changed)
    part = follows_length(LossConfig.model_validate(here["loss"]))
    if part and there.steps != ours.steps and step:
        why = f"{part} follows the share of the steps that are done"
    elif (same := same_steps(there, ours)) < step:
        why = f"the learning rates differ from step {same} on, and {step} steps are done"
    else:
        return
    raise UserError(
        f"the checkpoint is of another run: {found}: {why}. Resume it with the settings it was started with, or use "
        "it as a teacher"
    )


def _value(training: TrainingConfig, path: str) -> Any:
    return getattr(training, path.rpartition(".")[2])


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
