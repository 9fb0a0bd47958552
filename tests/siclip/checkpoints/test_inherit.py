from __future__ import annotations

import pytest
import torch

from siclip.checkpoints.inherit import freeze_inherited, inherit
from siclip.config import FreezePolicy
from siclip.data.batch import Batch
from siclip.errors import UserError
from siclip.models import Clip, count_parameters, create_model
from siclip.models.sasp import SasPBlock
from siclip.teachers import ModelTeacher


@pytest.fixture
def teacher() -> Clip:
    torch.manual_seed(1)
    return create_model("mobileclip-nano")


@pytest.fixture
def second() -> Clip:
    """A teacher with a plain text tower, in which the projection's bias is not zero."""
    torch.manual_seed(2)
    model = create_model("mobileclip2-nano")
    torch.nn.init.normal_(model.image_encoder.model.head.fc.bias)
    return model


BOTH = pytest.mark.parametrize(("base", "name"), [("teacher", "siclip-nano"), ("second", "siclip2-nano")])


@BOTH
def test_everything_outside_the_sasp_blocks_is_the_teachers(
    base: str, name: str, request: pytest.FixtureRequest
) -> None:
    teacher, student = request.getfixturevalue(base), create_model(name)
    report = inherit(student, teacher)
    theirs = teacher.state_dict()
    blocks = range(1, 5) if base == "teacher" else range(12)
    for key, value in student.state_dict().items():
        in_block = ".stages.2.blocks." in key or any(f"text_encoder.transformer.{i}." in key for i in blocks)
        assert in_block != (key in report.names("copied"))
        if not in_block:
            assert torch.equal(value, theirs[key])


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


def test_frozen_batch_norms_stay_in_eval_mode_after_train(teacher: Clip) -> None:
    for policy in ("inherited", "before_sasp"):
        student = create_model("siclip-nano")
        inherit(student, teacher, policy)
        student.train()
        norms = {m for m in student.modules() if isinstance(m, torch.nn.BatchNorm2d)}
        frozen = {m for m in norms if not m.weight.requires_grad}
        assert frozen and norms - frozen
        assert not any(m.training for m in frozen)
        assert all(m.training for m in norms - frozen)


def test_the_ffns_and_positions_of_a_plain_text_tower_are_inherited(second: Clip) -> None:
    student = create_model("siclip2-nano", text={"context_length": 12})
    report = inherit(student, second)
    for ours, theirs in zip(student.text_encoder.blocks, second.text_encoder.blocks, strict=True):
        assert torch.equal(ours.mlp[0].weight, theirs.pre_norm_ffn[1].weight)
        assert torch.equal(ours.mlp[2].bias, theirs.pre_norm_ffn[4].bias)
    positions = student.text_encoder.positional_embedding(12)
    assert torch.equal(positions, second.text_encoder.positional_embedding(20)[:, :12])
    assert not student.image_encoder.model.head.fc.bias.requires_grad
    counted = report.parameters("copied") + report.parameters("started") + report.parameters("fresh")
    assert counted == count_parameters(student)
    assert {name for name in trained_names(student) if "text" in name} == {
        name for name in names_in_sasp_blocks(student) if "text" in name
    }


def test_a_teacher_with_another_text_tower_is_refused(teacher: Clip, second: Clip) -> None:
    message = "4 blocks between RepMixers, the teacher's 12 blocks without RepMixers; name a checkpoint of "
    with pytest.raises(UserError, match=f"{message}mobileclip-nano, or train siclip2-nano"):
        inherit(create_model("siclip-nano"), second)
    with pytest.raises(UserError, match="12 blocks without RepMixers, the teacher's 4 blocks between RepMixers"):
        inherit(create_model("siclip2-nano"), teacher)


def trained_names(model: Clip) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def names_in_sasp_blocks(model: Clip) -> set[str]:
    inside = {id(p) for m in model.modules() if isinstance(m, SasPBlock) for p in m.parameters()}
    return {name for name, p in model.named_parameters() if id(p) in inside}


