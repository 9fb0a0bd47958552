"""A nano model behind open_clip's tag of MobileCLIP2-S0, so that no test downloads or builds the whole model."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from siclip.checkpoints.layouts import to_open_clip
from siclip.models import Clip, create_model
from siclip.open_clip_models import OURS

TAG = "open_clip:MobileCLIP2-S0:dfndr2b"


def nano_behind_the_tag(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Clip:
    """A mobileclip2-nano, whose file is what `TAG` downloads until the test ends."""
    torch.manual_seed(7)
    model = create_model("mobileclip2-nano").eval()
    torch.nn.init.normal_(model.image_encoder.model.head.fc.bias)
    file = folder / "open_clip_model.safetensors"
    save_file({name: value.contiguous() for name, value in to_open_clip(model).items()}, file)
    whole = open_clip.get_model_config("MobileCLIP2-S0")
    monkeypatch.setitem(OURS, "MobileCLIP2-S0", "mobileclip2-nano")
    monkeypatch.setattr("siclip.checkpoints.open_clip_weights.architecture", lambda config: whole)
    monkeypatch.setattr(open_clip, "download_pretrained", lambda config: str(file))
    return model
