"""Pair matching: the false-negative mask, the heads and the loss."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from scipy.special import expit
from torch import Tensor

from siclip.config import PairHead
from siclip.errors import UserError
from siclip.losses import PairMatchingHead, false_negative_mask, mine_negatives, pair_matching_loss

every_head = pytest.mark.parametrize("kind", get_args(PairHead))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(seed: int, rows: int, width: int) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=generator(seed), dtype=torch.float64), dim=1)


def test_false_negatives_share_an_image_a_caption_or_a_meaning() -> None:
    images, captions = torch.tensor([0, 1, 0, 2, 3, 4]), torch.tensor([10, 11, 12, 11, 13, 14])
    angle = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.5, 4.6], dtype=torch.float64)
    teacher_text = torch.stack([angle.cos(), angle.sin()], dim=1)
    by_id = {(0, 2), (1, 3)}
    for text, close in ((None, set()), (teacher_text, {(4, 5)})):
        mask = false_negative_mask(images, captions, text, threshold=0.9)
        assert mask.dtype == torch.bool
        for i in range(6):
            for j in range(6):
                assert bool(mask[i, j]) == (i == j or (min(i, j), max(i, j)) in by_id | close)


def test_the_threshold_of_the_false_negative_mask_is_strict() -> None:
    ids = torch.arange(2)
    text = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    cosine = float(text[0] @ text[1])
    assert false_negative_mask(ids, ids, text, threshold=cosine).tolist() == [[True, False], [False, True]]
    assert false_negative_mask(ids, ids, text, threshold=np.nextafter(cosine, 0)).all()


def test_the_false_negative_mask_is_fp32_under_autocast() -> None:
    ids, text = torch.arange(40), unit(1, 40, 8).float()
    plain = false_negative_mask(ids, ids, text, threshold=0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(false_negative_mask(ids, ids, text, threshold=0.3), plain)


def pair_logits(head: PairMatchingHead, image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """The head's formula in numpy, with the weights of its state dict."""
    p = {name: value.double().numpy() for name, value in head.state_dict().items()}
    if head.kind == "product":
        return (p["weight"] * image * text).sum(axis=1) + p["bias"]
    x = np.concatenate([image, text, np.abs(image - text), image * text], axis=1)
    hidden = x @ p["hidden.weight"].T + p["hidden.bias"]
    hidden = hidden * stats.norm.cdf(hidden)
    return (hidden @ p["output.weight"].T + p["output.bias"])[:, 0]


@every_head
def test_the_loss_is_the_mean_binary_cross_entropy_over_the_pairs(kind: PairHead) -> None:
    torch.manual_seed(0)
    head = PairMatchingHead(kind, 10).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter))
    image, text = unit(1, 6, 10), unit(2, 6, 10)
    text_negatives = torch.tensor([1, 2, -1, 4, 0, 3])
    image_negatives = torch.tensor([-1, 0, 5, -1, 2, 1])
    output = pair_matching_loss(image, text, head, text_negatives=text_negatives, image_negatives=image_negatives)
    pairs = [(i, i, 1) for i in range(6)]
    pairs += [(i, j, 0) for i, j in enumerate(text_negatives.tolist()) if j >= 0]
    pairs += [(j, i, 0) for i, j in enumerate(image_negatives.tolist()) if j >= 0]
    rows, columns, label = (np.array(x) for x in zip(*pairs, strict=True))
    logits = pair_logits(head, image.numpy()[rows], text.numpy()[columns])
    probability = expit(logits)
    expected = -np.mean(label * np.log(probability) + (1 - label) * np.log1p(-probability))
    assert output.loss.item() == pytest.approx(expected, rel=1e-10)
    assert output.positive_accuracy.item() == pytest.approx((logits[label == 1] > 0).mean())
    assert output.negative_accuracy.item() == pytest.approx((logits[label == 0] <= 0).mean())
    assert output.dropped.item() == 3
    in_fp32 = pair_matching_loss(
        image.float(),
        text.float(),
        head.float(),
        text_negatives=text_negatives,
        image_negatives=image_negatives,
    )
    assert in_fp32.loss.item() == pytest.approx(expected, rel=1e-6)


