"""Options of the objective: SigLIP as the base, CRD's temperature, and options that depend on the progress."""

from __future__ import annotations

import math
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from siclip.config import LossConfig
from siclip.errors import UserError
from siclip.losses import (
    Embeddings,
    Objective,
    PairIds,
    SiglipLoss,
    contrastive_relational_loss,
    false_negative_mask,
    mine_negatives,
    pair_matching_loss,
)

B, D = 10, 16
OFF = {
    "contrastive": 0.0,
    "feature_distillation": 0.0,
    "contrastive_relational": 0.0,
    "interactive_contrastive": 0.0,
}
IDS = PairIds(image=torch.arange(B), caption=torch.arange(B))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def embeddings(seed: int, scale: float = 14.0) -> Embeddings:
    image, text = (
        F.normalize(torch.randn(B, D, generator=generator(s), dtype=torch.float64), dim=1) for s in (seed, seed + 1)
    )
    return Embeddings(image.requires_grad_(), text.requires_grad_(), torch.tensor(scale, requires_grad=True))


STUDENT, TEACHER = embeddings(1), embeddings(3, scale=60.0)


def objective(**changes: Any) -> Objective:
    torch.manual_seed(0)
    return Objective(LossConfig(**{**OFF, **changes}), D, (D, D)).double()


def step(built: Objective, progress: float = 0.0, seed: int = 0) -> dict[str, Tensor]:
    metrics: dict[str, Tensor] = built(STUDENT, TEACHER, IDS, generator(seed), progress=progress)
    return metrics


def test_siglip_starts_at_the_scale_and_bias_of_the_paper() -> None:
    built = objective(contrastive=0.5, base="siglip")
    assert [name for name, _ in built.named_parameters()] == ["siglip.logit_scale", "siglip.logit_bias"]
    out = step(built)
    image, text = STUDENT.image, STUDENT.text
    expected = open_clip.loss.SigLipLoss()(image, text, torch.tensor(10.0), torch.tensor(-10.0)).item()
    assert out["contrastive"].item() == pytest.approx(expected, rel=1e-6)
    assert out["loss"].item() == pytest.approx(0.5 * expected, rel=1e-6)
    assert out["siglip_scale"].item() == pytest.approx(10, rel=1e-6)
    assert out["siglip_bias"].item() == -10


def test_siglip_learns_its_own_scale_and_bias_and_not_the_models() -> None:
    built, student = objective(contrastive=1.0, base="siglip"), embeddings(1)
    out = built(student, None, IDS, generator())
    out["loss"].backward()
    assert student.logit_scale.grad is None
    assert student.image.grad is not None
    for parameter in built.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs() > 0
    torch.optim.SGD(built.parameters(), lr=1.0).step()
    # A metric of this step does not change with the parameter.
    assert out["siglip_bias"].item() == -10


def test_siglips_scale_is_at_most_100_and_can_decrease_again() -> None:
    loss = SiglipLoss()
    with torch.no_grad():
        loss.logit_scale.fill_(9.0)
    image, text = STUDENT.image.detach().float(), STUDENT.text.detach().float()
    value = loss(image, text)
    expected = open_clip.loss.SigLipLoss()(image, text, torch.tensor(100.0), torch.tensor(-10.0))
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    value.backward()
    assert loss.logit_scale.grad is not None
    assert loss.logit_scale.grad.abs() > 0


@pytest.mark.parametrize(("base", "contrastive"), [("clip", 1.0), ("siglip", 0.0)])
def test_siglip_has_no_parameters_if_it_is_off(base: str, contrastive: float) -> None:
    built = objective(contrastive=contrastive, base=base, feature_distillation=1.0)
    assert not list(built.parameters())
    assert not {"siglip_scale", "siglip_bias"} & set(step(built))


def test_the_temperature_reaches_crd() -> None:
    s, t = STUDENT, TEACHER
    expected = contrastive_relational_loss(s.image, s.text, t.image, t.text, s.logit_scale, t.logit_scale, 4.0)
    one, four = (
        step(objective(contrastive_relational=1.0, relational_temperature=tau))["loss"].item() for tau in (1.0, 4.0)
    )
    assert four == pytest.approx(expected.item(), rel=1e-12)
    assert one != pytest.approx(four, rel=1e-2)


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_the_progress_reaches_the_annealed_miner(progress: float) -> None:
    built = objective(pair_matching=1.0, negatives="annealed")
    assert built.pair_matching_head is not None
    mask = false_negative_mask(IDS.image, IDS.caption, TEACHER.text)
    draw, logits = generator(3), STUDENT.logit_scale * STUDENT.image @ STUDENT.text.T
    text, image = (
        mine_negatives(x, "annealed", exclude=mask, generator=draw, progress=progress) for x in (logits, logits.T)
    )
    expected = pair_matching_loss(
        STUDENT.image, STUDENT.text, built.pair_matching_head, text_negatives=text, image_negatives=image
    )
    assert step(built, progress, seed=3)["pair_matching"].item() == pytest.approx(expected.loss.item(), rel=1e-9)


@pytest.mark.parametrize(
    ("warmup", "progress", "factor"),
    [(0.0, 0.0, 1.0), (0.2, 0.0, 0.0), (0.2, 0.05, 0.25), (0.2, 0.2, 1.0), (0.2, 0.7, 1.0), (1.0, 0.5, 0.5)],
)
def test_the_weight_of_pair_matching_rises_over_its_warm_up(warmup: float, progress: float, factor: float) -> None:
    built = objective(contrastive=0.7, pair_matching=2.0, pair_matching_warmup=warmup)
    out = step(built, progress)
    assert out["weighted/pair_matching"].item() == pytest.approx(2 * factor * out["pair_matching"].item())
    assert out["weighted/contrastive"].item() == pytest.approx(0.7 * out["contrastive"].item())
    weighted = out["weighted/pair_matching"] + out["weighted/contrastive"]
    assert out["loss"].item() == pytest.approx(weighted.item(), rel=1e-12)
    out["loss"].backward()
    assert built.pair_matching_head is not None
    gradient = built.pair_matching_head.weight.grad
    full = objective(contrastive=0.7, pair_matching=2.0)
    step(full, progress)["loss"].backward()
    torch.testing.assert_close(gradient, factor * full.pair_matching_head.weight.grad)  # type: ignore[union-attr, operator]


def test_a_progress_outside_0_to_1_is_refused() -> None:
    with pytest.raises(UserError, match=r"progress 1\.5 must be between 0 and 1"):
        step(objective(pair_matching=1.0, pair_matching_warmup=0.5), 1.5)


@pytest.mark.parametrize(
    "changes",
    [
        {"base": "softmax"},
        {"relational_temperature": 0.0},
        {"relational_temperature": math.inf},
        {"pair_matching_warmup": -0.1},
        {"pair_matching_warmup": 1.1},
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes))):
        LossConfig(**changes)