def names_before_the_blocks(model: Clip) -> set[str]:
    """Names of the parameters that a gradient from the trunk's output reaches."""
    features = model.trunk(torch.rand(2, 3, 64, 64), torch.randint(1, 400, (2, 20)))
    (features.image.sum() + features.text.sum()).backward()
    return {name for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("text_block", ["sasp", "attention"])
def test_each_policy_freezes_its_parameters(teacher: Clip, text_block: str) -> None:
    text = {} if text_block == "sasp" else {"block": "attention", "sharing": "none"}

    def trained(policy: FreezePolicy) -> set[str]:
        student = create_model("siclip-nano", text=text)
        report = inherit(student, teacher, policy)
        assert set(report.frozen) == everything - trained_names(student)
        return trained_names(student)

    model = create_model("siclip-nano", text=text)
    everything, before = trained_names(model), names_before_the_blocks(model)
    assert trained("none") == everything
    assert trained("before_sasp") == everything - before
    assert trained("inherited") == names_in_sasp_blocks(model) | {"logit_scale"}
    assert ("text_encoder.transformer.1.pre_norm_mha.0.weight" in everything - before) == (text_block == "attention")


@pytest.mark.parametrize("policy", ["inherited", "before_sasp", "none"])
@pytest.mark.parametrize(
    "change",
    [
        {"text_sharing": "mlp:0-0-1-1", "image": {"sasp": {"ffn": "plain"}}},
        {"image_sharing": "block:0-0", "text_sharing": "none", "text": {"sasp": {"first_value": True}}},
        {"image": {"sasp": {"trainable_gains": False}}, "text": {"sasp": {"trainable_gains": False}}},
    ],
)
def test_freezing_by_structure_alone_equals_what_inherit_freezes(
    teacher: Clip, policy: FreezePolicy, change: dict
) -> None:
    with_teacher, alone = create_model("siclip-nano", **change), create_model("siclip-nano", **change)
    report = inherit(with_teacher, teacher, policy)
    assert freeze_inherited(alone, policy) == report.frozen
    assert trained_names(alone) == trained_names(with_teacher)
    if policy == "inherited":
        weights = {name for name, _ in with_teacher.named_parameters()}
        assert set(report.frozen) == set(report.names("copied")) & weights - {"logit_scale"}


@pytest.mark.parametrize("policy", ["inherited", "before_sasp", "none"])
def test_fixed_gains_do_not_train_under_any_policy(teacher: Clip, policy: FreezePolicy) -> None:
    student = create_model("siclip-nano", text={"sasp": {"trainable_gains": False}})
    report = inherit(student, teacher, policy)
    gains = {name for name in names_in_sasp_blocks(student) if "text" in name and name.count(".") == 3}
    assert len(gains) == 4 * 5
    assert not gains & (trained_names(student) | set(report.frozen))


def test_an_unknown_policy_is_refused(teacher: Clip) -> None:
    with pytest.raises(UserError, match="'all' is not a policy: choose one of inherited, before_sasp, none"):
        inherit(create_model("siclip-nano"), teacher, "all")  # type: ignore[arg-type]


def test_a_base_model_can_inherit_and_train_after_its_trunk(teacher: Clip) -> None:
    student = create_model("mobileclip-nano")
    inherit(student, teacher, "before_sasp")
    assert "image_encoder.model.stages.2.blocks.0.token_mixer.qkv.weight" in trained_names(student)
    theirs = teacher.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in student.state_dict().items())


def test_ffns_are_inherited_from_a_siclip_teacher(teacher: Clip) -> None:
    source, student = create_model("siclip-nano"), create_model("siclip-nano", text_sharing="none")
    inherit(student, source)
    for ours, theirs in ((student.text_encoder, source.text_encoder), (student.image_encoder, source.image_encoder)):
        for block, origin in zip(ours.blocks, theirs.blocks, strict=True):
            state = block.mlp.state_dict()
            assert all(torch.equal(value, state[name]) for name, value in origin.mlp.state_dict().items())