@every_head
def test_rows_without_negatives_do_not_count_and_have_no_gradient(kind: PairHead) -> None:
    head = PairMatchingHead(kind, 8)
    image, text = (unit(seed, 4, 8).float().requires_grad_() for seed in (1, 2))
    none = torch.full((4,), -1)
    output = pair_matching_loss(image, text, head, text_negatives=none, image_negatives=none)
    assert output.dropped.item() == 8
    assert output.negative_accuracy.isnan()
    alone = F.binary_cross_entropy_with_logits(head(image, text), torch.ones(4))
    assert output.loss.item() == pytest.approx(alone.item(), rel=1e-6)
    for a, b in zip(
        torch.autograd.grad(output.loss, [image, text]),
        torch.autograd.grad(alone, [image, text]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@every_head
def test_the_order_of_the_batch_does_not_matter(kind: PairHead) -> None:
    head = PairMatchingHead(kind, 8).double()
    image, text = unit(1, 9, 8), unit(2, 9, 8)
    exclude = torch.eye(9, dtype=torch.bool)

    def loss(image: Tensor, text: Tensor) -> float:
        similarity = image @ text.T
        return pair_matching_loss(
            image,
            text,
            head,
            text_negatives=mine_negatives(similarity, "hardest", exclude=exclude, generator=generator()),
            image_negatives=mine_negatives(similarity.T, "hardest", exclude=exclude, generator=generator()),
        ).loss.item()

    order = torch.randperm(9, generator=generator(4))
    assert loss(image[order], text[order]) == pytest.approx(loss(image, text), rel=1e-12)
    assert loss(image[order], text) != pytest.approx(loss(image, text), rel=1e-6)


@every_head
def test_the_order_of_the_batch_does_not_matter_for_given_negatives(kind: PairHead) -> None:
    torch.manual_seed(0)
    head = PairMatchingHead(kind, 8).double()
    image, text, order = unit(1, 6, 8), unit(2, 6, 8), torch.tensor([4, 0, 5, 2, 1, 3])
    negatives = [torch.tensor([1, 2, -1, 4, 0, 3]), torch.tensor([-1, 0, 5, -1, 2, 1])]
    position = {old: new for new, old in enumerate(order.tolist())} | {-1: -1}
    moved = [torch.tensor([position[j] for j in index[order].tolist()]) for index in negatives]
    plain = pair_matching_loss(image, text, head, text_negatives=negatives[0], image_negatives=negatives[1])
    other = pair_matching_loss(image[order], text[order], head, text_negatives=moved[0], image_negatives=moved[1])
    assert not torch.equal(moved[0], negatives[0])
    values = [torch.stack([value for value in found if value is not None]) for found in (other, plain)]
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)


def test_a_perfect_match_is_the_minimum() -> None:
    """The head starts as 10·cosine + b, so matched pairs at cosine 1 and negatives at −1 are the minimum."""
    head = PairMatchingHead("product", 8).double()
    half = unit(1, 3, 8)
    perfect, partner = torch.cat([half, -half]), torch.arange(6).roll(3)

    def loss(image: Tensor, text: Tensor) -> float:
        return pair_matching_loss(image, text, head, text_negatives=partner, image_negatives=partner).loss.item()

    best = (np.log1p(np.exp(-10 - np.log(0.5))) + 2 * np.log1p(np.exp(-10 + np.log(0.5)))) / 3
    assert loss(perfect, perfect) == pytest.approx(best, rel=1e-6)
    for amount in (0.05, 0.5, 5.0):
        disturbed = F.normalize(perfect + amount * unit(2, 6, 8), dim=1)
        assert min(loss(disturbed, perfect), loss(perfect, disturbed), loss(disturbed, disturbed)) > best


@every_head
def test_heads_start_at_the_prior_of_one_positive_to_two_negatives(kind: PairHead) -> None:
    head = PairMatchingHead(kind, 16)
    bias = head.bias if kind == "product" else head.output.bias
    assert torch.sigmoid(bias).item() == pytest.approx(1 / 3)
    if kind == "product":
        image, text = unit(1, 5, 16).float(), unit(2, 5, 16).float()
        cosine = F.cosine_similarity(image, text)
        torch.testing.assert_close(head(image, text), 10 * cosine + np.log(0.5))
        assert all(parameter.ndim < 2 for parameter in head.parameters())
    else:
        assert head.hidden.weight.shape == (16, 64)


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(UserError, match=r"bilinear.*product, mlp"):
        PairMatchingHead("bilinear", 8)  # type: ignore[arg-type]


@every_head
def test_pair_matching_is_fp32_under_bf16_autocast(kind: PairHead) -> None:
    head, negatives = PairMatchingHead(kind, 12), torch.arange(5).roll(1)
    image, text = (unit(seed, 5, 12).float().requires_grad_() for seed in (1, 2))
    inputs = [image, text, *head.parameters()]
    losses = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            assert head(image, text).dtype == torch.float32
            output = pair_matching_loss(image, text, head, text_negatives=negatives, image_negatives=negatives)
        losses.append((output.loss, *torch.autograd.grad(output.loss, inputs)))
    assert all(torch.equal(a, b) for a, b in zip(*losses, strict=True))
    half = pair_matching_loss(
        image.bfloat16(), text.bfloat16(), head, text_negatives=negatives, image_negatives=negatives
    )
    assert half.loss.dtype == torch.float32


@every_head
def test_an_interaction_separates_permuted_negatives_and_the_gradient_reaches_the_embeddings(
    kind: PairHead,
) -> None:
    """Matched pairs are close and negatives permute the batch: a linear map of [z_I; z_T] cannot beat the prior."""
    torch.manual_seed(0)
    width, negatives = 24, torch.arange(64).roll(1)
    common = torch.randn(64, width, generator=generator(5))
    image, text = (
        F.normalize(common + 0.5 * torch.randn(64, width, generator=generator(s)), dim=1).requires_grad_()
        for s in (6, 7)
    )

    class Additive(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(2 * width, 1)

        def forward(self, image: Tensor, text: Tensor) -> Tensor:
            return self.linear(torch.cat([image, text], dim=1)).squeeze(1)

    def train(head: torch.nn.Module) -> float:
        optimizer = torch.optim.Adam(head.parameters(), 2e-2)
        for _ in range(150):
            output = pair_matching_loss(image, text, head, text_negatives=negatives, image_negatives=negatives)
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
        return output.loss.item()

    prior = np.log(3) - 2 / 3 * np.log(2)
    assert train(Additive()) >= prior - 1e-6
    head = PairMatchingHead(kind, width)
    assert train(head) < 0.25 * prior
    output = pair_matching_loss(image, text, head, text_negatives=negatives, image_negatives=negatives)
    assert output.positive_accuracy > 0.95
    assert output.negative_accuracy > 0.95
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in (image, text, *head.parameters()))
