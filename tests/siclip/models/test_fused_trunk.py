"""The folded trunk equals the trunk and follows changes of its weights."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from siclip.models import Clip, create_model
from siclip.models import fused_trunk as module
from siclip.models.fused_trunk import fused_trunk
from siclip.models.image_tower import ImageTower

IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def model(name: str = "mobileclip-nano", **config: object) -> Clip:
    """A tower whose statistics, scales and biases are far from their initial values, so that omitting one shows."""
    torch.manual_seed(2)
    built = create_model(name, **config)
    for part in built.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.2)
            nn.init.normal_(part.running_mean, std=0.2)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
    for name_, parameter in built.named_parameters():
        if "layer_scale" in name_:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return built.eval()


def assert_same(tower: ImageTower, images: torch.Tensor = IMAGES) -> None:
    with torch.no_grad():
        expected = tower.double().trunk(images.double())
    found = fused_trunk(tower.float(), images)
    assert not found.requires_grad and found.shape == expected.shape
    assert (found - expected).norm() / expected.norm() < 1e-6


@pytest.mark.parametrize("name", ["mobileclip-nano", "siclip-nano"])
def test_it_equals_the_trunk_in_double_precision(name: str) -> None:
    assert_same(model(name).image_encoder)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_accepts_either_memory_layout(layout: torch.memory_format) -> None:
    built = model().to(memory_format=layout)
    assert_same(built.image_encoder, IMAGES.contiguous(memory_format=layout))


def test_the_full_size_trunk_is_the_same() -> None:
    images = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    assert_same(model("mobileclip-s0").image_encoder, images)


def test_it_equals_the_trunk_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code path of a GPU."""
    monkeypatch.setattr(module, "_has_onednn", lambda x: False)
    assert_same(model().image_encoder)


def test_it_does_not_change_the_tower_or_keep_it_alive() -> None:
    built = model()
    before = {name: value.clone() for name, value in built.state_dict().items()}
    random_state = torch.get_rng_state()
    fused_trunk(built.image_encoder, IMAGES)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in built.state_dict().items())
    copy.deepcopy(built)
    tower = weakref.ref(built.image_encoder)
    del built
    gc.collect()
    assert tower() is None


@pytest.mark.parametrize("what", ["weight", "statistic", "loaded"])
def test_a_change_of_the_trunk_is_followed(what: str) -> None:
    tower = model().image_encoder
    before = fused_trunk(tower, IMAGES)
    assert torch.equal(fused_trunk(tower, IMAGES), before)
    norm = next(m for m in tower.model.stem.modules() if isinstance(m, nn.BatchNorm2d))
    with torch.no_grad():
        if what == "weight":
            norm.weight.mul_(1.5)
        elif what == "statistic":
            norm.running_mean.add_(0.5)
        else:
            tower.load_state_dict({name: value * 1.1 for name, value in tower.state_dict().items()})
    assert not torch.allclose(fused_trunk(tower, IMAGES), before, rtol=1e-3)
    assert_same(tower)


def test_under_autocast_it_rounds_like_the_trunk() -> None:
    tower = model().image_encoder
    exact = fused_trunk(tower, IMAGES)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        ours, theirs = fused_trunk(tower, IMAGES).float(), tower.trunk(IMAGES).float()
    errors = [float((x - exact).norm() / exact.norm()) for x in (ours, theirs)]
    assert 1e-4 < errors[0] < 1.2 * errors[1]
