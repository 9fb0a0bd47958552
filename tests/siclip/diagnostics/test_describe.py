"""The description of a model, compared with counts by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from siclip.checkpoints.inherit import freeze_inherited
from siclip.diagnostics.describe import ModelDescription, SavedBytes, StageDescription, describe_model
from siclip.models import Clip, count_parameters, create_model

MIB = 2**20
NANOS = [
    ("mobileclip-nano", {}),
    ("siclip-nano", {}),
    ("siclip-nano", {"image_sharing": "none", "text_sharing": "none"}),
    ("siclip-nano", {"image_sharing": "mlp:0-0", "text_sharing": "qk:0-0-0-0"}),
    ("siclip-nano", {"image_sharing": "block:0-0", "text_sharing": "block:0-1-1-0"}),
]


def stage(description: ModelDescription, tower: str, name: str) -> StageDescription:
    (row,) = [s for s in description.stages if (s.tower, s.stage) == (tower, name)]
    return row


def saved_bytes(run: Callable[[], object], autocast: bool = True) -> int:
    saved = SavedBytes()
    with saved, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        run()
    return saved.total


@pytest.mark.parametrize(("name", "sharing"), NANOS)
@pytest.mark.parametrize("policy", ["inherited", "before_sasp", "none"])
def test_sums_are_the_counts_of_the_towers(name: str, sharing: dict[str, str], policy: str) -> None:
    model = create_model(name, **sharing)
    freeze_inherited(model, policy)  # type: ignore[arg-type]
    description = describe_model(model)
    fused = model.reparameterize()
    parts = [
        (description.tower("image"), model.image_encoder, fused.image_encoder),
        (description.tower("text"), model.text_encoder, fused.text_encoder),
        (description.total, model, fused),
    ]
    for found, train_form, deployable in parts:
        assert found.parameters == count_parameters(train_form)
        assert found.trainable_parameters == count_parameters(train_form, trainable=True)
        assert found.reparameterized_parameters == count_parameters(deployable)


def test_a_plain_text_tower_has_no_stages_of_repmixers() -> None:
    model = create_model("siclip2-nano")
    freeze_inherited(model, "inherited")
    description = describe_model(model)
    assert [s.stage for s in description.stages if s.tower == "text"] == ["embedding", "blocks", "projection"]
    text, total = description.tower("text"), description.total
    assert (text.parameters, total.parameters) == (count_parameters(model.text_encoder), count_parameters(model))
    assert total.trainable_parameters == count_parameters(model, trainable=True)
    # Eleven blocks compute all 20 tokens, the last one queries, map and FFN of the pooled token and keys of all.
    tokens, width, hidden = 20, 96, 192
    block = 2 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * hidden
    last = (tokens + 1) * width**2 + 2 * tokens * width + 2 * width * hidden
    assert stage(description, "text", "blocks").multiply_adds == 11 * block + last


def test_mobileclip_s0() -> None:
    """Counts of the published model; its 83 MiB were measured independently of this code."""
    description = describe_model(create_model("mobileclip-s0"))
    image, text, total = description.tower("image"), description.tower("text"), description.total
    assert (image.parameters, image.reparameterized_parameters) == (11_406_464, 11_356_992)
    assert (text.parameters, text.reparameterized_parameters) == (42_441_216, 42_435_072)
    assert (total.parameters, total.reparameterized_parameters) == (53_847_681, 53_792_065)
    assert image.activation_bytes == pytest.approx(83 * MIB, rel=0.03)
    # Text blocks of width 512 on 77 tokens: four projections, scores and mixing, FFN 2048. The last block computes
    # only the 21 tokens that the last RepMixer (two convolutions of 11) needs for the pooled token.
    blocks = 3 * (4 * 77 * 512**2 + 2 * 77**2 * 512 + 2 * 77 * 512 * 2048)
    last = (3 * 77 + 21) * 512**2 + 2 * 21 * 77 * 512 + 2 * 21 * 512 * 2048
    assert stage(description, "text", "blocks").multiply_adds == blocks + last
    mixer = 21 * 11 * 512 + 11 * 512 + 2 * 512 * 2048
    assert stage(description, "text", "last RepMixer").multiply_adds == mixer


@pytest.mark.slow
def test_siclip_s0_with_a_frozen_backbone() -> None:
    model = create_model("siclip-s0", image_sharing="qk:0-0", text_sharing="qk:0-0-1-1")
    everything = describe_model(model)
    freeze_inherited(model, "inherited")
    frozen = describe_model(model)
    image, text = frozen.tower("image"), frozen.tower("text")
    assert (image.parameters, image.reparameterized_parameters) == (9_830_628, 9_781_156)
    assert text.parameters == 39_285_352
    assert everything.tower("image").activation_bytes == pytest.approx(83 * MIB, rel=0.03)
    assert image.activation_bytes < 3.5 * MIB
    assert text.activation_bytes < everything.tower("text").activation_bytes


@pytest.mark.parametrize("name", ["mobileclip-nano", "siclip-nano"])
def test_multiply_adds_of_the_blocks(name: str) -> None:
    description = describe_model(create_model(name))
    # SAS-P has only queries and keys.
    projections = 2 if name == "siclip-nano" else 4
    tokens, width, hidden = 20, 96, 192
    text_block = projections * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * hidden
    assert stage(description, "text", "blocks").multiply_adds == 4 * text_block
    tokens, width, hidden = 16, 128, 384
    depthwise = 7 * 7 * width * tokens
    image_block = projections * tokens * width**2 + 2 * tokens**2 * width + depthwise + 2 * tokens * width * hidden
    assert stage(description, "image", "stage 2 blocks").multiply_adds == 2 * image_block


def test_multiply_adds_of_the_convolutions() -> None:
    description = describe_model(create_model("siclip-nano"))
    # Stage 0: one block of width 32 on 16×16: mixer 3×3 and FFN 7×7, both depthwise, and two 1×1 with ratio 3.
    assert stage(description, "image", "stage 0").multiply_adds == 16**2 * (9 * 32 + 49 * 32 + 2 * 32 * 96)
    # The stem at 64 px: 3×3 with stride 2, depthwise 3×3 with stride 2, 1×1.
    assert stage(description, "image", "stem").multiply_adds == 32**2 * 9 * 3 * 32 + 16**2 * (9 * 32 + 32 * 32)
    # Final conv on 4×4: depthwise 3×3 to 256 channels, and squeeze-excite by 16 on the mean.
    assert stage(description, "image", "final conv").multiply_adds == 16 * 9 * 256 + 2 * 256 * 16
    # RepMixer on 20 tokens: two depthwise of 11 and an FFN with ratio 4.
    assert stage(description, "text", "first RepMixer").multiply_adds == 20 * (2 * 11 * 96 + 2 * 96 * 384)
    assert stage(description, "text", "embedding").multiply_adds == 0
    assert stage(description, "text", "projection").multiply_adds == 96 * 128
    assert description.total.multiply_adds == sum(s.multiply_adds for s in description.stages)


def test_sharing_saves_parameters_and_no_multiply_adds() -> None:
    alone = describe_model(create_model("siclip-nano", image_sharing="none", text_sharing="none")).total
    patterns = {"image_sharing": "block:0-0", "text_sharing": "block:0-0-0-0"}
    shared = describe_model(create_model("siclip-nano", **patterns)).total
    assert shared.parameters < alone.parameters
    assert shared.multiply_adds == alone.multiply_adds


@pytest.mark.parametrize(("autocast", "width"), [(False, 4), (True, 2)])
def test_saved_bytes_of_a_small_network(autocast: bool, width: int) -> None:
    """Saved are the inputs of the first layer, of GELU and of the second layer; the rest is constant."""
    network = nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 3))
    four, five = (saved_bytes(lambda n=n: network(torch.ones(n, 6)), autocast) for n in (4, 5))  # type: ignore[misc]
    assert five - four == width * (6 + 10 + 10)


def test_views_of_one_storage_count_once() -> None:
    """Only the weight needs a gradient, so only the other factor is saved; a view keeps its whole storage alive."""
    weight, factor = torch.ones(3, 4, requires_grad=True), torch.ones(3, 4)
    assert saved_bytes(lambda: weight * factor + weight * factor.view(4, 3).view(3, 4), autocast=False) == 12 * 4
    assert saved_bytes(lambda: weight[:1] * factor[:1], autocast=False) == 12 * 4


def test_the_backward_pass_still_works_with_counted_tensors() -> None:
    x = torch.linspace(-1, 1, 5, requires_grad=True)
    with SavedBytes():
        y = (x.exp() * x).sum()
    y.backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (x.exp() * (1 + x)).detach())


def test_activation_bytes_of_single_stages() -> None:
    """An embedding saves its ids (int64), the image projection the pooled features (bf16)."""
    description = describe_model(create_model("mobileclip-nano"))
    assert stage(description, "text", "embedding").activation_bytes == 20 * 8
    assert stage(description, "image", "projection").activation_bytes == 256 * 2


@pytest.mark.parametrize(("policy", "context"), [("inherited", 20), ("inherited", 40), ("none", 20), ("none", 40)])
def test_activation_bytes_predict_other_batches(policy: str, context: int) -> None:
    model = create_model("siclip-nano", text={"context_length": context})
    freeze_inherited(model, policy)  # type: ignore[arg-type]
    description = describe_model(model)
    model = model.to(memory_format=torch.channels_last).train()
    images, tokens = torch.rand(16, 3, 64, 64), torch.randint(49408, (16, context))
    image = [saved_bytes(lambda n=n: model.encode_image(images[:n].clone())) for n in (4, 16)]  # type: ignore[misc]
    text = [saved_bytes(lambda n=n: model.encode_text(tokens[:n].clone())) for n in (4, 16)]  # type: ignore[misc]
    assert image[1] - image[0] == 12 * description.tower("image").activation_bytes
    assert text[1] - text[0] == 12 * description.tower("text").activation_bytes


def test_a_frozen_trunk_saves_nothing() -> None:
    model = create_model("siclip-nano")
    freeze_inherited(model, "before_sasp")
    description = describe_model(model)
    trunk = {"stem", "stage 0", "stage 1", "stage 2 downsample", "embedding", "first RepMixer"}
    for row in description.stages:
        if row.stage in trunk:
            assert row.activation_bytes == row.trainable_parameters == 0, row
        elif row.tower != "both":
            assert row.activation_bytes > 0 and row.trainable_parameters == row.parameters, row


@pytest.mark.parametrize("training", [True, False])
def test_describing_does_not_change_the_model(training: bool) -> None:
    model = create_model("siclip-nano").train(training)
    freeze_inherited(model, "inherited")
    before = copy.deepcopy(model.state_dict())
    modes = {name: module.training for name, module in model.named_modules()}
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    hooked = hooks(model)
    describe_model(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trained
    assert hooks(model) == hooked


def hooks(model: Clip) -> list[object]:
    return [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
