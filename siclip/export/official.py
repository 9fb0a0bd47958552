"""The official layout: the flat state dict of Apple's MobileCLIP checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors.torch import save_file

from siclip.checkpoints.formats import load_checkpoint
from siclip.checkpoints.layouts import to_official
from siclip.errors import UserError
from siclip.export.check import Exported, largest_difference, new_output
from siclip.models.clip import Clip


def check_suffix(path: Path) -> None:
    """Check that the name of a state dict tells its format.

    Raises:
        UserError: the suffix is neither ``.pt`` nor ``.safetensors``.
    """
    if path.suffix not in (".pt", ".safetensors"):
        raise UserError(f"{path}: an official state dict is a .pt or .safetensors file, choose one of these suffixes")


def export_official(model: Clip, path: Path | str) -> Exported:
    """Write the model's weights in train form under the official names, as ``.pt`` or ``.safetensors``.

    Raises:
        UserError: the model has SAS-P blocks, which the official layout does not have; the suffix is another one; the
            file exists; or the outputs after reading it back differ from the model's by more than 1e-4 of the largest
            value.
    """
    path = Path(path)
    check_suffix(path)
    reference = copy.deepcopy(model).cpu().eval()
    state = {name: tensor.detach().clone().contiguous() for name, tensor in to_official(reference).items()}
    with new_output(path) as temporary:
        if path.suffix == ".pt":
            torch.save(state, temporary)
        else:
            save_file(state, temporary)
        again = Clip(model.config).eval()
        load_checkpoint(again, temporary)
        difference = largest_difference(reference, again.encode_image, again.encode_text, "the official export")
    return Exported((path,), difference)
