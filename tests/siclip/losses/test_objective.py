"""The weighted sum: its parts, its parameters, and the errors."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from siclip.config import LossConfig, MiningStrategy
from siclip.errors import UserError
from siclip.losses import (
    Embeddings,
    Objective,
    PairIds,
    contrastive_loss,
    contrastive_relational_loss,
    false_negative_mask,
    feature_distillation_loss,
    interactive_contrastive_loss,
    mine_negatives,
    pair_matching_loss,
)

B, D = 10, 16
WEIGHTS = {
    "contrastive": 0.7,
    "feature_distillation": 300.0,
    "contrastive_relational": 1.5,
    "interactive_contrastive": 0.4,
    "pair_matching": 2.0,
}
DIAGNOSTICS = {
    "pair_positive_accuracy",
    "pair_negative_accuracy",
    "pair_dropped",
    "pair_masked_share",
    "pair_masked_by_teacher",
}
ALONE = {**dict.fromkeys(WEIGHTS, 0.0), "contrastive": 1.0}
IDS = PairIds(image=torch.tensor([0, 0, *range(2, B)]), caption=torch.tensor([*range(B - 1), 2]))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def embeddings(seed: int, width: int = D, scale: float = 14.0) -> Embeddings:
    image, text = (
        F.normalize(torch.randn(B, width, generator=generator(s), dtype=torch.float64), dim=1)
        for s in (seed, seed + 1)
    )
    return Embeddings(image.requires_grad_(), text.requires_grad_(), torch.tensor(scale, dtype=torch.float64))


STUDENT, TEACHER = embeddings(1), embeddings(3, scale=60.0)


def objective(width: int = D, **changes: Any) -> Objective:
    torch.manual_seed(0)
    return Objective(LossConfig(**{**WEIGHTS, **changes}), D, (width, width)).double()


def test_the_loss_is_the_weighted_sum_of_the_pure_functions() -> None:
    built = objective()
    out = built(STUDENT, TEACHER, IDS, generator(5))
    s, t = STUDENT, TEACHER
    mask = false_negative_mask(IDS.image, IDS.caption, t.text, 0.9)
    draw = generator(5)
    logits = s.logit_scale * s.image @ s.text.T
    assert built.pair_matching_head is not None
    pair_matching = pair_matching_loss(
        s.image,
        s.text,
        built.pair_matching_head,
        text_negatives=mine_negatives(logits, "sampled", exclude=mask, generator=draw),
        image_negatives=mine_negatives(logits.T, "sampled", exclude=mask, generator=draw),
    )
    quad = (s.image, s.text, t.image, t.text)
    expected = {
        "contrastive": contrastive_loss(s.image, s.text, s.logit_scale),
        "feature_distillation": feature_distillation_loss(*quad),
        "contrastive_relational": contrastive_relational_loss(*quad, s.logit_scale, t.logit_scale),
        "interactive_contrastive": interactive_contrastive_loss(*quad, torch.tensor(1 / 0.07)),
        "pair_matching": pair_matching.loss,
    }
    assert set(out) == {"loss", *expected, *(f"weighted/{name}" for name in expected), *DIAGNOSTICS}
    for name, value in expected.items():
        assert out[name].item() == pytest.approx(value.item(), rel=1e-6), name
        assert out[f"weighted/{name}"].item() == pytest.approx(WEIGHTS[name] * value.item(), rel=1e-6), name
    total = sum(WEIGHTS[name] * value.item() for name, value in expected.items())
    assert out["loss"].item() == pytest.approx(total, rel=1e-6)
    assert out["pair_masked_share"].item() == pytest.approx(4 / (B * (B - 1)))
    assert out["pair_dropped"].item() == pair_matching.dropped.item() == 0


def test_only_the_loss_has_a_gradient_and_none_reaches_the_teacher() -> None:
    teacher = embeddings(3, width=24)
    student = embeddings(1)
    built = objective(24)
    out = built(student, teacher, IDS, generator())
    assert [name for name, value in out.items() if value.requires_grad] == ["loss"]
    assert all(value.ndim == 0 for value in out.values())
    out["loss"].backward()
    assert student.image.grad is not None
    assert student.text.grad is not None
    assert teacher.image.grad is None
    assert teacher.text.grad is None
    for name, parameter in built.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_part_of_weight_zero_is_not_computed_and_has_no_parameters(part: str) -> None:
    full, without = objective(24), objective(24, **{part: 0.0})
    out = without(STUDENT, embeddings(3, width=24), IDS, generator())
    assert not {part, f"weighted/{part}"} & set(out)
    assert (part == "pair_matching") == (not DIAGNOSTICS & set(out))
    owned = {
        "interactive_contrastive": {"interactive_logit_scale"},
        "pair_matching": {"pair_matching_head.weight", "pair_matching_head.bias"},
    }
    names = {name for name, _ in full.named_parameters()}
    assert names - {name for name, _ in without.named_parameters()} == owned.get(part, set())


@pytest.mark.parametrize("part", WEIGHTS)
def test_each_weight_scales_its_part(part: str) -> None:
    one, two = (objective(**{part: w})(STUDENT, TEACHER, IDS, generator()) for w in (1.0, 2.0))
    assert two["loss"].item() - one["loss"].item() == pytest.approx(one[part].item(), rel=1e-9)


@pytest.mark.parametrize("strategy", get_args(MiningStrategy))
def test_the_strategy_reaches_the_miner(strategy: MiningStrategy) -> None:
    built = objective(negatives=strategy)
    losses = [built(STUDENT, TEACHER, IDS, generator(seed))["pair_matching"].item() for seed in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert (losses[0] != losses[2]) == (strategy in {"sampled", "uniform", "annealed"})


def test_the_teacher_strategy_mines_by_the_teachers_similarity() -> None:
    built = objective(negatives="teacher")
    mask = false_negative_mask(IDS.image, IDS.caption, TEACHER.text, 0.9)
    similarity = (TEACHER.image @ TEACHER.text.T).detach().masked_fill(mask, -9)
    expected = pair_matching_loss(
        STUDENT.image,
        STUDENT.text,
        built.pair_matching_head,  # type: ignore[arg-type]
        text_negatives=similarity.argmax(dim=1),
        image_negatives=similarity.argmax(dim=0),
    ).loss
    out = built(STUDENT, TEACHER, IDS, generator())
    assert out["pair_matching"].item() == pytest.approx(expected.item(), rel=1e-9)


def test_the_false_negative_threshold_and_the_teachers_text_reach_the_mask() -> None:
    config = {**ALONE, "pair_matching": 1.0}
    low, high = (
        objective(**config, false_negative_similarity=value)(STUDENT, TEACHER, IDS, generator())
        for value in (0.05, 0.9)
    )
    assert low["pair_masked_share"] > high["pair_masked_share"]
    alone = Objective(LossConfig(**config, false_negative_similarity=0.05), D, None)
    out = alone(STUDENT, None, IDS, generator())
    assert out["pair_masked_share"].item() == pytest.approx(4 / (B * (B - 1)))


def test_a_batch_of_one_caption_drops_every_negative() -> None:
    ids = PairIds(image=torch.arange(B), caption=torch.zeros(B, dtype=torch.int64))
    out = objective()(STUDENT, TEACHER, ids, generator())
    assert out["pair_dropped"] == 2 * B
    assert out["pair_masked_share"] == 1
    assert out["loss"].isfinite()


def test_widths_that_differ_get_an_orthogonal_projection_for_fd_and_icl_only() -> None:
    teacher = embeddings(3, width=24)
    built = objective(24)
    assert built.image_projection is not None
    assert built.text_projection is not None
    assert {n for n, _ in built.named_parameters() if "projection" in n} == {
        "image_projection.weight",
        "text_projection.weight",
    }
    weight_image, weight_text = built.image_projection.weight, built.text_projection.weight
    torch.testing.assert_close(weight_image.T @ weight_image, torch.eye(D, dtype=torch.float64), atol=1e-6, rtol=0)
    with torch.no_grad():
        # The projection's output is normalised, so this must not matter.
        weight_image *= 3.0
        weight_text += 0.1
    out = built(STUDENT, teacher, IDS, generator())
    image = F.normalize(STUDENT.image @ weight_image.T, dim=1)
    text = F.normalize(STUDENT.text @ weight_text.T, dim=1)
    s, t = STUDENT, teacher
    expected = {
        "feature_distillation": feature_distillation_loss(image, text, t.image, t.text),
        "interactive_contrastive": interactive_contrastive_loss(image, text, t.image, t.text, torch.tensor(1 / 0.07)),
        "contrastive_relational": contrastive_relational_loss(
            s.image, s.text, t.image, t.text, s.logit_scale, t.logit_scale
        ),
    }
    for name, value in expected.items():
        assert out[name].item() == pytest.approx(value.item(), rel=1e-6), name


def test_equal_widths_and_crd_alone_need_no_projection() -> None:
    assert objective(D).image_projection is None
    lone = Objective(LossConfig(**{**ALONE, "contrastive_relational": 1.0}), D, (24, 24))
    assert not list(lone.parameters())
    assert "contrastive_relational" in lone(STUDENT, embeddings(3, width=24), IDS, generator())


def test_the_interactive_scale_is_at_most_100_and_can_decrease_again() -> None:
    built = objective(**{**ALONE, "interactive_contrastive": 1.0})
    scale = built.interactive_logit_scale
    assert scale is not None
    assert scale.item() == pytest.approx(math.log(1 / 0.07), rel=1e-6)
    with torch.no_grad():
        scale.fill_(9.0)
    out = built(STUDENT, TEACHER, IDS, generator())
    expected = interactive_contrastive_loss(
        STUDENT.image, STUDENT.text, TEACHER.image, TEACHER.text, torch.tensor(100.0)
    )
    assert out["interactive_contrastive"].item() == pytest.approx(expected.item(), rel=1e-9)
    out["loss"].backward()
    assert scale.grad is not None
    assert scale.grad.abs() > 0


def test_the_objective_is_fp32_under_bf16_autocast() -> None:
    def single(e: Embeddings) -> Embeddings:
        return Embeddings(e.image.detach().float(), e.text.detach().float(), e.logit_scale.float())

    student, teacher = single(STUDENT), single(embeddings(3, width=24))
    built = objective(24, negatives="hardest").float()
    plain = built(student, teacher, IDS, generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = built(student, teacher, IDS, generator())
    assert under["loss"].dtype == torch.float32
    for name, value in plain.items():
        assert torch.equal(value, under[name]), name


@pytest.mark.parametrize("negatives", ["hardest", "semi_hard", "teacher"])
def test_the_order_of_the_batch_does_not_matter(negatives: str) -> None:
    built, order = objective(negatives=negatives), torch.randperm(B, generator=generator(9))

    def shuffled(e: Embeddings) -> Embeddings:
        return Embeddings(e.image[order], e.text[order], e.logit_scale)

    plain = built(STUDENT, TEACHER, IDS, generator())
    other = built(shuffled(STUDENT), shuffled(TEACHER), PairIds(IDS.image[order], IDS.caption[order]), generator())
    for name, value in plain.items():
        assert other[name].item() == pytest.approx(value.item(), rel=1e-9), name


@pytest.mark.parametrize(
    "changes",
    [
        {"feature_distillation": 1.0},
        {"contrastive_relational": 1.0},
        {"interactive_contrastive": 1.0},
        {"pair_matching": 1.0, "negatives": "teacher"},
    ],
)
def test_a_missing_teacher_is_refused_at_construction_and_in_the_step(changes: dict[str, Any]) -> None:
    config = LossConfig(**{**ALONE, **changes})
    with pytest.raises(UserError, match="needs a teacher"):
        Objective(config, D, None)
    with pytest.raises(UserError, match="got none"):
        Objective(config, D, (D, D))(STUDENT, None, IDS, generator())


def test_widths_other_than_the_announced_ones_are_refused() -> None:
    with pytest.raises(UserError, match=r"student's embeddings have width 24.*built for 16"):
        objective()(embeddings(1, width=24), TEACHER, IDS, generator())
    with pytest.raises(UserError, match=r"teacher's embeddings have widths \(24, 24\)"):
        objective()(STUDENT, embeddings(3, width=24), IDS, generator())
    with pytest.raises(UserError, match="cannot be compared"):
        Objective(LossConfig(), D, (24, 32))


def test_feature_distillation_alone_accepts_a_teacher_with_two_widths() -> None:
    built = Objective(LossConfig(**{**ALONE, "feature_distillation": 1.0}), D, (24, D))
    assert built.image_projection is not None
    assert built.text_projection is None
    teacher = Embeddings(embeddings(3, width=24).image, TEACHER.text, TEACHER.logit_scale)
    loss: Tensor = built(STUDENT, teacher, IDS, generator())["loss"]
    assert loss.isfinite()


def test_an_objective_without_weights_is_refused() -> None:
    with pytest.raises(UserError, match="every weight is 0"):
        Objective(LossConfig(**{**ALONE, "contrastive": 0.0}), D, None)
