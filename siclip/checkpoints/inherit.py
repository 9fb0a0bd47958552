"""Weight inheritance (WIKD, arXiv 2411.14789): copy the teacher's weights wherever the structure is the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple, get_args

import torch
from torch import nn

from siclip.checkpoints.inheritance_report import Action, InheritanceReport, ReportEntry
from siclip.config import FreezePolicy, ModelConfig
from siclip.errors import UserError
from siclip.models.clip import Clip
from siclip.models.registry import base_of, student_of
from siclip.models.sharing import parse_pattern

# The two linear layers of a text block's FFN: their names in a SAS-P block → in the teacher's pre-LN block.
_TEXT_FFN = {"mlp.0.": "pre_norm_ffn.1.", "mlp.2.": "pre_norm_ffn.4."}
_FRESH = {
    "qk": "queries and keys are initialised so that attention starts as the identity",
    "norm": "the block's single norm is initialised",
    "value": "starts as the identity",
    "projection": "starts as the identity",
}


_POSITIONS = "text_encoder.positional_embedding.pos_embed.pos_embed"


def inherit(student: Clip, teacher: Clip, freeze: FreezePolicy = "inherited") -> InheritanceReport:
    """Copy the teacher's weights and BatchNorm statistics into the student in place, and freeze them by a policy.

    The FFNs of SAS-P blocks are initialised from the teacher's and always train; an FFN that several blocks share
    gets the weights of the first block's teacher. A student with a shorter context gets the first of the teacher's
    positions; they are truncated, not interpolated.

    Args:
        student, teacher: in train form.
        freeze: see `freeze_inherited`.

    Returns:
        What was copied, started, left and fresh, by module and parameter count.

    Raises:
        UserError: no such policy; one of the models is reparameterized; the teacher has another structure outside
            the SAS-P blocks; or freezing would leave nothing to train. Both models are then unchanged.
    """
    _check_policy(freeze)
    for model in (student, teacher):
        if model.is_reparameterized:
            raise UserError(f"a reparameterized {model.config.name!r} has no weights to inherit: use its train form")
    if freeze == "inherited" and "sasp" not in (student.config.image.block, student.config.text.block):
        raise UserError(
            f"inheriting from {teacher.config.name!r} freezes all of {student.config.name!r}, so there is nothing to "
            "train; use a siclip model, or model.freeze 'before_sasp' or 'none'"
        )
    _check_text_towers(student.config, teacher.config)
    # Every check comes before the first copy, so that an error leaves both models unchanged.
    plan = list(_plan(student, teacher))
    left = list(_left(student, teacher, {step.origin for step in plan}))
    _refuse_another_model(student, teacher, plan, left)
    source = teacher.state_dict()
    with torch.no_grad():
        for step in plan:
            if step.origin:
                values = source[step.origin]
                step.target.copy_(values[:, :, : step.target.shape[2]] if step.name == _POSITIONS else values)
    frozen = freeze_inherited(student, freeze)
    entries = [
        ReportEntry(
            name=step.name,
            module=_module(step.name, student.config),
            action=step.action,
            parameters=step.target.numel() if isinstance(step.target, nn.Parameter) else 0,
            trains=step.target.requires_grad,
            reason=step.reason,
        )
        for step in plan
    ]
    return InheritanceReport((*entries, *left), frozen)


def freeze_inherited(model: Clip, policy: FreezePolicy) -> tuple[str, ...]:
    """Freeze what a model inherits from its base teacher. Only the structure decides; no teacher is needed.

    - ``inherited``: everything outside the SAS-P blocks, except the logit scale.
    - ``before_sasp``: both trunks, so that training starts at the first SAS-P block (attention block in a tower
      without SAS-P).
    - ``none``: nothing.

    A frozen BatchNorm stays in eval mode, also after ``train()``. Parameters that an earlier policy froze and this
    one does not train again.

    Returns:
        The names of the frozen parameters.

    Raises:
        UserError: no such policy.
    """
    _check_policy(policy)
    towers = (model.image_encoder, model.text_encoder)
    trunk = {id(p) for tower in towers for module in tower.trunk_modules() for p in module.parameters()}
    frozen = []
    for name, parameter in model.named_parameters():
        outside = not _in_sasp(name, model.config)
        inherited = outside and name != "logit_scale"
        if {"inherited": inherited, "before_sasp": id(parameter) in trunk, "none": False}[policy]:
            parameter.requires_grad_(False)
            frozen.append(name)
        # Inside the blocks only gains can be fixed (trainable_gains), and they must stay so.
        elif outside:
            parameter.requires_grad_(True)
    # Applies eval mode to the BatchNorms that are frozen now.
    model.train(model.training)
    return tuple(frozen)


def _check_policy(policy: str) -> None:
    if policy not in get_args(FreezePolicy):
        raise UserError(f"freeze {policy!r} is not a policy: choose one of {', '.join(get_args(FreezePolicy))}")


@dataclass(frozen=True)
class _Step:
    """A tensor of the student and its source: ``origin`` is the teacher's name for it, None if it is fresh."""

    name: str
    target: torch.Tensor
    action: Action
    origin: str | None
    reason: str


