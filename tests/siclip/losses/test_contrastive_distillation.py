"""CLIP, SigLIP, FD, CRD and ICL compared with numpy and scipy, and tested for known minima and invariances."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import open_clip
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from torch import Tensor

from siclip.errors import UserError
from siclip.losses import (
    contrastive_loss,
    contrastive_relational_loss,
    feature_distillation_loss,
    interactive_contrastive_loss,
    siglip_loss,
)

B, D = 7, 12
S, T, C = 1 / 0.07, 60.0, 25.0
SIGLIP_SCALE, SIGLIP_BIAS = 12.0, -8.0


def unit(seed: int, width: int = D, rows: int = B) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(rows, width))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def tensors(*arrays: np.ndarray | float, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.as_tensor(array, dtype=dtype) for array in arrays]


IMAGE, TEXT, TEACHER_IMAGE, TEACHER_TEXT = (unit(seed) for seed in range(4))

# Each entry: the loss on (student image, student text, teacher image, teacher text).
LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "contrastive": lambda i, t, ti, tt: contrastive_loss(i, t, torch.tensor(S)),
    "siglip": lambda i, t, ti, tt: siglip_loss(i, t, torch.tensor(SIGLIP_SCALE), torch.tensor(SIGLIP_BIAS)),
    "feature_distillation": feature_distillation_loss,
    "contrastive_relational": lambda i, t, ti, tt: contrastive_relational_loss(
        i, t, ti, tt, torch.tensor(S), torch.tensor(T)
    ),
    "interactive_contrastive": lambda i, t, ti, tt: interactive_contrastive_loss(i, t, ti, tt, torch.tensor(C)),
}
any_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def cross_entropy(logits: np.ndarray) -> float:
    return float(-np.diag(log_softmax(logits, axis=1)).mean())


def kl_rows(teacher_logits: np.ndarray, logits: np.ndarray) -> float:
    return float(rel_entr(softmax(teacher_logits, axis=1), softmax(logits, axis=1)).sum(axis=1).mean())


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_contrastive_loss_is_the_symmetric_cross_entropy(dtype: torch.dtype, relative: float) -> None:
    expected = (cross_entropy(S * IMAGE @ TEXT.T) + cross_entropy(S * TEXT @ IMAGE.T)) / 2
    assert contrastive_loss(*tensors(IMAGE, TEXT, S, dtype=dtype)).item() == pytest.approx(expected, rel=relative)


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_feature_distillation_is_the_sum_of_two_mean_squares(dtype: torch.dtype, relative: float) -> None:
    expected = (np.square(IMAGE - TEACHER_IMAGE).sum() + np.square(TEXT - TEACHER_TEXT).sum()) / (B * D)
    loss = feature_distillation_loss(*tensors(IMAGE, TEXT, TEACHER_IMAGE, TEACHER_TEXT, dtype=dtype))
    assert loss.item() == pytest.approx(expected, rel=relative)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-11), (torch.float32, 1e-6)])
def test_contrastive_relational_is_kl_from_teacher_to_student(
    temperature: float, dtype: torch.dtype, relative: float
) -> None:
    # CRD compares similarities, so the widths may differ.
    wide_image, wide_text = unit(8, 20), unit(9, 20)
    student, teacher = S * IMAGE @ TEXT.T / temperature, T * wide_image @ wide_text.T / temperature
    expected = temperature**2 * (kl_rows(teacher, student) + kl_rows(teacher.T, student.T)) / 2
    reverse = temperature**2 * (kl_rows(student, teacher) + kl_rows(student.T, teacher.T)) / 2
    loss = contrastive_relational_loss(
        *tensors(IMAGE, TEXT, wide_image, wide_text, S, T, dtype=dtype), temperature=temperature
    ).item()
    assert loss == pytest.approx(expected, rel=relative)
    assert loss != pytest.approx(reverse, rel=1e-2)


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_interactive_contrastive_crosses_student_and_teacher(dtype: torch.dtype, relative: float) -> None:
    expected = (cross_entropy(C * IMAGE @ TEACHER_TEXT.T) + cross_entropy(C * TEXT @ TEACHER_IMAGE.T)) / 2
    loss = interactive_contrastive_loss(*tensors(IMAGE, TEXT, TEACHER_IMAGE, TEACHER_TEXT, C, dtype=dtype)).item()
    assert loss == pytest.approx(expected, rel=relative)


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_siglip_is_a_binary_cross_entropy_over_all_pairs(dtype: torch.dtype, relative: float) -> None:
    expected = 0.0
    for i in range(B):
        for j in range(B):
            logit = SIGLIP_SCALE * float(IMAGE[i] @ TEXT[j]) + SIGLIP_BIAS
            expected += np.log1p(np.exp(-logit if i == j else logit)) / B
    batch = tensors(IMAGE, TEXT, SIGLIP_SCALE, SIGLIP_BIAS, dtype=dtype)
    loss = siglip_loss(*batch).item()
    assert loss == pytest.approx(expected, rel=relative)
    assert loss == pytest.approx(open_clip.loss.SigLipLoss()(*batch).item(), rel=relative)


@pytest.mark.parametrize("name", ["contrastive", "interactive_contrastive"])
def test_a_perfect_match_is_the_minimum_of_a_contrastive_loss(name: str) -> None:
    """Pairs at the corners of a simplex, with cosine −1/(B−1) between any two, are the global minimum.

    It is ln(1 + (B−1)·exp(−s·B/(B−1))) (arXiv 2011.11619); any perturbation increases the loss.
    """
    (best_pairs,) = tensors(np.eye(B, D) - (np.arange(D) < B) / B)
    corner = torch.nn.functional.normalize(best_pairs, dim=1)
    scale = {"contrastive": S, "interactive_contrastive": C}[name]
    best = LOSSES[name](corner, corner, corner, corner)
    assert best.item() == pytest.approx(np.log1p((B - 1) * np.exp(-scale * B / (B - 1))), rel=1e-6)
    (other,) = tensors(unit(5))
    for amount in (0.05, 0.5, 5.0):
        disturbed = torch.nn.functional.normalize(corner + amount * other, dim=1)
        assert LOSSES[name](disturbed, corner, corner, corner) > best
        assert LOSSES[name](corner, disturbed, corner, corner) > best


def test_a_perfect_match_is_the_minimum_of_siglip() -> None:
    """With matched cosines of 1 the other cosines sum to at least −B, and the loss is convex in each.

    The minimum is therefore a simplex, with all of them at −1/(B−1). At this scale, lower matched cosines do not
    reduce the loss (arXiv 2402.12613).
    """
    (best_pairs,) = tensors(np.eye(B, D) - (np.arange(D) < B) / B)
    corner = torch.nn.functional.normalize(best_pairs, dim=1)
    best = LOSSES["siglip"](corner, corner, corner, corner)
    matched = np.log1p(np.exp(-SIGLIP_SCALE - SIGLIP_BIAS))
    others = (B - 1) * np.log1p(np.exp(-SIGLIP_SCALE / (B - 1) + SIGLIP_BIAS))
    assert best.item() == pytest.approx(matched + others, rel=1e-6)
    (other,) = tensors(unit(5))
    for amount in (0.05, 0.5, 5.0):
        disturbed = torch.nn.functional.normalize(corner + amount * other, dim=1)
        for image, text in ((disturbed, corner), (corner, disturbed), (disturbed, disturbed)):
            assert LOSSES["siglip"](image, text, corner, corner) > best


@pytest.mark.parametrize("name", ["feature_distillation", "contrastive_relational"])
def test_a_student_equal_to_its_teacher_has_zero_loss_and_gradient(name: str) -> None:
    image, text = (x.requires_grad_() for x in tensors(IMAGE, TEXT))
    if name == "feature_distillation":
        loss = feature_distillation_loss(image, text, image, text)
    else:
        loss = contrastive_relational_loss(image, text, image, text, torch.tensor(S), torch.tensor(S))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-14)
    for x in (image, text):
        assert x.grad is not None
        assert x.grad.abs().max() < 1e-14


@any_loss
def test_the_order_of_the_batch_does_not_matter(loss: Callable[..., Tensor]) -> None:
    order = torch.randperm(B, generator=torch.Generator().manual_seed(3))
    batch = tensors(IMAGE, TEXT, TEACHER_IMAGE, TEACHER_TEXT)
    assert loss(*[x[order] for x in batch]).item() == pytest.approx(loss(*batch).item(), rel=1e-12)


@any_loss
def test_a_broken_pairing_changes_the_loss(loss: Callable[..., Tensor]) -> None:
    """Shows that the test above can fail: shuffling one modality gives another batch."""
    image, text, teacher_image, teacher_text = tensors(IMAGE, TEXT, TEACHER_IMAGE, TEACHER_TEXT)
    paired, broken = (loss(image, t, teacher_image, teacher_text) for t in (text, text.roll(1, dims=0)))
    assert abs(paired - broken) > 1e-3


@any_loss
def test_everything_is_fp32_under_bf16_autocast(loss: Callable[..., Tensor]) -> None:
    batch = tensors(IMAGE, TEXT, TEACHER_IMAGE, TEACHER_TEXT, dtype=torch.float32)
    student = [x.clone().requires_grad_() for x in batch[:2]]
    plain = loss(*student, *batch[2:])
    plain_grad = torch.autograd.grad(plain, student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (batch[0] @ batch[1].T).dtype == torch.bfloat16
        under = loss(*student, *batch[2:])
    assert under.dtype == torch.float32
    assert torch.equal(under, plain)
    for a, b in zip(torch.autograd.grad(under, student), plain_grad, strict=True):
        assert torch.equal(a, b)


@any_loss
def test_bf16_embeddings_are_processed_in_fp32(loss: Callable[..., Tensor]) -> None:
    batch = tensors(IMAGE, TEXT, TEACHER_IMAGE, TEACHER_TEXT, dtype=torch.bfloat16)
    assert torch.equal(loss(*batch), loss(*[x.float() for x in batch]))
    mixed = loss(batch[0].double(), batch[1], batch[2], batch[3].float())
    assert mixed.item() == pytest.approx(loss(*[x.double() for x in batch]).item(), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES.keys())
def test_gradients_are_exact_and_do_not_reach_the_teacher(name: str) -> None:
    batch = [x.requires_grad_() for x in tensors(IMAGE, TEXT, TEACHER_IMAGE, TEACHER_TEXT)]
    assert torch.autograd.gradcheck(lambda i, t: LOSSES[name](i, t, *batch[2:]), tuple(batch[:2]))
    LOSSES[name](*batch).backward()
    assert all(x.grad is not None and x.grad.abs().max() > 0 for x in batch[:2])
    assert all(x.grad is None for x in batch[2:])


def test_the_logit_scales_get_gradients_and_the_teachers_does_not() -> None:
    batch = tensors(IMAGE, TEXT, TEACHER_IMAGE, TEACHER_TEXT)
    scale, teacher_scale = (torch.tensor(v, requires_grad=True) for v in (S, T))
    contrastive_relational_loss(*batch, scale, teacher_scale).backward()
    assert scale.grad is not None
    assert scale.grad != 0
    assert teacher_scale.grad is None


def test_feature_distillation_refuses_other_widths_and_never_broadcasts() -> None:
    image, text = tensors(IMAGE, TEXT)
    with pytest.raises(UserError, match=r"image embeddings have shape \(7, 12\).*\(1, 12\).*project"):
        feature_distillation_loss(image, text, image[:1], text)
    with pytest.raises(UserError, match="text embeddings have shape"):
        feature_distillation_loss(image, text, image, text[:, :6])


def test_a_temperature_of_zero_is_refused() -> None:
    batch = tensors(IMAGE, TEXT, TEACHER_IMAGE, TEACHER_TEXT, S, T)
    with pytest.raises(UserError, match="temperature"):
        contrastive_relational_loss(*batch, temperature=0.0)
