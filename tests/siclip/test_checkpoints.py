from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

import siclip
from siclip.checkpoints.formats import load_checkpoint, load_model, read_checkpoint, save_checkpoint
from siclip.errors import UserError
from siclip.models import create_model


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch bombed",)


def test_a_saved_model_is_rebuilt_with_its_weights_and_sharing(tmp_path: Path) -> None:
    model = create_model("siclip-nano", image_sharing="block:0-0", text_sharing="mlp:0-0-0-1")
    save_checkpoint(tmp_path / "model.pt", model)
    again = siclip.load_model(tmp_path / "model.pt")
    assert again.config == model.config
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    assert again.image_encoder.blocks[0] is again.image_encoder.blocks[1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        (b"", "cut short"),
        (b"half a zip PK\x03\x04", "refused|cut short"),
        (pickle.dumps(Bomb()), "would run code"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "bad.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    assert not Path("bombed").exists()


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save_checkpoint(path, create_model("siclip-nano"))
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(UserError, match="cut short"):
        load_model(path)


def test_a_checkpoint_of_another_model_lists_its_keys(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "teacher.pt", create_model("mobileclip-nano"))
    with pytest.raises(UserError, match=r"not a checkpoint of 'siclip-nano': \d+ missing: .*alpha.*unexpected"):
        load_checkpoint(create_model("siclip-nano"), tmp_path / "teacher.pt")


def official_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our state dict of mobileclip-s0 under the official names, written down from the official layout."""
    network = {(0, "blocks"): 0, (1, "downsample"): 1, (1, "blocks"): 2, (2, "downsample"): 3, (2, "blocks"): 4}
    network |= {(3, "downsample"): 5, (3, "pos_emb"): 6, (3, "blocks"): 7}
    renames = [
        ("stem.", "patch_embed."), ("conv_kxk", "rbr_conv"), ("conv_scale", "rbr_scale"), ("identity", "rbr_skip"),
        ("final_conv", "conv_exp"), ("large_conv", "lkb_origin"), ("mlp.", "convffn."), ("se.fc1", "se.reduce"),
        ("se.fc2", "se.expand"), (".gamma", ""),
    ]  # fmt: skip
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
            for ours, theirs in renames:
                name = name.replace(ours, theirs)
            name = f"image_encoder.model.{name}"
        official[name] = value
    return official


def test_the_official_flat_state_dict_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = create_model("mobileclip-s0")
    flat = official_names(source.state_dict())
    assert len(flat) == 893
    torch.save(flat, tmp_path / "mobileclip_s0.pt")
    target = create_model("mobileclip-s0")
    load_checkpoint(target, tmp_path / "mobileclip_s0.pt")
    images, tokens = torch.rand(1, 3, 256, 256), torch.randint(1, 400, (1, 77))
    with torch.no_grad():
        for ours, theirs in zip(source.eval()(images, tokens), target.eval()(images, tokens), strict=True):
            assert torch.equal(ours, theirs)
