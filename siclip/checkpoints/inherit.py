"""Weight inheritance (arXiv 2411.14789, WIKD): take the teacher's weights wherever the structure is the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from siclip.errors import UserError
from siclip.models.clip import Clip, count_parameters

# The FFN of a text block: its two linears in the teacher's pre-LN block and in a SAS-P block.
_TEXT_FFN = {"mlp.0.": "pre_norm_ffn.1.", "mlp.2.": "pre_norm_ffn.4."}


@dataclass(frozen=True)
class InheritanceReport:
    """Names of state entries by what became of them.

    ``copied``: the same place in the teacher. ``started``: the FFN of a SAS-P block, started from the teacher's
    block and trained. ``fresh``: what the teacher does not have, with the reason. Counts are of parameters.
    """

    copied: tuple[str, ...]
    started: tuple[str, ...]
    fresh: dict[str, str]
    frozen_parameters: int
    trainable_parameters: int

    def __str__(self) -> str:
        return (
            f"inherited {len(self.copied)} tensors, started {len(self.started)} from the teacher's FFN, "
            f"{len(self.fresh)} fresh; {self.trainable_parameters:,} parameters to train, "
            f"{self.frozen_parameters:,} frozen"
        )


def inherit(student: Clip, teacher: Clip, freeze: bool = True) -> InheritanceReport:
    """Copy the teacher's weights and BatchNorm statistics into the student, in place.

    With ``freeze`` what was copied no longer trains, except the logit scale; the FFNs of SAS-P blocks start
    from the teacher's and always train.

    Where SAS-P blocks share an FFN, the first of them gives it its teacher's.

    Raises:
        UserError: the teacher is another model: a parameter outside the SAS-P blocks does not fit; or freezing
            would leave nothing to train.
    """
    source = teacher.state_dict()
    state = student.state_dict()
    copied: list[str] = []
    started: list[str] = []
    fresh: dict[str, str] = {}
    filled: set[int] = set()
    for name, target in state.items():
        in_block = _is_sasp(name, student)
        origin = _origin(name) if in_block else name
        if origin is None or origin not in source:
            fresh[name] = "not in the teacher"
        elif source[origin].shape != target.shape:
            fresh[name] = f"{tuple(source[origin].shape)} in the teacher, {tuple(target.shape)} here"
        elif target.data_ptr() not in filled:
            filled.add(target.data_ptr())
            with torch.no_grad():
                target.copy_(source[origin])
            (started if in_block else copied).append(name)
    _refuse_another_model(student, teacher, fresh)
    if freeze:
        _freeze(student, set(copied) - {"logit_scale"})
    trainable = count_parameters(student, trainable=True)
    if freeze and trainable <= 1:
        raise UserError(
            f"inheriting from {teacher.config.name!r} freezes all of {student.config.name!r}: "
            "nothing is left to train; take a siclip model or model.freeze=false"
        )
    return InheritanceReport(tuple(copied), tuple(started), fresh, count_parameters(student) - trainable, trainable)


def _refuse_another_model(student: Clip, teacher: Clip, fresh: dict[str, str]) -> None:
    misfits = [
        f"{name} ({why})"
        for name, why in fresh.items()
        if not _is_sasp(name, student) and not name.endswith("num_batches_tracked")
    ]
    if misfits:
        more = f", … ({len(misfits)} in all)" if len(misfits) > 3 else ""
        raise UserError(
            f"{student.config.name!r} cannot inherit from a checkpoint of {teacher.config.name!r}, which has another "
            f"structure: {', '.join(misfits[:3])}{more}; name a checkpoint of its own base model"
        )


def _freeze(model: Clip, names: set[str]) -> None:
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(False)
    model.train(model.training)


def _is_sasp(name: str, model: Clip) -> bool:
    stage = f"image_encoder.model.stages.{len(model.config.image.layers) - 1}.blocks."
    if name.startswith(stage):
        return model.config.image.block == "sasp"
    layer = name.removeprefix("text_encoder.transformer.").partition(".")[0]
    inner = layer.isdigit() and 0 < int(layer) <= model.config.text.layers
    return inner and model.config.text.block == "sasp"


def _origin(name: str) -> str | None:
    """The teacher's name of a tensor inside a SAS-P block, None if a teacher's block has none."""
    if ".mlp." not in name:
        return None
    if name.startswith("image_encoder."):
        return name
    for ours, theirs in _TEXT_FFN.items():
        if f".{ours}" in name:
            return name.replace(f".{ours}", f".{theirs}")
    return None
