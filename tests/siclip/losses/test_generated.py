"""Losses with generated false captions, compared with numpy and scipy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_expit, log_softmax
from torch import Tensor

from siclip.config import LossConfig, TrainingConfig
from siclip.data.negatives import KINDS
from siclip.errors import UserError
from siclip.losses import (
    Embeddings,
    FalseColumns,
    GeneratedTexts,
    Objective,
    PairIds,
    choose_generated,
    contrastive_loss,
    hinge_loss,
)
from siclip.models import model_config
from siclip.training.identity import STATE, check_state, identity

B, K, D, S = 6, 3, 8, 14.0
USED = {"generated_share": 0.5}
ALONE = {"feature_distillation": 0, "contrastive_relational": 0, "interactive_contrastive": 0}


def unit(seed: int, *shape: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


IMAGE, TEXT, FALSE = unit(0, B, D), unit(1, B, D), unit(2, B, K, D)
# Samples 0 and 1 have one image. The first false caption of sample 4 is the true one of sample 1.
IDS = PairIds(torch.tensor([0, 0, 2, 3, 4, 5]), torch.arange(10, 10 + B))
FALSE_IDS = torch.arange(100, 100 + B * K).view(B, K).index_put((torch.tensor(4), torch.tensor(0)), torch.tensor(11))
KIND_OF = torch.tensor([[0, 2, 2], [1, 5, -1], [-1, -1, -1], [2, 2, 3], [2, 0, 0], [7, 4, 6]])
PRESENT = KIND_OF.numpy() >= 0


def student() -> Embeddings:
    image, text, scale = (torch.tensor(value, dtype=torch.float64) for value in (IMAGE, TEXT, S))
    return Embeddings(image.requires_grad_(), text.requires_grad_(), scale)


def generated() -> GeneratedTexts:
    return GeneratedTexts(torch.tensor(FALSE).requires_grad_(), FALSE_IDS, KIND_OF)


def of_objective(texts: GeneratedTexts | None, **changes: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    built = Objective(LossConfig(**{**ALONE, **changes}), D, None).double()
    return built(student(), None, IDS, torch.Generator().manual_seed(3), generated=texts)


def columns(which: str) -> tuple[np.ndarray, np.ndarray]:
    """For each image the cosines of all false captions, (B, B·K), and which of them count, by loops."""
    cosines = np.array([[IMAGE[i] @ FALSE[j, k] for j in range(B) for k in range(K)] for i in range(B)])
    used = np.zeros((B, B * K), dtype=bool)
    for i in range(B):
        true = {int(IDS.caption[m]) for m in range(B) if IDS.image[m] == IDS.image[i]}
        for j in range(B):
            for k in range(K):
                counts = which == "batch" or i == j
                used[i, j * K + k] = counts and PRESENT[j, k] and int(FALSE_IDS[j, k]) not in true
    return cosines, used


@pytest.mark.parametrize("base", ["clip", "siglip"])
@pytest.mark.parametrize("which", ["own", "batch"])
def test_false_captions_are_columns_of_the_image_side(which: str, base: str) -> None:
    cosines, used = columns(which)
    logits = IMAGE @ TEXT.T
    if base == "clip":
        further = np.where(used, S * cosines, -math.inf)
        rows = log_softmax(np.concatenate([S * logits, further], axis=1), axis=1)
        expected = -(np.diag(rows).mean() + np.diag(log_softmax(S * logits.T, axis=1)).mean()) / 2
    else:
        # SigLIP's own scale and bias
        sign = 2 * np.eye(B) - 1
        expected = -log_expit(sign * (10 * logits - 10)).sum() - log_expit(-(10 * cosines - 10))[used].sum()
        expected /= B
    found = of_objective(generated(), base=base, generated_columns=which)
    assert found["contrastive"].item() == pytest.approx(expected, rel=1e-6)


def test_true_captions_among_the_columns_are_masked_and_counted_by_kind() -> None:
    """The false caption that is true of images 0 and 1 has kind 2, of which there are 5 in the batch."""
    found = of_objective(generated(), generated_columns="batch")
    shares = {kind: found[f"generated_masked/{kind}"].item() for kind in KINDS}
    assert shares.pop(KINDS[2]) == pytest.approx(2 / (B * 5))
    assert set(shares.values()) == {0.0}


def test_the_hinge_is_the_mean_over_false_captions() -> None:
    cosines, used = columns("own")
    true = (IMAGE * TEXT).sum(axis=1, keepdims=True)
    expected = np.maximum(0, 0.3 - true + cosines)[used].mean()
    found = of_objective(generated(), contrastive=0, generated_hinge=2.0, generated_margin=0.3)
    assert found["generated_hinge"].item() == pytest.approx(expected, rel=1e-12)
    assert found["loss"].item() == pytest.approx(2 * expected, rel=1e-12)
    none = FalseColumns(torch.tensor(FALSE), torch.zeros(B, K, dtype=torch.bool))
    assert hinge_loss(student().image, student().text, none, 0.3) == 0


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_pair_matching_takes_false_captions_in_place_of_mined_ones(share: float) -> None:
    """Compared with the loss by hand: which ones are drawn is read with the same generator, after the miners'."""
    options = {"contrastive": 0, "pair_matching": 1.0, "negatives": "hardest"}
    found = of_objective(generated(), **options, generated_share=share)
    which, used = choose_generated(KIND_OF, share, torch.Generator().manual_seed(3))
    similarity = IMAGE @ TEXT.T
    same = (IDS.image[:, None] == IDS.image).numpy()
    texts = np.where(same, -9, similarity).argmax(axis=1)
    images = np.where(same, -9, similarity).argmax(axis=0)
    false = np.where(used.numpy()[:, None], FALSE[np.arange(B), which], TEXT[texts])

    def logit(image: np.ndarray, text: np.ndarray) -> np.ndarray:
        return 10 * (image * text).sum(axis=1) + math.log(0.5)

    negatives = np.concatenate([logit(IMAGE, false), logit(IMAGE[images], TEXT)])
    expected = -(log_expit(logit(IMAGE, TEXT)).sum() + log_expit(-negatives).sum()) / (3 * B)
    assert found["pair_matching"].item() == pytest.approx(expected, rel=1e-6)
    right = negatives[:B][used.numpy()] <= 0
    assert found["pair_generated_accuracy"].item() == pytest.approx(right.mean())
    # sample 2 has no false caption, so its mined one stays
    assert used.tolist() == [True, True, False, True, True, True] if share == 1 else not used[2]