def _plan(student: Clip, teacher: Clip) -> Iterator[_Step]:
    source = teacher.state_dict()
    for name, target in chain(student.named_parameters(), student.named_buffers()):
        in_sasp = _in_sasp(name, student.config)
        origin = _ffn_origin(name, teacher.config) if in_sasp else name
        if origin is None:
            part = _block_tensor(name, student.config).part  # type: ignore[union-attr]
            yield _Step(name, target, "fresh", None, _FRESH.get(part.partition(".")[0], "SAS-P's own gains"))
        elif origin not in source:
            yield _Step(name, target, "fresh", None, "not in the teacher")
        elif name == _POSITIONS and _is_shorter(target, source[origin]):
            yield _Step(name, target, "copied", origin, f"the first {target.shape[2]} of the teacher's positions")
        elif source[origin].shape != target.shape:
            shapes = f"{tuple(source[origin].shape)} in the teacher, {tuple(target.shape)} here"
            yield _Step(name, target, "fresh", None, shapes)
        elif in_sasp:
            yield _Step(name, target, "started", origin, "the FFN starts from the teacher's")
        else:
            yield _Step(name, target, "copied", origin, "the same in the teacher")


def _is_shorter(positions: torch.Tensor, other: torch.Tensor) -> bool:
    return positions.shape[-1] == other.shape[-1] and positions.shape[2] < other.shape[2]


def _left(student: Clip, teacher: Clip, used: set[str | None]) -> Iterator[ReportEntry]:
    for name, parameter in teacher.named_parameters():
        if name not in used:
            reason = _why_left(name, student.config, teacher.config)
            module = _module(name, teacher.config)
            yield ReportEntry(name, module, "left", parameter.numel(), parameter.requires_grad, reason)


def _why_left(name: str, student: ModelConfig, teacher: ModelConfig) -> str:
    tensor = _block_tensor(name, teacher)
    if tensor is None or getattr(student, tensor.tower).block != "sasp":
        return "not in the student"
    options, depth = getattr(student, tensor.tower).sasp, _depth(student, tensor.tower)
    if tensor.block >= depth:
        return f"the student has {depth} blocks"
    if tensor.part.startswith(("mlp.", *_TEXT_FFN.values())):
        pattern = parse_pattern(getattr(student, tensor.tower).sharing, depth)
        if pattern.part in ("mlp", "block") and pattern.owner(tensor.block) != tensor.block:
            return f"block {tensor.block} shares block {pattern.owner(tensor.block)}'s"
        plain = tensor.part.startswith("mlp.conv.") and student.image.sasp.ffn == "plain"
        return "a plain FFN has no depthwise convolution" if plain else "of another shape in the student"
    if getattr(teacher, tensor.tower).block == "sasp":
        return "only the FFN of a SAS-P block is inherited"
    attention = "queries and keys are initialised, SAS-P has no values", "SAS-P has no output projection"
    if options.first_value and tensor.block == 0:
        attention = "queries, keys and values are initialised", "the output projection starts as the identity"
    reasons = {
        "qkv": attention[0],
        "proj": attention[1],
        "layer_scale": "SAS-P has gains instead of layer scales",
        "norm": "a SAS-P block's single norm is initialised",
    }
    return next(reason for word, reason in reasons.items() if word in tensor.part)


