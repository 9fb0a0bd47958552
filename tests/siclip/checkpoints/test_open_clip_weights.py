"""MobileCLIP2-S0's weights by tag and by file: open_clip's own outputs, with the preprocessing of their card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch
from torch.nn import functional as F

import siclip
from siclip.checkpoints.layouts import to_open_clip
from siclip.checkpoints.open_clip_weights import OpenClipWeights
from siclip.errors import UserError
from siclip.models import create_model

TAG = "open_clip:MobileCLIP2-S0:dfndr2b"
CARD = {"size": 256, "mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear", "resize_mode": "shortest"}
TEXTS = ["a cat", "two brown dogs that run along a beach at sunset, seen from far away", "red " * 90, ""]


def their_model() -> Any:
    """open_clip's MobileCLIP2-S0 in which every tensor is far from its initial value, the projection's bias too."""
    torch.manual_seed(0)
    theirs = open_clip.create_model("MobileCLIP2-S0", pretrained=None).eval()
    for name, value in theirs.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("gamma"):
            value.uniform_(0.1, 0.3)
        elif value.is_floating_point():
            value.add_(torch.randn(value.shape) * 0.02)
    return theirs


@pytest.mark.slow
@torch.no_grad()
def test_a_tag_gives_open_clips_own_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that the tag would download is written here. siclip-s0's image tower does not take the bias."""
    theirs = their_model()
    file = tmp_path / "open_clip_model.safetensors"
    safetensors.torch.save_model(theirs, file)
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(open_clip, "download_pretrained", lambda config: asked.append(config) or str(file))
    ours = OpenClipWeights.of(TAG).load().eval()
    assert [config["hf_hub"] for config in asked] == ["timm/MobileCLIP2-S0-OpenCLIP/"]
    images, tokens = torch.rand(2, 3, 256, 256), open_clip.get_tokenizer("MobileCLIP2-S0")(TEXTS)
    assert torch.equal(siclip.tokenize(TEXTS), tokens)
    expected = theirs.encode_image(images), theirs.encode_text(tokens)
    for found, reference in zip((ours.encode_image(images), ours.encode_text(tokens)), expected, strict=True):
        assert (found - reference).abs().max() <= 1e-5 * reference.abs().max()
        torch.testing.assert_close(F.normalize(found), F.normalize(reference), atol=1e-5, rtol=0)
    deployable = ours.reparameterize().encode_image(images)
    assert (deployable - expected[0]).abs().max() <= 1e-4 * expected[0].abs().max()
    flat = to_open_clip(ours)
    theirs.load_state_dict(flat, strict=True)
    s0 = create_model("mobileclip-s0")
    with pytest.raises(UserError, match=r"head\.fc\.bias is not zero: .* 'mobileclip-s0' has no bias"):
        siclip.load_checkpoint(s0, file)
    flat["visual.trunk.head.fc.bias"].zero_()
    torch.save(flat, tmp_path / "zero.pt")
    with pytest.raises(UserError, match=r"\d+ missing: text_encoder.*unexpected: text_encoder\.ln_final\.bias, "):
        siclip.load_checkpoint(s0, tmp_path / "zero.pt")


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("open_clip:MobileCLIP2-S0", "write open_clip:NAME:TAG"),
        ("open_clip:MobileCLIP2-S0:dfn", "'dfn' is neither a file nor a tag of this model: dfndr2b"),
        ("open_clip:ViT-B-16:openai", "no model here has the structure of open_clip's 'ViT-B-16'"),
    ],
)
def test_a_name_that_leads_to_no_weights_is_refused(named: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        OpenClipWeights.of(named)


def test_another_architecture_of_the_same_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = open_clip.get_model_config("MobileCLIP2-S0")
    monkeypatch.setattr(
        open_clip, "get_model_config", lambda name: config | {"text_cfg": config["text_cfg"] | {"heads": 4}}
    )
    with pytest.raises(UserError, match="has another MobileCLIP2-S0"):
        OpenClipWeights.of(TAG)


def test_a_tags_preprocessing_is_read_before_its_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(config: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "download_pretrained", download)
    with pytest.raises(UserError, match=r"cannot be downloaded: no network; .* open_clip:MobileCLIP2-S0:FILE"):
        OpenClipWeights.of(TAG).load()
    normalised = open_clip.get_pretrained_cfg("MobileCLIP2-S0", "dfndr2b") | {"mean": (0.48, 0.46, 0.41)}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: normalised)
    with pytest.raises(UserError, match=r"config of MobileCLIP2-S0:dfndr2b: .* mean \[0\.48, 0\.46, 0\.41\] instead"):
        OpenClipWeights.of(TAG).load()


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"preprocess_cfg": CARD}, None),
        ({"preprocess_cfg": CARD | {"interpolation": "bicubic"}}, "interpolation 'bicubic' instead of 'bilinear'"),
        ({"preprocess_cfg": CARD | {"resize_mode": "squash"}}, "resize_mode 'squash' instead of 'shortest'"),
        ({"preprocess_cfg": CARD | {"std": [0.5] * 3}}, r"std \[0\.5, 0\.5, 0\.5\] instead of"),
        # open_clip would then use its defaults, those of OpenAI's CLIP.
        ({"preprocess_cfg": None}, r"mean \[0\.48145466"),
        ([], "mean"),
    ],
)
def test_the_card_beside_a_file_decides_its_preprocessing(tmp_path: Path, card: Any, message: str | None) -> None:
    model = create_model("mobileclip2-nano", text={"layers": 1, "vocab_size": 64})
    file = tmp_path / "open_clip_model.safetensors"
    safetensors.torch.save_file({k: v.contiguous() for k, v in to_open_clip(model).items()}, file)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(card))
    if message is None:
        siclip.load_checkpoint(model, file)
        return
    with pytest.raises(UserError, match=rf"open_clip_model\.safetensors: \S+open_clip_config\.json: .*{message}"):
        siclip.load_checkpoint(model, file)


def test_where_the_preprocessing_is_written_is_said(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.touch()
    assert OpenClipWeights.of(TAG).card == "open_clip's config of MobileCLIP2-S0:dfndr2b"
    assert OpenClipWeights.of(f"open_clip:MobileCLIP2-S0:{file}").card.startswith("assumed, as no open_clip_config")
    (tmp_path / "open_clip_config.json").touch()
    assert OpenClipWeights.of(f"open_clip:MobileCLIP2-S0:{file}").card == str(tmp_path / "open_clip_config.json")
