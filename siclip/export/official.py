"""The official layout: the flat state dict of Apple's MobileCLIP checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors.torch import save_file

from siclip.checkpoints.formats import load_checkpoint
from siclip.checkpoints.layouts import to_official
from siclip.errors import UserError
from siclip.export.check import Exported, largest_difference, new_place
from siclip.models.clip import Clip


def export_official(model: Clip, path: Path | str) -> Exported:
    """Write the model's weights in train form under the official names, as ``.pt`` or ``.safetensors``.

    Raises:
        UserError: SAS-P blocks, which the official layout does not have; another suffix; the file exists; or,
            read back, its outputs differ from those of ``model`` by more than 1e-4 of the largest.
    """
    path = Path(path)
    if path.suffix not in (".pt", ".safetensors"):
        raise UserError(f"{path}: an official state dict is written as .pt or .safetensors, name the file so")
    reference = copy.deepcopy(model).cpu().eval()
    state = {name: tensor.detach().clone().contiguous() for name, tensor in to_official(reference).items()}
    with new_place(path) as temporary:
        if path.suffix == ".pt":
            torch.save(state, temporary)
        else:
            save_file(state, temporary)
        again = Clip(model.config).eval()
        load_checkpoint(again, temporary)
        difference = largest_difference(reference, again.encode_image, again.encode_text, "the official export")
    return Exported((path,), difference)