def test_the_draw_takes_the_share_and_each_false_caption_alike() -> None:
    which, used = choose_generated(torch.tensor([[0, 3, -1]]).repeat(20000, 1), 0.3, torch.Generator().manual_seed(0))
    assert used.float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert (which == 1).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert not (which == 2).any()


@pytest.mark.parametrize(
    "changes", [{"generated_columns": "own"}, {"generated_columns": "batch"}, {"generated_hinge": 1.0}]
)
def test_the_gradient_reaches_the_false_captions_that_exist(changes: dict[str, Any]) -> None:
    texts = generated()
    of_objective(texts, **changes, generated_margin=2.0)["loss"].backward()
    assert texts.text.grad is not None
    assert torch.equal(texts.text.grad.abs().sum(dim=2) > 0, torch.tensor(PRESENT))


def test_the_teachers_mask_is_off_where_generated_captions_are_used_unless_asked_for() -> None:
    teacher = Embeddings(torch.tensor(IMAGE), torch.tensor(np.repeat(TEXT[:1], B, axis=0)), torch.tensor(S))
    by_ids = 2 / (B * (B - 1))

    def masked(**changes: Any) -> tuple[float, float]:
        loss = LossConfig(**{**ALONE, "pair_matching": 1.0, **changes})
        out = Objective(loss, D, (D, D)).double()(student(), teacher, IDS, None, generated=generated())
        return out["pair_masked_share"].item(), out["pair_masked_by_teacher"].item()

    assert masked() == pytest.approx((1, 1 - by_ids))
    assert masked(teacher_mask="off") == pytest.approx((by_ids, 0))
    assert masked(generated_share=0.5) == pytest.approx((by_ids, 0))
    assert masked(generated_share=0.5, teacher_mask="on") == pytest.approx((1, 1 - by_ids))


def test_without_a_part_that_uses_them_nothing_changes_and_missing_ones_are_named() -> None:
    options = {"pair_matching": 1.0}
    plain, beside = of_objective(None, **options), of_objective(generated(), **options)
    assert plain.keys() == beside.keys()
    assert all(torch.equal(plain[name], beside[name]) for name in plain)
    unused = contrastive_loss(*(torch.tensor(x) for x in (IMAGE, TEXT, S)))
    assert plain["contrastive"].item() == unused.item()
    assert not LossConfig(**ALONE, contrastive=0, generated_columns="own", generated_share=1).uses_generated
    with pytest.raises(UserError, match=r"name a set with data\.negatives"):
        of_objective(None, generated_columns="own")


def test_a_run_that_was_saved_before_the_fields_existed_resumes() -> None:
    training, model = TrainingConfig(steps=10, warmup_steps=1), model_config("siclip-nano")
    here, other = (identity(training, model, LossConfig(pair_matching=1, **o), (), "none") for o in ({}, USED))
    saved = {**here, "loss": {k: v for k, v in here["loss"].items() if "generated" not in k and k != "teacher_mask"}}
    state = {**dict.fromkeys(STATE), "step": 5, "identity": saved}
    check_state(state, here, None)
    with pytest.raises(UserError, match=r"loss\.generated_share 0\.0 there, 0\.5 here"):
        check_state(state, other, None)
