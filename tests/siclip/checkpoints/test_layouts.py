from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Literal

import pytest
import safetensors.torch
import timm
import torch
from timm.models.fastvit import checkpoint_filter_fn
from torch import Tensor

import siclip
from siclip.checkpoints.layouts import detect_layout, to_official, to_open_clip, to_siclip, to_timm
from siclip.errors import UserError
from siclip.models import Clip, create_model


def fill(model: torch.nn.Module, seed: int) -> None:
    """Give every tensor different values; variances stay positive and the projection's bias zero."""
    torch.manual_seed(seed)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape) + 0.5)
        elif value.is_floating_point() and not name.endswith("head.fc.bias"):
            value.add_(torch.randn(value.shape) * 0.02)


@pytest.fixture(scope="module")
def s0() -> Clip:
    model = create_model("mobileclip-s0")
    fill(model, 0)
    return model


@pytest.fixture(scope="module")
def nano() -> Clip:
    model = create_model("mobileclip-nano", text={"vocab_size": 64})
    fill(model, 1)
    return model


def fresh(model: Clip) -> Clip:
    return Clip(model.config)


def assert_equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert set(ours) == set(theirs)
    assert not [name for name, value in ours.items() if not torch.equal(value, theirs[name])]


def official_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict of mobileclip-s0 under the official names, transcribed from the official layout."""
    network = {(0, "blocks"): 0, (1, "downsample"): 1, (1, "blocks"): 2, (2, "downsample"): 3, (2, "blocks"): 4}
    network |= {(3, "downsample"): 5, (3, "pos_emb"): 6, (3, "blocks"): 7}
    # In this order: the squeeze-and-excite layers are renamed after the convolution that contains them.
    renames = {"stem.": "patch_embed.", "conv_kxk": "rbr_conv", "conv_scale": "rbr_scale", "identity": "rbr_skip"}
    renames |= {"final_conv": "conv_exp", "large_conv": "lkb_origin", "mlp.": "convffn."}
    renames |= {"conv_exp.se.fc1": "conv_exp.se.reduce", "conv_exp.se.fc2": "conv_exp.se.expand", ".gamma": ""}
    official = {}
    for key, value in state.items():
        name = key
        if key == "image_encoder.model.head.fc.weight":
            official["image_encoder.model.head.proj"] = value.T
            continue
        if key.startswith("image_encoder.model."):
            name = key.removeprefix("image_encoder.model.")
            if name.startswith("stages."):
                _, stage, part, rest = name.split(".", 3)
                rest = {"downsample": rest, "pos_emb": rest.replace("pos_enc", "pe"), "blocks": rest}[part]
                name = f"network.{network[int(stage), part]}.{rest}"
            for ours, theirs in renames.items():
                name = name.replace(ours, theirs)
            name = f"image_encoder.model.{name}"
        official[name] = value
    return official


def test_the_official_names_of_s0(s0: Clip) -> None:
    flat = to_official(s0)
    assert len(flat) == 893
    assert_equal(flat, official_names(s0.state_dict()))
    squeezed = {key.removesuffix(".weight") for key in flat if ".se." in key and key.endswith(".weight")}
    squeeze_excites = {"network.3.proj.0.se.fc", "network.5.proj.0.se.fc"}
    names = {f"{prefix}{n}" for prefix in squeeze_excites for n in (1, 2)} | {
        "conv_exp.se.reduce",
        "conv_exp.se.expand",
    }
    assert squeezed == {f"image_encoder.model.{name}" for name in names}


@pytest.mark.parametrize("name", ["s0", "nano"])
def test_timm_reads_the_official_layout_like_we_do(name: str, request: pytest.FixtureRequest) -> None:
    model: Clip = request.getfixturevalue(name)
    flat = to_official(model)
    image = checkpoint_filter_fn(dict(flat), model.image_encoder.model)
    assert image.pop("head.fc.bias").count_nonzero() == 0
    text = {key: value for key, value in flat.items() if not key.startswith("image_encoder.")}
    state = {f"image_encoder.model.{key}": value for key, value in image.items()} | text
    assert_equal(state, model.state_dict())
    assert_equal(to_siclip(flat, model), state)


def test_the_official_flat_state_dict_loads(tmp_path: Path, s0: Clip) -> None:
    path = tmp_path / "mobileclip_s0.pt"
    torch.save(official_names(s0.state_dict()), path)
    target = create_model("mobileclip-s0")
    siclip.load_checkpoint(target, path)
    assert_equal(target.state_dict(), s0.state_dict())


def test_an_official_file_of_another_size_lists_keys(tmp_path: Path, s0: Clip) -> None:
    torch.save(to_official(s0), tmp_path / "mobileclip_s0.pt")
    with pytest.raises(UserError, match=r"unexpected: image_encoder\.model\.network\..*with another shape: "):
        siclip.load_checkpoint(create_model("mobileclip-nano"), tmp_path / "mobileclip_s0.pt")


def test_sasp_blocks_have_no_official_or_timm_layout() -> None:
    model = create_model("siclip-nano")
    with pytest.raises(UserError, match="'siclip-nano' has SAS-P blocks"):
        to_official(model)
    with pytest.raises(UserError, match="'siclip-nano' has SAS-P blocks"):
        to_timm(model)


@pytest.mark.parametrize(
    ("name", "wrapper"),
    [
        *product(("mobileclip-nano", "siclip-nano"), ("", "module.", "_orig_mod.", "_orig_mod.module.")),
        ("siclip-nano", "module._orig_mod."),
        ("mobileclip2-nano", "module."),
        ("siclip2-nano", "_orig_mod."),
    ],
)
def test_open_clips_training_checkpoints_load(tmp_path: Path, name: str, wrapper: str) -> None:
    model = create_model(name, text={"vocab_size": 64})
    fill(model, 2)
    flat = to_open_clip(model)
    assert flat["visual.trunk.head.fc.bias"].shape == (128,)
    assert {key.partition(".")[0] for key in flat} == {"visual", "text", "logit_scale"}
    optimizer = torch.optim.AdamW(model.parameters()).state_dict()
    state = {f"{wrapper}{key}": value for key, value in flat.items()}
    path = tmp_path / "epoch_1.pt"
    torch.save({"epoch": 1, "name": "run", "state_dict": state, "optimizer": optimizer}, path)
    target = fresh(model)
    siclip.load_checkpoint(target, path)
    assert_equal(target.state_dict(), model.state_dict())


@pytest.mark.parametrize("layout", ["siclip", "official", "open_clip", "timm"])
def test_safetensors_in_every_layout(tmp_path: Path, nano: Clip, layout: str) -> None:
    write = {"siclip": Clip.state_dict, "official": to_official, "open_clip": to_open_clip, "timm": to_timm}[layout]
    flat = {key: value.contiguous() for key, value in write(nano).items()}
    assert detect_layout(flat) == layout
    safetensors.torch.save_file(flat, tmp_path / "flat.safetensors")
    target = fresh(nano)
    text = {key: value.clone() for key, value in target.text_encoder.state_dict().items()}
    siclip.load_checkpoint(target, tmp_path / "flat.safetensors", part="image")
    assert_equal(target.image_encoder.state_dict(), nano.image_encoder.state_dict())
    assert_equal(target.text_encoder.state_dict(), text)
    if layout == "timm":
        with pytest.raises(UserError, match="only the image tower: load it with part='image'"):
            siclip.load_checkpoint(target, tmp_path / "flat.safetensors")
        with pytest.raises(UserError, match="contains no text tower"):
            siclip.load_checkpoint(target, tmp_path / "flat.safetensors", part="text")
    else:
        siclip.load_checkpoint(target, tmp_path / "flat.safetensors")
        assert_equal(target.state_dict(), nano.state_dict())


@pytest.mark.slow
def test_timms_own_network_gives_the_image_tower(tmp_path: Path, s0: Clip) -> None:
    theirs = timm.create_model("fastvit_mci0", num_classes=512).eval()
    fill(theirs, 3)
    torch.save(theirs.state_dict(), tmp_path / "fastvit_mci0.pt")
    ours = fresh(s0).eval()
    siclip.load_checkpoint(ours, tmp_path / "fastvit_mci0.pt", part="image")
    images = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_image(images), theirs(images))
    theirs.load_state_dict(to_timm(s0), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(s0.eval().encode_image(images), theirs(images))


@pytest.mark.parametrize("prefix", ["", "visual.trunk."])
def test_a_projection_with_a_bias_is_refused(tmp_path: Path, nano: Clip, prefix: str) -> None:
    flat = to_open_clip(nano) if prefix else to_timm(nano)
    flat[f"{prefix}head.fc.bias"][3] = 0.1
    torch.save(flat, tmp_path / "biased.pt")
    with pytest.raises(UserError, match=rf"biased\.pt: {prefix}head\.fc\.bias is not zero"):
        siclip.load_checkpoint(fresh(nano), tmp_path / "biased.pt", part="image")


@pytest.mark.parametrize("layout", ["open_clip", "official", "timm"])
def test_a_projection_with_a_bias_is_read_into_mobileclip2(tmp_path: Path, layout: str) -> None:
    """Official files have no bias, which is a bias of zero; timm's have no text tower."""
    model = create_model("mobileclip2-nano", text={"vocab_size": 64, "layers": 2})
    fill(model, 5)
    bias = model.image_encoder.model.head.fc.bias
    assert bias is not None
    if layout != "official":
        torch.nn.init.uniform_(bias)
    flat = {"open_clip": to_open_clip, "official": to_official, "timm": to_timm}[layout](model)
    assert ("head.fc.bias" in "".join(flat)) == (layout != "official")
    torch.save(flat, tmp_path / "flat.pt")
    target = fresh(model)
    torch.nn.init.ones_(target.image_encoder.model.head.fc.bias)
    part: Literal["all", "image"] = "image" if layout == "timm" else "all"
    siclip.load_checkpoint(target, tmp_path / "flat.pt", part=part)
    ours, theirs = (target, model) if part == "all" else (target.image_encoder, model.image_encoder)
    assert_equal(ours.state_dict(), theirs.state_dict())


def test_a_bias_has_no_official_layout() -> None:
    model = create_model("mobileclip2-nano", text={"layers": 1})
    torch.nn.init.ones_(model.image_encoder.model.head.fc.bias)
    with pytest.raises(UserError, match="bias other than zero, which the official MobileCLIP layout does not have"):
        to_official(model)


def test_an_unknown_layout_is_refused_with_some_keys() -> None:
    with pytest.raises(UserError, match=r"it contains conv1\.weight, bn1\.weight, fc\.weight, …"):
        detect_layout(["conv1.weight", "bn1.weight", "fc.weight", "fc.bias"])
    with pytest.raises(UserError, match="it contains nothing"):
        detect_layout([])
