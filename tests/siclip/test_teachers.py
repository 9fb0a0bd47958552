"""Teachers compared with plain computations: a full forward pass, stored embeddings, an explicit average."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from siclip.checkpoints.inherit import freeze_inherited, inherit
from siclip.config import LossConfig, TrainingConfig
from siclip.data.batch import Batch, to_float_images
from siclip.errors import UserError
from siclip.losses import Embeddings, Objective, PairIds
from siclip.models import Clip, create_model, model_config
from siclip.teachers import ModelTeacher, StoredTeacher, TeacherEnsemble
from siclip.tokenizer import tokenize
from siclip.training.setup import make_trainer
from siclip.training.step import Step, trunk_features

CAPTIONS = (
    "a dog",
    "two red cars, parked!",
    "a photo of a small brown dog that runs after a ball on the beach at sunset in summer",
    "an old wooden boat, painted blue and white, lies upside down on the sand under a grey sky",
)


def batch(context: int = 20) -> Batch:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (4, 64, 64, 3), generator=generator, dtype=torch.uint8)
    ids = torch.arange(4)
    return Batch(images, tokenize(CAPTIONS, context), ids, ids)


def floats(data: Batch) -> Tensor:
    assert data.images is not None
    return to_float_images(data.images)


def nano(seed: int = 3) -> Clip:
    torch.manual_seed(seed)
    return create_model("mobileclip-nano").eval()


def inheriting(teacher: Clip) -> Clip:
    student = create_model("siclip-nano")
    inherit(student, teacher)
    return student.eval()


def short(teacher: Clip) -> Clip:
    """A student with a context of 12 and the teacher's image trunk; both its trunks are frozen."""
    torch.manual_seed(4)
    student = create_model("siclip-nano", text={"context_length": 12})
    for ours, theirs in zip(
        student.image_encoder.trunk_modules(), teacher.image_encoder.trunk_modules(), strict=True
    ):
        ours.load_state_dict(theirs.state_dict())
    freeze_inherited(student, "before_sasp")
    return student.eval()


def assert_embeddings(ours: Embeddings, image: Tensor, text: Tensor) -> None:
    torch.testing.assert_close(ours.image, image, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.text, text, rtol=1e-5, atol=1e-6)


# Siclip models


def test_each_tower_shares_its_trunk_if_it_is_the_same_and_frozen() -> None:
    teacher = nano()
    student = inheriting(teacher)
    shared = ModelTeacher(teacher, student)
    assert shared.shares == {"image": True, "text": True}
    assert ModelTeacher(teacher, short(teacher)).shares == {"image": True, "text": False}
    assert ModelTeacher(teacher, create_model("siclip-nano")).shares == {"image": False, "text": False}
    with torch.no_grad():
        student.text_encoder.embedding_layer.weight[7, 7] += 1e-6
    shared.follow(student)
    assert shared.shares == {"image": True, "text": False}
    next(student.image_encoder.model.stem.parameters()).requires_grad_(True)
    shared.follow(student)
    assert shared.shares == {"image": False, "text": False}


def test_a_shared_trunk_is_not_run_again_and_has_the_teachers_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, data = nano(), batch()
    student = inheriting(teacher)
    image, text = teacher(floats(data), data.tokens)
    shared, features = ModelTeacher(teacher, student), trunk_features(student, data)
    assert_embeddings(shared.embed(data, None), image, text)
    monkeypatch.setattr(teacher.image_encoder, "trunk", None)
    monkeypatch.setattr(teacher.text_encoder, "trunk", None)
    ours = shared.embed(data, features)
    assert_embeddings(ours, image, text)
    assert ours.logit_scale == teacher.scale() and not ours.logit_scale.requires_grad


def test_a_student_with_a_shorter_context_gets_truncated_tokens_and_the_teacher_all() -> None:
    teacher = nano()
    student, data = short(teacher), batch()
    objective = Objective(LossConfig(), 128, (128, 128))
    with torch.no_grad():
        theirs = teacher(floats(data), data.tokens)
    own = student(floats(data), tokenize(CAPTIONS, 12))
    parts = objective(
        Embeddings(image=own[0], text=own[1], logit_scale=student.scale()),
        Embeddings(image=theirs[0], text=theirs[1], logit_scale=teacher.scale()),
        PairIds(data.image_ids, data.caption_ids),
        torch.Generator(),
    )
    parts["loss"].backward()
    expected = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    for micro_batch_size in (0, 2):
        student.zero_grad()
        step = Step(student, objective, ModelTeacher(teacher, student), micro_batch_size)
        loss = step.gradients(data, torch.Generator())["loss"]
        torch.testing.assert_close(loss, parts["loss"], rtol=1e-5, atol=0)
        for name, parameter in student.named_parameters():
            if name in expected:
                assert parameter.grad is not None
                assert (parameter.grad - expected[name]).norm() < 1e-4 * expected[name].norm() + 1e-5, name


