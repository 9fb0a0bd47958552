"""Gradient caching and the shared trunk are exact: compared with autograd on the whole batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import siclip
from siclip.config import LossConfig
from siclip.data.batch import Batch, Negatives, TrunkFeatures, to_float_images
from siclip.errors import UserError
from siclip.losses import Embeddings, GeneratedTexts, Objective, PairIds
from siclip.models import Clip, create_model
from siclip.models.registry import base_of
from siclip.teachers import ModelTeacher
from siclip.training.step import Step, trunk_features

EVERYTHING = LossConfig(pair_matching=0.5, pair_head="mlp", negatives="sampled", false_negative_similarity=1.0)
GENERATED = EVERYTHING.model_copy(
    update={"generated_columns": "batch", "generated_hinge": 0.5, "generated_share": 0.5, "teacher_mask": "on"}
)
SIZE, FALSE = 24, 2


def batch(size: int = SIZE) -> Batch:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(1, 400, (size, 20), generator=generator)
    ids = torch.arange(size)
    images = torch.randint(0, 256, (size, 64, 64, 3), generator=generator, dtype=torch.uint8)
    return Batch(images, tokens, ids, ids // 2)


def with_negatives(data: Batch) -> Batch:
    """The batch with two false captions of each sample; every third sample has one only."""
    tokens = torch.randint(1, 400, (len(data), FALSE, 20), generator=torch.Generator().manual_seed(6))
    kinds = torch.arange(len(data) * FALSE).view(len(data), FALSE) % 8
    kinds[::3, 1] = -1
    return replace(data, negatives=Negatives(tokens, 1000 + kinds, kinds))


def pair(freeze: str = "inherited", name: str = "siclip-nano") -> tuple[Clip, Clip]:
    torch.manual_seed(3)
    teacher = create_model(base_of(name)).eval()
    student = create_model(name)
    siclip.inherit(student, teacher, freeze)
    # Otherwise attention is uniform at the start and has no effect.
    for key, parameter in student.named_parameters():
        if key.endswith("query.weight"):
            nn.init.normal_(parameter, std=0.2)
    return student.eval(), teacher


def objective(loss: LossConfig = EVERYTHING) -> Objective:
    torch.manual_seed(4)
    return Objective(loss, 128, (128, 128))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(9)


def whole_batch_gradients(student: Clip, teacher: Clip, head: Objective, data: Batch) -> dict[str, Tensor]:
    """The plain computation: one forward pass of everything with an online teacher, and one backward pass."""
    images = to_float_images(data.images)
    image, text = student(images, data.tokens)
    with torch.no_grad():
        theirs = teacher(images, data.tokens)
    target = Embeddings(image=theirs[0], text=theirs[1], logit_scale=teacher.scale().detach())
    own = Embeddings(image=image, text=text, logit_scale=student.scale())
    false = None
    if data.negatives is not None:
        encoded = student.encode_text(data.negatives.tokens.flatten(0, 1), normalize=True)
        false = GeneratedTexts(encoded.view(len(data), FALSE, -1), data.negatives.ids, data.negatives.kinds)
    parts = head(own, target, PairIds(data.image_ids, data.caption_ids), generator(), generated=false)
    parts["loss"].backward()
    return gradients(student, head) | {"loss": parts["loss"].detach()}


def gradients(*modules: nn.Module) -> dict[str, Tensor]:
    found = {
        f"{i}.{name}": p.grad.clone()
        for i, module in enumerate(modules)
        for name, p in module.named_parameters()
        if p.grad is not None
    }
    for module in modules:
        module.zero_grad()
    return found


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """The whole gradient agrees to 1e-5 relative, each tensor to 1e-4, because some nearly cancel."""
    assert ours.keys() == theirs.keys()
    assert torch.allclose(ours.pop("loss"), theirs["loss"], rtol=1e-5, atol=0)
    whole = torch.cat([theirs[name].flatten() for name in ours]).norm()
    difference = torch.cat([(ours[name] - theirs[name]).flatten() for name in ours]).norm()
    assert difference / whole < 1e-5
    for name, value in ours.items():
        error = (value - theirs[name]).norm() / max(theirs[name].norm(), 1e-3 * whole)
        assert error < 1e-4, f"{name}: {error:.1e}"


@pytest.mark.parametrize(
    ("name", "freeze", "micro"),
    [
        *(("siclip-nano", freeze, micro) for freeze in ("inherited", "none") for micro in (0, 2, 4, 8, SIZE)),
        ("siclip2-nano", "inherited", 4),
    ],
)
def test_micro_batches_have_the_whole_batchs_gradients(name: str, freeze: str, micro: int) -> None:
    student, teacher = pair(freeze, name)
    head = objective()
    expected = whole_batch_gradients(student, teacher, head, batch())
    parts = Step(student, head, ModelTeacher(teacher, student), micro).gradients(batch(), generator())
    assert_same(gradients(student, head) | {"loss": parts["loss"].detach()}, expected)


@pytest.mark.parametrize(("freeze", "micro"), [("inherited", 0), ("inherited", 8), ("none", 8)])
def test_generated_false_captions_have_the_whole_batchs_gradients(freeze: str, micro: int) -> None:
    student, teacher = pair(freeze)
    head, data = objective(GENERATED), with_negatives(batch())
    expected = whole_batch_gradients(student, teacher, head, data)
    parts = Step(student, head, ModelTeacher(teacher, student), micro).gradients(data, generator())
    assert_same(gradients(student, head) | {"loss": parts["loss"].detach()}, expected)


def test_generated_false_captions_beside_stored_features_are_rounded_like_them() -> None:
    """Compared with a run from images whose false captions equal the true ones: their embeddings are the same."""
    student, teacher = pair()
    data = batch()
    false = Negatives(data.tokens[:, None], data.caption_ids[:, None] + 100, torch.zeros(SIZE, 1, dtype=torch.int64))
    features = trunk_features(student, data)
    rounded = TrunkFeatures(features.image.bfloat16(), features.text.bfloat16())
    stored = replace(data, images=None, features=rounded, negatives=false)
    forward = Step(student, objective(GENERATED), ModelTeacher(teacher, student), 8).forward(stored, generator())
    assert forward.negatives is not None
    torch.testing.assert_close(forward.negatives[:, 0], forward.text, rtol=0, atol=1e-6)


def test_texts_that_no_part_uses_are_not_encoded() -> None:
    student, teacher = pair()
    seen: list[int] = []
    student.text_encoder.transformer[1].register_forward_hook(lambda block, inputs, out: seen.append(len(out)))
    step = Step(student, objective(), ModelTeacher(teacher, student))
    plain = step.gradients(batch(), generator())["loss"]
    beside = step.gradients(with_negatives(batch()), generator())["loss"]
    assert torch.equal(plain, beside)
    assert set(seen) == {SIZE}


def test_a_shared_trunk_has_the_online_teachers_loss_and_gradients() -> None:
    student, teacher = pair()
    head = objective()
    shared = ModelTeacher(teacher, student)
    assert shared.shares == {"image": True, "text": True}
    expected = whole_batch_gradients(student, teacher, head, batch())
    parts = Step(student, head, shared).gradients(batch(), generator())
    assert_same(gradients(student, head) | {"loss": parts["loss"].detach()}, expected)


def test_stored_features_have_the_same_gradients_without_images() -> None:
    student, teacher = pair()
    head = objective()
    data = batch()
    expected = whole_batch_gradients(student, teacher, head, data)
    stored = Batch(None, data.tokens, data.image_ids, data.caption_ids, features=trunk_features(student, data))
    parts = Step(student, head, ModelTeacher(teacher, student), 8).gradients(stored, generator())
    assert_same(gradients(student, head) | {"loss": parts["loss"].detach()}, expected)


def test_under_bf16_autocast_micro_batches_are_as_close_to_fp32_as_the_whole_batch() -> None:
    """bf16 rounds each weight gradient to 2⁻⁹ in any computation, so both are compared with fp32."""
    student, teacher = pair()
    head = objective()
    truth = whole_batch_gradients(student, teacher, head, batch())
    errors: dict[int, float] = {}
    losses: dict[int, Tensor] = {}
    for micro in (0, 8):
        step = Step(
            student, head, ModelTeacher(teacher, student), micro, lambda: torch.autocast("cpu", torch.bfloat16)
        )
        losses[micro] = step.gradients(batch(), generator())["loss"].detach()
        found = gradients(student, head)
        difference = torch.cat([(found[name] - truth[name]).flatten() for name in found])
        errors[micro] = float(difference.norm() / torch.cat([truth[name].flatten() for name in found]).norm())
    assert 1e-4 < errors[0] < 0.2
    assert errors[8] < 1.5 * errors[0]
    torch.testing.assert_close(losses[8], losses[0], rtol=2e-3, atol=0)


class Dropping(nn.Module):
    """A stochastic layer that is inserted before a block."""

    def __init__(self, block: nn.Module, masks: list[Tensor]) -> None:
        super().__init__()
        self.block, self.masks = block, masks

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        mask = (torch.rand_like(x) > 0.2).to(x.dtype)
        self.masks.append(mask)
        out: Tensor = self.block(x * mask, *rest)
        return out


def test_a_stochastic_layer_sees_the_same_mask_twice() -> None:
    student, teacher = pair()
    masks: list[Tensor] = []
    student.text_encoder.transformer[1] = Dropping(student.text_encoder.transformer[1], masks)
    Step(student, objective(), ModelTeacher(teacher, student), 8).gradients(batch(), generator())
    # All micro-batches except the last in one pass, which is undone, then one at a time.
    together, *first, last = masks[:4]
    assert len(masks) == 6 and len(together) == 16 and torch.equal(together[:8], first[0])
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(masks[4:]), strict=True))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], last)


def test_stored_features_of_a_trunk_that_trains_are_refused() -> None:
    student, _ = pair("none")
    data = batch()
    stored = Batch(
        None,
        data.tokens,
        data.image_ids,
        data.caption_ids,
        features=student.trunk(to_float_images(data.images), data.tokens),
    )
    with pytest.raises(UserError, match="this one trains"):
        trunk_features(student, stored)
