from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import siclip
from siclip.config import ModelConfig
from siclip.errors import UserError
from siclip.export import export_onnx
from siclip.models import Clip, create_model

GAINS = {"alpha", "beta", "gamma", "beta_sa", "beta_ff", "layer_scale"}


def trained_like(name: str, **config: Any) -> Clip:
    """A model whose BatchNorms, gains, layer scales and queries are far from their initial values."""
    torch.manual_seed(0)
    model = create_model(name, **config)
    for key, value in model.state_dict().items():
        leaf = key.rsplit(".", 1)[-1]
        if leaf == "running_mean":
            value.normal_(0, 0.3)
        elif leaf == "running_var":
            value.uniform_(0.5, 2)
        elif leaf in GAINS:
            value.uniform_(0.3, 1.2)
        elif key.endswith("qk.query.weight"):
            value.normal_(0, 0.3)
    return model


def inputs(model: Clip, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    size, length = model.config.image.image_size, model.config.text.context_length
    tokens = torch.randint(1, 49405, (batch, length))
    tokens[:, length // 2] = 49407
    tokens[:, length // 2 + 1 :] = 0
    return torch.rand(batch, 3, size, size), tokens


def run(path: Path, values: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    (outputs,) = session.run(None, {given.name: values.numpy()})
    assert isinstance(outputs, np.ndarray)
    return outputs


def check_onnx(folder: Path, model: Clip) -> None:
    exported = export_onnx(model, folder)
    assert exported.files == (folder / "image.onnx", folder / "text.onnx")
    assert 0 <= exported.largest_difference <= 1e-4
    model.eval()
    torch.manual_seed(1)
    for batch in (1, 7):
        images, tokens = inputs(model, batch)
        with torch.no_grad():
            expected = model.encode_image(images).numpy(), model.encode_text(tokens).numpy()
        for path, values, embeddings in zip(exported.files, (images, tokens), expected, strict=True):
            found = run(path, values)
            assert found.shape == (batch, model.config.embed_dim) and found.dtype == np.float32
            np.testing.assert_allclose(found, embeddings, rtol=0, atol=1e-4 * np.abs(embeddings).max())


SHARED = {"image_sharing": "block:0-0", "text_sharing": "block:0-0-0-0"}
SMALL = {"image": {"layers": (1, 1, 1), "sharing": "none"}, "text": {"layers": 1, "sharing": "none"}}


@pytest.mark.slow
def test_siclip_nano_runs_in_onnxruntime_at_any_batch_size_and_its_files_are_self_describing(tmp_path: Path) -> None:
    """Also, shared weights are stored once."""
    model = trained_like("siclip-nano", **SHARED).train()
    check_onnx(tmp_path / "onnx", model)
    for path, tower, bare in (
        (tmp_path / "onnx" / "image.onnx", model.reparameterize().image_encoder, (3, 64, 64)),
        (tmp_path / "onnx" / "text.onnx", model.reparameterize().text_encoder, (20,)),
    ):
        weights = 4 * sum({t.untyped_storage().data_ptr(): t.numel() for t in tower.state_dict().values()}.values())
        assert weights < path.stat().st_size + 4096 and path.stat().st_size < weights + 100_000
        proto = onnx.load(path)
        onnx.checker.check_model(proto, full_check=True)
        metadata = {entry.key: entry.value for entry in proto.metadata_props}
        assert ModelConfig.model_validate_json(metadata["siclip.config"]) == model.config
        assert json.loads(metadata["siclip.tokenizer"])["context_length"] == 20
        start, *_, end = siclip.tokenize("a", 3)[0].tolist()
        assert [json.loads(metadata["siclip.tokenizer"])[key] for key in ("start", "end")] == [start, end]
        assert float(metadata["siclip.logit_scale"]) == pytest.approx(1 / 0.07)
        shape = proto.graph.input[0].type.tensor_type.shape.dim
        assert shape[0].dim_param == "batch" and tuple(d.dim_value for d in shape[1:]) == bare
        assert str(Path(__file__).parents[3]).encode() not in path.read_bytes(), "a path of this machine"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["siclip-s0", *(pytest.param(name, marks=pytest.mark.long) for name in ("mobileclip-nano", "mobileclip-s0"))],
)
def test_models_run_in_onnxruntime_at_any_batch(tmp_path: Path, name: str) -> None:
    check_onnx(tmp_path / "onnx", trained_like(name))


@pytest.mark.slow
def test_a_plain_text_tower_can_be_exported(tmp_path: Path) -> None:
    small = {"image": SMALL["image"], "text": {"layers": 2}, "text_sharing": "qk:0-0"}
    check_onnx(tmp_path / "onnx", trained_like("siclip2-nano", **small))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image_norm", "text_norm"),
    [("layer", "batch"), ("rms", "rms"), pytest.param("batch", "layer", marks=pytest.mark.long)],
)
def test_every_option_of_the_blocks_can_be_exported(tmp_path: Path, image_norm: str, text_norm: str) -> None:
    image = {"sasp": {"norm": image_norm, "first_value": True, "ffn": "plain"}, "sharing": "block:0-0"}
    text = {"sasp": {"norm": text_norm, "first_value": True}, "sharing": "mlp:0-0-1-1"}
    check_onnx(tmp_path / "onnx", trained_like("siclip-nano", image=image, text=text))


@pytest.mark.slow
def test_a_wrong_graph_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Clip.reparameterize

    def wrong(model: Clip) -> Clip:
        deployable = right(model)
        deployable.text_encoder.final_layer_norm.bias.data[0] += 0.05
        return deployable

    model = create_model("siclip-nano", **SMALL)
    monkeypatch.setattr(Clip, "reparameterize", wrong)
    with pytest.raises(UserError, match=r"refused, nothing was written: the text embeddings .* limit is 1e-04"):
        export_onnx(model, tmp_path / "onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = create_model("siclip-nano", **SMALL)
    model.image_encoder.model.head.fc.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"siclip-nano is not finite"):
        export_onnx(model, tmp_path / "onnx")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_no_folder_is_created(tmp_path: Path) -> None:
    model = create_model("siclip-nano")
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="mine exists and is not overwritten: delete it"):
        export_onnx(model, tmp_path / "mine")
    with pytest.raises(UserError, match=r"mine is not a folder; choose another name"):
        export_onnx(model, tmp_path / "mine" / "onnx")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_tower_above_the_largest_onnx_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from siclip.export import onnx as module

    monkeypatch.setattr(module, "_LARGEST_BYTES", 1_000_000)
    with pytest.raises(UserError, match=r"image\.onnx: the tower's weights do not fit"):
        export_onnx(create_model("siclip-nano"), tmp_path / "onnx")
    assert not list(tmp_path.iterdir())