def test_a_teacher_with_a_shorter_context_than_the_batch_gets_truncated_tokens() -> None:
    teacher, data = nano(), batch(context=77)
    image, text = teacher(floats(data), tokenize(CAPTIONS, 20))
    assert_embeddings(ModelTeacher(teacher, create_model("siclip-nano")).embed(data, None), image, text)


def test_stored_features_suffice_only_for_a_shared_trunk() -> None:
    teacher, data = nano(), batch()
    student = inheriting(teacher)
    image, text = teacher(floats(data), data.tokens)
    features = trunk_features(student, data)
    stored = replace(data, images=None, features=features)
    assert_embeddings(ModelTeacher(teacher, student).embed(stored, features), image, text)
    with pytest.raises(UserError, match=r"no images, .*store the teacher's embeddings"):
        ModelTeacher(nano(seed=8), student).embed(stored, features)


def test_the_trainer_determines_what_its_student_shares() -> None:
    """With a teacher that was created for another student."""
    teacher = nano()
    source = ModelTeacher(teacher, inheriting(teacher))
    training = TrainingConfig(steps=1, warmup_steps=0, precision="fp32", batch_size=4)
    make_trainer(model_config("siclip-nano"), LossConfig(), training, distil_from=source, device=torch.device("cpu"))
    assert source.shares == {"image": False, "text": False}


# Stored embeddings, several teachers


def test_stored_embeddings_are_those_of_the_model_that_made_them() -> None:
    teacher, data = nano(), batch()
    made = ModelTeacher(teacher, create_model("siclip-nano")).embed(data, None)
    half = [e.to(torch.bfloat16) for e in (made.image, made.text)]
    source = StoredTeacher((128, 128), float(made.logit_scale))
    exact = source.embed(replace(data, images=None, teacher_image=made.image, teacher_text=made.text), None)
    assert_embeddings(exact, made.image, made.text)
    torch.testing.assert_close(exact.logit_scale, made.logit_scale)
    rounded = source.embed(replace(data, teacher_image=half[0], teacher_text=half[1]), None)
    torch.testing.assert_close(rounded.image.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(rounded.text, made.text, rtol=0, atol=2**-8)
    with pytest.raises(UserError, match="this dataset has none"):
        source.embed(data, None)


def several() -> tuple[list[Embeddings], Batch, TeacherEnsemble]:
    """A siclip model of width 128, stored embeddings of width 48, and both as an ensemble."""
    data = batch()
    stored = [F.normalize(torch.randn(4, 48, generator=torch.Generator().manual_seed(i)), dim=1) for i in (1, 2)]
    data = replace(data, teacher_image=stored[0], teacher_text=stored[1])
    teachers = [ModelTeacher(nano(), create_model("siclip-nano")), StoredTeacher((48, 48), 40.0)]
    return [teacher.embed(data, None) for teacher in teachers], data, TeacherEnsemble(teachers)


def test_an_ensembles_cosines_are_the_means_of_its_members() -> None:
    members, data, ensemble = several()
    ours = ensemble.embed(data, None)
    assert ensemble.widths == (176, 176) == (ours.image.shape[1], ours.text.shape[1])
    for embeddings in (ours.image, ours.text):
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(ours.image @ ours.text.T, sum(m.image @ m.text.T for m in members) / 2)
    torch.testing.assert_close(ours.text @ ours.text.T, sum(m.text @ m.text.T for m in members) / 2)
    assert float(ours.logit_scale) == pytest.approx(math.sqrt(40.0 * float(members[0].logit_scale)), rel=1e-6)


def test_an_ensemble_is_distilled_through_a_projection_to_its_width() -> None:
    members, data, ensemble = several()
    loss = LossConfig(contrastive=0, feature_distillation=1, contrastive_relational=0, interactive_contrastive=0)
    student, objective = create_model("siclip-nano").eval(), Objective(loss, 128, ensemble.widths)
    own = student(floats(data), data.tokens)
    expected = 0.0
    for z, projection, targets in (
        (own[0], objective.image_projection, [m.image for m in members]),
        (own[1], objective.text_projection, [m.text for m in members]),
    ):
        assert projection is not None
        target = torch.cat(targets, dim=1) / math.sqrt(2)
        expected += float((F.normalize(z @ projection.weight.T, dim=1) - target).square().mean().detach())
    parts = Step(student, objective, ensemble).gradients(data, torch.Generator())
    assert float(parts["loss"].detach()) == pytest.approx(expected, rel=1e-5)
    assert all(p.grad is not None and p.grad.norm() > 0 for p in objective.parameters())


def test_an_empty_ensemble_is_refused() -> None:
    with pytest.raises(UserError, match="at least one teacher"):
        TeacherEnsemble([])
