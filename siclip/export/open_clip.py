"""Our models in open_clip's form: a config, a state dict, and a model that open_clip's tools accept.

``open_clip.create_model`` builds MobileCLIP2-S0 from an exported folder. It can build neither the ``mct`` text tower
nor SAS-P blocks nor the nano image tower, and refuses their folders; `load_open_clip` reads all.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from open_clip import CustomTextCLIP, set_model_preprocess_cfg
from open_clip.timm_model import TimmModel
from safetensors.torch import save_file
from torch import nn

from siclip.checkpoints.formats import load_checkpoint
from siclip.checkpoints.layouts import to_open_clip
from siclip.checkpoints.open_clip_config import CONFIG_FILE, architecture, open_clip_builds
from siclip.config import ModelConfig
from siclip.data.transforms import PREPROCESSING
from siclip.errors import UserError
from siclip.export.check import Exported, largest_difference, new_output
from siclip.models.clip import Clip
from siclip.models.image_tower import ImageTower

# The file name that open_clip expects in a folder.
WEIGHTS_FILE = "open_clip_model.safetensors"


class _Visual(TimmModel):
    """open_clip's adapter for timm networks, around the network of our image tower."""

    def __init__(self, tower: ImageTower, image_size: int) -> None:
        # Not TimmModel's own initialiser, which would build a network.
        nn.Module.__init__(self)
        self.image_size = (image_size, image_size)
        self.trunk = tower.model
        self.head = nn.Sequential()
        ours = self.trunk.head.fc
        projection = nn.Linear(ours.in_features, ours.out_features, device=ours.weight.device)
        projection.weight = ours.weight
        if ours.bias is None:
            nn.init.zeros_(projection.bias)
        else:
            projection.bias = ours.bias
        self.trunk.head.fc = projection


class _OpenClip(CustomTextCLIP):
    """open_clip's two-tower model around the modules of ``model``, which it changes."""

    def __init__(self, model: Clip) -> None:
        nn.Module.__init__(self)
        self.output_dict = False
        self.visual = _Visual(model.image_encoder, model.config.image.image_size)
        self.text = model.text_encoder
        for name in ("context_length", "vocab_size"):
            for module in (self, self.text):
                setattr(module, name, getattr(model.config.text, name))
        self.logit_scale = model.logit_scale
        self.logit_bias = None
        set_model_preprocess_cfg(self, _preprocessing(model.config))


def to_open_clip_model(model: Clip) -> CustomTextCLIP:
    """A copy of ``model`` as an `open_clip.CustomTextCLIP`, in eval mode and on the same device.

    It has ``encode_image`` and ``encode_text`` (both with ``normalize=``), ``forward``, ``logit_scale``,
    ``context_length`` and ``visual.preprocess_cfg``. Names in the state dict are ``visual.trunk.*`` and ``text.*``.
    Weights that are shared stay shared.
    """
    return _OpenClip(copy.deepcopy(model)).eval()


def export_open_clip(model: Clip, folder: Path | str) -> Exported:
    """Write ``open_clip_config.json`` and ``open_clip_model.safetensors`` into a new ``folder``.

    Weights are in train form. Shared weights are written once per block, because other programs do not know sharing
    patterns. The complete model config is under ``siclip`` in the file or, so that open_clip refuses a model that it
    cannot build, in its ``model_cfg``.

    Raises:
        UserError: the folder exists, or the outputs after reading it back differ from the model's by more than 1e-4
            of the largest value. Nothing is left behind then.
    """
    folder = Path(folder)
    reference = copy.deepcopy(model).cpu().eval()
    # Clones, because safetensors refuses tensors that share memory.
    state = {name: tensor.detach().clone().contiguous() for name, tensor in to_open_clip(reference).items()}
    with new_output(folder) as temporary:
        temporary.mkdir()
        (temporary / CONFIG_FILE).write_text(json.dumps(_config(model.config), indent=2) + "\n")
        save_file(state, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        again = load_open_clip(temporary)
        difference = largest_difference(reference, again.encode_image, again.encode_text, "the open_clip export")
    return Exported((folder / CONFIG_FILE, folder / WEIGHTS_FILE), difference)


def load_open_clip(folder: Path | str) -> CustomTextCLIP:
    """Load the model that `export_open_clip` wrote, in the form of `to_open_clip_model`.

    Raises:
        UserError: there is no such folder, the config is not of a siclip model, or the weights are of another model.
    """
    file = Path(folder) / CONFIG_FILE
    try:
        content = json.loads(file.read_text())
        config = ModelConfig.model_validate((content if "siclip" in content else content["model_cfg"])["siclip"])
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): name a folder of an open_clip export") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        remedy = "only folders that siclip exported can be read, open_clip.create_model reads others"
        raise UserError(f"{file} does not describe a siclip model: {reason}; {remedy}") from None
    model = Clip(config)
    load_checkpoint(model, Path(folder) / WEIGHTS_FILE)
    return _OpenClip(model).eval()


def _config(config: ModelConfig) -> dict[str, Any]:
    ours = {"siclip": config.model_dump(mode="json")}
    content = {"model_cfg": architecture(config), "preprocess_cfg": _preprocessing(config)}
    if open_clip_builds(config):
        return content | ours
    content["model_cfg"] |= ours
    return content


def _preprocessing(config: ModelConfig) -> dict[str, Any]:
    return {"size": config.image.image_size, **PREPROCESSING, "fill_color": 0}
