"""A model that is not finite has no result: every step that encodes refuses it by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from siclip.evaluation.encoder import ClipEncoder, check_encoder
from siclip.evaluation.evaluate import EvaluationSet, evaluate
from siclip.export import export_open_clip
from siclip.models import create_model
from siclip.models.clip import Clip
from siclip.models.finite import NotFinite, check_finite, finite, unit

CPU = torch.device("cpu")


def broken(tower: str, value: float) -> Clip:
    torch.manual_seed(0)
    model = create_model("mobileclip-nano").eval()
    with torch.no_grad():
        for parameter in getattr(model, f"{tower}_encoder").parameters():
            parameter.fill_(value)
    return model


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_each_output_is_looked_at(value: float) -> None:
    outputs = torch.ones(5, 3)
    outputs[2, 1] = value
    outputs[3] = value
    if value:
        with pytest.raises(NotFinite, match=r"m is not finite: 2 of 5 outputs"):
            unit(normalize(outputs, dim=-1), "m")
        with pytest.raises(NotFinite, match=r"m is not finite: 4 of 15 outputs"):
            finite(outputs, "m")
    else:
        with pytest.raises(NotFinite, match=r"m is not finite: 1 of 5 outputs"):
            unit(normalize(outputs, dim=-1), "m")
        assert finite(outputs, "m") is outputs


def test_a_length_that_overflows_is_not_finite() -> None:
    """fp32 cannot hold the squares, so that normalising gives zeros, which are finite."""
    embeddings = normalize(torch.full((2, 8), 1e30), dim=-1)
    assert embeddings.isfinite().all()
    with pytest.raises(NotFinite, match="2 of 2"):
        unit(embeddings, "m")


def test_bf16_is_precise_enough() -> None:
    torch.manual_seed(0)
    embeddings = normalize(torch.randn(1000, 512).bfloat16(), dim=-1)
    assert unit(embeddings, "m") is embeddings


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_a_broken_tower_is_refused_by_everything_that_encodes(tower: str, value: float, tmp_path: Path) -> None:
    model = broken(tower, value)
    size, length = model.config.image.image_size, model.config.text.context_length
    data = EvaluationSet(torch.zeros(2, size, size, 3, dtype=torch.uint8), torch.ones(2, length).long(), None)
    with pytest.raises(NotFinite, match=r"^named is not finite"):
        check_finite(model, "named")
    with pytest.raises(NotFinite, match=r"^the model mobileclip-nano is not finite"):
        evaluate(model, data, device=CPU)
    with pytest.raises(NotFinite, match=r"^named is not finite"):
        check_encoder(ClipEncoder(model, "named", CPU))
    with pytest.raises(NotFinite, match=r"^the model mobileclip-nano is not finite"):
        export_open_clip(model, tmp_path / "open_clip")
    assert not list(tmp_path.iterdir())


def test_a_new_model_is_finite_and_keeps_its_mode() -> None:
    model = create_model("siclip-nano").train()
    check_finite(model, "new")
    assert model.training and model.image_encoder.training
    check_encoder(ClipEncoder(model, "new", CPU))
