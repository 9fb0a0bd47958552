from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from siclip.errors import UserError
from siclip.models import Clip, count_parameters, create_model
from siclip.models.sasp import QueryKey, SasPBlock, attention_matrix, shaped_attention

WIDTH = {"image": 128, "text": 96}


def nano(tower: str, **options: object) -> Clip:
    torch.manual_seed(0)
    return create_model("siclip-nano", image_sharing="none", text_sharing="none", **{tower: {"sasp": options}})


def blocks(model: Clip, tower: str) -> list[SasPBlock]:
    return list(model.image_encoder.blocks if tower == "image" else model.text_encoder.blocks)


def features(tower: str) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 128, 4, 4) if tower == "image" else torch.randn(3, 20, 96)


def test_the_fused_form_equals_its_matrix_in_torch() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 9, 4) for _ in range(3))
    alpha, beta, gamma = (torch.randn(3) for _ in range(3))
    matrix = alpha.view(3, 1, 1) * torch.eye(9) + beta.view(3, 1, 1) * attention_matrix(query, key)
    matrix = matrix - gamma.view(3, 1, 1) / 9
    torch.testing.assert_close(
        shaped_attention(query, key, value, alpha, beta, gamma), matrix @ value, atol=1e-6, rtol=1e-6
    )


def test_no_square_matrix_is_saved_for_backward() -> None:
    block = SasPBlock(nn.LayerNorm(16), QueryKey(16, bias=True), nn.Linear(16, 16), heads=2)
    shapes: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(tuple(t.shape)) or t, lambda t: t):
        block(torch.randn(2, 50, 16, requires_grad=True))
    assert shapes and not [shape for shape in shapes if shape[-2:] == (50, 50)]


@pytest.mark.parametrize("tower", ["image", "text"])
def test_the_attention_map_is_softmax_of_the_blocks_own_queries_and_keys(tower: str) -> None:
    block = blocks(nano(tower), tower)[0].eval()
    nn.init.normal_(block.qk.query.weight, std=0.2)
    x = features(tower)
    y = block.norm(x)
    tokens = y.flatten(2).transpose(1, 2) if tower == "image" else y
    maps = block.attention_map(x)
    query, key = block.qk.query(tokens), block.qk.key(tokens)
    head = slice(0, query.shape[-1] // block.heads)
    scores = query[..., head] @ key[..., head].mT / head.stop**0.5
    torch.testing.assert_close(maps[:, 0], scores.exp() / scores.exp().sum(-1, keepdim=True))
    assert maps.shape == (3, block.heads, tokens.shape[1], tokens.shape[1])


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("norm", ["batch", "layer", "rms"])
def test_each_norm_is_torchs_over_the_channels_and_starts_as_identity(tower: str, norm: str) -> None:
    block = blocks(nano(tower, norm=norm), tower)[0]
    x = features(tower) * 3 + 1
    tokens = x.flatten(2).transpose(1, 2) if tower == "image" else x
    if norm == "layer":
        expected = nn.functional.layer_norm(tokens, tokens.shape[-1:], eps=block.norm.eps)
    elif norm == "rms":
        expected = tokens / (tokens.square().mean(-1, keepdim=True) + (block.norm.eps or 1e-7)).sqrt()
    else:
        mean, variance = tokens.mean((0, 1)), tokens.var((0, 1), correction=0)
        expected = (tokens - mean) / (variance + block.norm.eps).sqrt()
    y = block.norm(x)
    torch.testing.assert_close(
        y.flatten(2).transpose(1, 2) if tower == "image" else y, expected, atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(block(x), y + 0.1 * block.mlp(y), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_value_in_the_first_block_alone_starts_as_identity_and_then_mixes(tower: str) -> None:
    model = nano(tower, first_value=True)
    first, *others = blocks(model, tower)
    assert first.value is not None and all(block.value is None for block in others)
    bias = 2 * WIDTH[tower] if tower == "text" else 0
    assert count_parameters(model) - count_parameters(nano(tower)) == 2 * WIDTH[tower] ** 2 + bias
    x = features(tower)
    before = first.eval()(x)
    torch.testing.assert_close(before, blocks(nano(tower), tower)[0].eval()(x), atol=1e-5, rtol=1e-4)
    nn.init.zeros_(first.projection.weight)
    if first.projection.bias is not None:
        nn.init.zeros_(first.projection.bias)
    y = first.norm(x)
    torch.testing.assert_close(first(x), first.beta_ff * first.mlp(y))


def test_a_plain_ffn_has_no_depthwise_convolution() -> None:
    plain, conv = nano("image", ffn="plain"), nano("image")
    # The 7×7 kernel and its BatchNorm.
    depthwise = 128 * 49 + 2 * 128
    assert count_parameters(conv) - count_parameters(plain) == 2 * depthwise
    x = torch.zeros(1, 128, 4, 4)
    x[0, :, 0, 0] = 1
    assert blocks(plain, "image")[0].mlp(x)[0, :, 3, 3].allclose(blocks(plain, "image")[0].mlp(x)[0, :, 2, 3])


def test_fixed_gains_do_not_train_and_trainable_ones_do() -> None:
    fixed = nano("text", trainable_gains=False)
    gains = [name for name, p in fixed.named_parameters() if "text_encoder" in name and not p.requires_grad]
    assert {name.rsplit(".", 1)[1] for name in gains} == {"alpha", "beta", "gamma", "beta_sa", "beta_ff"}
    assert len(gains) == 5 * 4
    assert all(p.requires_grad for p in nano("text").parameters())


@pytest.mark.parametrize("options", [{"norm": "group"}, {"ffn": "plain", "first_values": True}])
def test_unknown_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises((UserError, ValidationError), match=r"image\.sasp"):
        create_model("siclip-nano", image={"sasp": options})


def test_options_require_sasp_blocks() -> None:
    with pytest.raises(UserError, match="require block 'sasp'"):
        create_model("mobileclip-nano", text={"sasp": {"first_value": True}})