def _check_text_towers(student: ModelConfig, teacher: ModelConfig) -> None:
    if student.text.has_mixers == teacher.text.has_mixers:
        return
    ours, theirs = (
        f"{config.text.layers} blocks {'between RepMixers' if config.text.has_mixers else 'without RepMixers'}"
        for config in (student, teacher)
    )
    raise UserError(
        f"{student.name!r} cannot inherit from a checkpoint of {teacher.name!r}: its text tower has {ours}, the "
        f"teacher's {theirs}; name a checkpoint of {base_of(student.name)}, or train {student_of(teacher.name)}"
    )


def _refuse_another_model(student: Clip, teacher: Clip, plan: list[_Step], left: list[ReportEntry]) -> None:
    ours = [(s.name, s.reason) for s in plan if s.action == "fresh" and not _in_sasp(s.name, student.config)]
    named = {name for name, _ in ours}
    theirs = [(e.name, e.reason) for e in left if e.reason == "not in the student" and e.name not in named]
    misfits = ours + theirs
    if misfits:
        more = f", … ({len(misfits)} in total)" if len(misfits) > 3 else ""
        some = ", ".join(f"{name} ({why})" for name, why in misfits[:3])
        raise UserError(
            f"{student.config.name!r} cannot inherit from a checkpoint of {teacher.config.name!r}, which has a "
            f"different structure: {some}{more}; name a checkpoint of the student's base model"
        )


class _BlockTensor(NamedTuple):
    """A tensor inside the attention or SAS-P blocks of a tower: the block's index, and the name within the block."""

    tower: Literal["image", "text"]
    block: int
    part: str


def _block_tensor(name: str, config: ModelConfig) -> _BlockTensor | None:
    stage = len(config.image.layers) - 1
    if found := re.fullmatch(rf"image_encoder\.model\.stages\.{stage}\.blocks\.(\d+)\.(.+)", name):
        return _BlockTensor("image", int(found[1]), found[2])
    found = re.fullmatch(r"text_encoder\.transformer\.(\d+)\.(.+)", name)
    # With RepMixers they are the first and the last entry of the text tower's list.
    block = int(found[1]) - config.text.has_mixers if found else -1
    if found and 0 <= block < config.text.layers:
        return _BlockTensor("text", block, found[2])
    return None


def _in_sasp(name: str, config: ModelConfig) -> bool:
    tensor = _block_tensor(name, config)
    return tensor is not None and getattr(config, tensor.tower).block == "sasp"


def _depth(config: ModelConfig, tower: Literal["image", "text"]) -> int:
    return config.image.layers[-1] if tower == "image" else config.text.layers


def _ffn_origin(name: str, teacher: ModelConfig) -> str | None:
    """The teacher's name for a tensor of a SAS-P block's FFN; None outside the FFN."""
    if ".mlp." not in name:
        return None
    if name.startswith("text_encoder.") and teacher.text.block == "attention":
        for ours, theirs in _TEXT_FFN.items():
            name = name.replace(f".{ours}", f".{theirs}")
    return name


def _module(name: str, config: ModelConfig) -> str:
    """The module that a report names for a tensor: a stage, a layer, or a part of an attention or SAS-P block."""
    tensor = _block_tensor(name, config)
    if tensor is not None:
        part, dot, _ = tensor.part.partition(".")
        return name.removesuffix(tensor.part) + part if dot else name.removesuffix(f".{tensor.part}")
    parts = name.split(".")
    if parts[2:3] == ["stages"]:
        return ".".join(parts[: 5 if int(parts[3]) == len(config.image.layers) - 1 else 4])
    return ".".join(parts[: 3 if parts[0] == "image_encoder" or parts[1:2] == ["transformer"] else 2])
