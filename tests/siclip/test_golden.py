"""MobileCLIP-S0 compared with Apple's code; golden/make.py creates the golden values."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

import siclip
from siclip.checkpoints.layouts import to_official
from siclip.models import Clip, count_parameters, create_model

GOLDEN = Path(__file__).parent / "golden"


def load_rule() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_rule", GOLDEN / "rule.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rule = load_rule()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    """mobileclip-s0 with the rule's weights, read from a file in the official layout."""
    path = tmp_path_factory.mktemp("golden") / "mobileclip_s0.pt"
    torch.save(rule.filled(to_official(create_model("mobileclip-s0"))), path)
    model = create_model("mobileclip-s0")
    siclip.load_checkpoint(model, path)
    return model.eval()


def assert_golden(model: Clip, form: str) -> None:
    golden = np.load(GOLDEN / "mobileclip_s0.npz")
    with torch.no_grad():
        ours = {"image": model.encode_image(rule.images()), "text": model.encode_text(rule.tokens())}
    for tower, embeddings in ours.items():
        expected = torch.from_numpy(golden[f"{form}_{tower}"])
        relative = (embeddings - expected).abs().max() / expected.abs().max()
        assert relative < 1e-5, f"{form} {tower}: {relative:.2e}"
        unit: Tensor = torch.nn.functional.normalize(embeddings, dim=-1)
        torch.testing.assert_close(unit, torch.nn.functional.normalize(expected, dim=-1), atol=1e-5, rtol=0)


def test_the_train_form_has_the_references_embeddings(filled: Clip) -> None:
    assert_golden(filled, "train")


def test_the_reparameterized_form_has_the_references_embeddings(filled: Clip) -> None:
    deployable = filled.reparameterize()
    assert count_parameters(filled) - count_parameters(deployable) == 53_847_681 - 53_792_065
    assert_golden(deployable, "reparameterized")


def test_normalize_gives_unit_embeddings(filled: Clip) -> None:
    with torch.no_grad():
        raw, unit = filled.encode_text(rule.tokens()), filled.encode_text(rule.tokens(), normalize=True)
    torch.testing.assert_close(unit, raw / raw.norm(dim=-1, keepdim=True))


def test_siclip_s0_reparameterized_agrees_within_1e_4_relative(filled: Clip) -> None:
    """With the rule's trunk, and with gains and queries other than the initial ones."""
    torch.manual_seed(0)
    student = create_model("siclip-s0")
    siclip.inherit(student, filled)
    for name, parameter in student.named_parameters():
        if name.endswith(("alpha", "beta", "gamma")):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        if name.endswith("qk.query.weight"):
            torch.nn.init.normal_(parameter, std=0.05)
    deployable = student.eval().reparameterize()
    with torch.no_grad():
        for encode, given in (("encode_image", rule.images()), ("encode_text", rule.tokens())):
            ours, fused = getattr(student, encode)(given), getattr(deployable, encode)(given)
            assert (ours - fused).abs().max() / ours.abs().max() < 1e-4
    assert count_parameters(deployable.image_encoder) == 9_781_156
    assert (
        count_parameters(student.text_encoder) - count_parameters(deployable.text_encoder) == 42_441_216 - 42_435_072
    )
