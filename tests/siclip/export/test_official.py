from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import siclip
from siclip.errors import UserError
from siclip.export import export_official
from siclip.models import Clip, create_model


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_file_contains_the_model_under_the_official_names(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    model = create_model("mobileclip-nano")
    exported = export_official(model, tmp_path / f"model{suffix}")
    assert exported.files == (tmp_path / f"model{suffix}",) and exported.largest_difference == 0
    path = exported.files[0]
    state = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)
    assert torch.equal(state["image_encoder.model.head.proj"], model.image_encoder.model.head.fc.weight.T)
    assert torch.equal(state["text_encoder.projection_layer"], model.text_encoder.projection_layer)
    assert "image_encoder.model.patch_embed.0.rbr_conv.0.conv.weight" in state
    assert sum(tensor.nbytes for tensor in state.values()) < path.stat().st_size
    again = create_model("mobileclip-nano")
    siclip.load_checkpoint(again, path)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
def test_mobileclip_s0_has_the_893_official_keys(tmp_path: Path) -> None:
    path = tmp_path / "mobileclip_s0.pt"
    assert export_official(create_model("mobileclip-s0"), path).largest_difference == 0
    state = torch.load(path, weights_only=True)
    assert len(state) == 893
    parameters = sum(t.numel() for k, t in state.items() if "running_" not in k and "num_batches" not in k)
    assert parameters == 53_847_681


def test_sas_p_blocks_have_no_official_layout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'siclip-nano' has SAS-P blocks"):
        export_official(create_model("siclip-nano"), tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


def test_another_suffix_or_an_existing_file_is_refused(tmp_path: Path) -> None:
    model = create_model("mobileclip-nano")
    with pytest.raises(UserError, match=r"\.pt or \.safetensors"):
        export_official(model, tmp_path / "model.bin")
    (tmp_path / "model.pt").write_text("mine")
    with pytest.raises(UserError, match="is not overwritten"):
        export_official(model, tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_text() == "mine"


def test_a_file_that_reads_back_differently_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lossy(model: Clip) -> dict[str, torch.Tensor]:
        return {name: t.half().float() if t.is_floating_point() else t for name, t in right(model).items()}

    from siclip.export import official

    right = official.to_official
    monkeypatch.setattr(official, "to_official", lossy)
    with pytest.raises(UserError, match="the official export is refused, nothing was written"):
        export_official(create_model("mobileclip-nano"), tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())