def test_freezing_everything_is_refused(teacher: Clip) -> None:
    with pytest.raises(UserError, match="there is nothing to train"):
        inherit(create_model("mobileclip-nano"), teacher)


@pytest.mark.parametrize("change", [{"text": {"mixer_kernel": 5}}, {"embed_dim": 64}])
def test_a_teacher_of_another_structure_is_refused(teacher: Clip, change: dict) -> None:
    student = create_model("siclip-nano", **change)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(UserError, match=r"cannot inherit from a checkpoint of 'mobileclip-nano'.*in the teacher"):
        inherit(student, teacher)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(p.requires_grad for p in student.parameters())


def test_a_teacher_with_more_layers_in_its_trunk_is_refused() -> None:
    teacher = create_model("mobileclip-nano", image={"layers": (1, 2, 2)})
    with pytest.raises(UserError, match=r"stages\.1\.blocks\.1\..*\(not in the student\)"):
        inherit(create_model("siclip-nano"), teacher)


def test_a_shared_ffn_starts_from_the_first_block_that_uses_it(teacher: Clip) -> None:
    student = create_model("siclip-nano", text_sharing="mlp:0-0-1-1")
    inherit(student, teacher)
    ours, theirs = student.text_encoder.blocks, teacher.text_encoder.blocks
    for block, origin in ((0, 0), (1, 0), (2, 2), (3, 2)):
        assert torch.equal(ours[block].mlp[0].weight, theirs[origin].pre_norm_ffn[1].weight)


@BOTH
def test_a_frozen_trunk_is_shared_and_gives_the_online_teachers_embeddings(
    base: str, name: str, request: pytest.FixtureRequest
) -> None:
    teacher, student = request.getfixturevalue(base), create_model(name)
    inherit(student, teacher)
    images, tokens = torch.rand(4, 3, 64, 64), torch.randint(1, 400, (4, 20))
    shared = ModelTeacher(teacher, student)
    assert shared.shares == {"image": True, "text": True}
    student.train()
    batch = Batch(None, tokens, torch.arange(4), torch.arange(4))
    embeddings = shared.embed(batch, student.trunk(images, tokens))
    image, text = teacher.eval()(images, tokens)
    torch.testing.assert_close(embeddings.image, image)
    torch.testing.assert_close(embeddings.text, text)


def test_a_trunk_that_trains_or_differs_is_not_shared(teacher: Clip) -> None:
    student = create_model("siclip-nano")
    inherit(student, teacher, freeze="none")
    assert not any(ModelTeacher(teacher, student).shares.values())
    inherit(student, teacher, freeze="inherited")
    with torch.no_grad():
        teacher.text_encoder.embedding_layer.weight[0, 0] += 1
    assert ModelTeacher(teacher, student).shares == {"image": True, "text": False}


def test_a_policy_determines_what_is_frozen_whatever_was_frozen_before(teacher: Clip) -> None:
    student, fresh = create_model("siclip-nano"), create_model("siclip-nano")
    inherit(student, teacher, "inherited")
    expected = inherit(fresh, teacher, "before_sasp").frozen
    assert inherit(student, teacher, "before_sasp").frozen == expected
    assert trained_names(student) == trained_names(fresh)
    assert inherit(student, teacher, "none").frozen == ()
    assert all(p.requires_grad for p in student.parameters())


def test_a_frozen_batch_norm_keeps_its_statistics_even_if_put_in_train_mode_itself(teacher: Clip) -> None:
    student = create_model("siclip-nano")
    inherit(student, teacher)
    frozen = [m for m in student.modules() if isinstance(m, torch.nn.BatchNorm2d) and not m.weight.requires_grad]
    before = [norm.running_mean.clone() for norm in frozen]
    for module in student.modules():
        module.training = True
    student(torch.rand(2, 3, 64, 64), torch.randint(1, 400, (2, 20)))
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(frozen, before, strict=True))
