from __future__ import annotations

import pytest
import torch

from siclip.checkpoints.inherit import inherit
from siclip.errors import UserError
from siclip.models import Clip, count_parameters, create_model
from siclip.teachers import Teacher


@pytest.fixture
def teacher() -> Clip:
    torch.manual_seed(1)
    return create_model("mobileclip-nano")


def test_everything_outside_the_sasp_blocks_is_the_teachers(teacher: Clip) -> None:
    student = create_model("siclip-nano")
    report = inherit(student, teacher)
    theirs = teacher.state_dict()
    for name, value in student.state_dict().items():
        in_block = ".stages.2.blocks." in name or any(f"text_encoder.transformer.{i}." in name for i in (1, 2, 3, 4))
        assert in_block != (name in report.copied)
        if not in_block:
            assert torch.equal(value, theirs[name])
    assert report.trainable_parameters + report.frozen_parameters == count_parameters(student)


def test_the_ffn_of_a_sasp_block_starts_from_the_teachers(teacher: Clip) -> None:
    student = create_model("siclip-nano", text_sharing="none")
    inherit(student, teacher)
    for i in (1, 2, 3, 4):
        block, origin = student.text_encoder.transformer[i], teacher.text_encoder.transformer[i]
        assert torch.equal(block.mlp[0].weight, origin.pre_norm_ffn[1].weight)
        assert torch.equal(block.mlp[2].bias, origin.pre_norm_ffn[4].bias)
        assert block.mlp[0].weight.requires_grad
    image, origin = student.image_encoder.blocks[1], teacher.image_encoder.blocks[1]
    assert torch.equal(image.mlp.fc1.weight, origin.mlp.fc1.weight)


def test_frozen_batch_norms_stay_in_eval_whatever_train_says(teacher: Clip) -> None:
    student = create_model("siclip-nano")
    inherit(student, teacher)
    student.train()
    norms = {m for m in student.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    frozen = {m for m in norms if not m.weight.requires_grad}
    assert frozen and norms - frozen
    assert not any(m.training for m in frozen)
    assert all(m.training for m in norms - frozen)


def test_freezing_everything_is_refused(teacher: Clip) -> None:
    with pytest.raises(UserError, match="nothing is left to train"):
        inherit(create_model("mobileclip-nano"), teacher)


@pytest.mark.parametrize("change", [{"text": {"mixer_kernel": 5}}, {"embed_dim": 64}])
def test_a_teacher_of_another_structure_is_refused(teacher: Clip, change: dict) -> None:
    with pytest.raises(UserError, match=r"cannot inherit from a checkpoint of 'mobileclip-nano'.*in the teacher"):
        inherit(create_model("siclip-nano", **change), teacher)


def test_a_shared_ffn_starts_from_the_first_block_that_uses_it(teacher: Clip) -> None:
    student = create_model("siclip-nano", text_sharing="mlp:0-0-1-1")
    inherit(student, teacher)
    ours, theirs = student.text_encoder.blocks, teacher.text_encoder.blocks
    for block, origin in ((0, 0), (1, 0), (2, 2), (3, 2)):
        assert torch.equal(ours[block].mlp[0].weight, theirs[origin].pre_norm_ffn[1].weight)


def test_a_frozen_trunk_is_shared_and_gives_the_online_teachers_embeddings(teacher: Clip) -> None:
    student = create_model("siclip-nano")
    inherit(student, teacher)
    images, tokens = torch.rand(4, 3, 64, 64), torch.randint(1, 400, (4, 20))
    shared = Teacher(teacher, student)
    assert shared.shares_trunk
    student.train()
    embeddings = shared.embed(images, tokens, student.trunk(images, tokens))
    image, text = teacher.eval()(images, tokens)
    torch.testing.assert_close(embeddings.image, image)
    torch.testing.assert_close(embeddings.text, text)


def test_a_trunk_that_trains_or_differs_is_not_shared(teacher: Clip) -> None:
    student = create_model("siclip-nano")
    inherit(student, teacher, freeze=False)
    assert not Teacher(teacher, student).shares_trunk
    inherit(student, teacher, freeze=True)
    with torch.no_grad():
        teacher.text_encoder.embedding_layer.weight[0, 0] += 1
    assert not Teacher(teacher, student).shares_trunk
