from __future__ import annotations

import numpy as np
import pytest
import torch
from open_clip.transformer import TextTransformer
from torch import nn

from siclip.checkpoints.layouts import to_open_clip, to_siclip
from siclip.errors import UserError
from siclip.models import create_model, shaped_attention
from siclip.models.sasp import QueryKey, SasPBlock
from siclip.models.text_tower import TransformerBlock


def explicit_shaped_attention(q, k, v, alpha, beta, gamma):  # type: ignore[no-untyped-def]
    """The explicit T×T matrix in numpy: A = α·I + β·softmax(QKᵀ/√d) − γ·11ᵀ/T."""
    out = np.zeros_like(v)
    batch, heads, tokens, width = v.shape
    for b in range(batch):
        for h in range(heads):
            scores = q[b, h] @ k[b, h].T / np.sqrt(width)
            soft = np.exp(scores - scores.max(1, keepdims=True))
            soft /= soft.sum(1, keepdims=True)
            matrix = alpha[h] * np.eye(tokens) + beta[h] * soft - gamma[h] / tokens
            out[b, h] = matrix @ v[b, h]
    return out


def test_shaped_attention_equals_the_explicit_matrix() -> None:
    generator = np.random.default_rng(0)
    q, k, v = (generator.normal(size=(2, 3, 7, 4)).astype(np.float32) for _ in range(3))
    gains = [generator.normal(size=3).astype(np.float32) for _ in range(3)]
    ours = shaped_attention(*map(torch.from_numpy, (q, k, v, *gains))).numpy()
    np.testing.assert_allclose(ours, explicit_shaped_attention(q, k, v, *gains), atol=2e-6)


def test_a_new_block_is_its_norm_plus_a_tenth_of_its_mlp() -> None:
    torch.manual_seed(0)
    mlp = nn.Linear(8, 8)
    block = SasPBlock(nn.LayerNorm(8), QueryKey(8, bias=True), mlp, heads=2)
    x = torch.randn(2, 5, 8)
    y = nn.functional.layer_norm(x, (8,))
    torch.testing.assert_close(block(x), y + 0.1 * mlp(y), atol=1e-6, rtol=0)


def test_text_attention_equals_torch_multi_head_attention() -> None:
    torch.manual_seed(0)
    block = TransformerBlock(16, heads=4, hidden=32)
    attention = block.pre_norm_mha[1]
    reference = nn.MultiheadAttention(16, 4, batch_first=True)
    reference.in_proj_weight.data.copy_(attention.qkv_proj.weight)
    reference.in_proj_bias.data.copy_(attention.qkv_proj.bias)
    reference.out_proj.load_state_dict(attention.out_proj.state_dict())
    x = torch.randn(2, 6, 16)
    torch.testing.assert_close(attention(x), reference(x, x, x)[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["mobileclip-nano", "siclip-nano", "siclip2-nano"])
def test_reparameterized_outputs_agree_and_the_original_does_not_change(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name)
    # Statistics other than the initial ones.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images, tokens = torch.rand(3, 3, 64, 64), torch.randint(1, 400, (3, 20))
    fused = model.reparameterize()
    with torch.no_grad():
        for ours, theirs in zip(model.eval()(images, tokens), fused(images, tokens), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in fused.parameters())


@pytest.mark.parametrize("name", ["mobileclip-nano", "mobileclip2-nano"])
def test_pooling_is_at_the_highest_token_id(name: str) -> None:
    text = create_model(name).eval().text_encoder
    tokens = torch.randint(1, 400, (2, 20))
    tokens[0, 5], tokens[1, 9] = 49407, 49407
    x = text.trunk(tokens)
    for block in (*text.blocks, text.last_mixer or nn.Identity()):
        x = block(x)
    x = text.final_layer_norm(x)
    expected = torch.stack([x[0, 5], x[1, 9]]) @ text.projection_layer
    torch.testing.assert_close(text(tokens), expected)


def test_the_plain_text_tower_is_open_clips_transformer() -> None:
    """With the same weights, wherever a text ends, also one that is shorter than the context."""
    torch.manual_seed(0)
    ours = create_model("mobileclip2-nano").eval()
    theirs = TextTransformer(20, 49408, 96, 3, 12, mlp_ratio=2.0, output_dim=128, no_causal_mask=True).eval()
    for name, value in theirs.state_dict().items():
        if value.ndim == 1:
            nn.init.normal_(value, 1.0 if name.endswith("weight") else 0.0, 0.1)
    state = {f"text.{name}": value for name, value in theirs.state_dict().items()}
    ours.load_state_dict(to_siclip(state, ours), strict=False)
    tokens = torch.randint(1, 400, (20, 20))
    tokens[range(20), range(20)] = 49407
    with torch.no_grad():
        for given in (tokens, tokens[:12, :12]):
            torch.testing.assert_close(ours.encode_text(given), theirs(given), atol=2e-6, rtol=1e-5)
    written = {name: value for name, value in to_open_clip(ours).items() if name.startswith("text.")}
    assert written.keys() == state.keys() and all(torch.equal(written[name], state[name]) for name in state)


def test_unknown_names_and_fields_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'siclip-nano'"):
        create_model("siclip-nanno")
    with pytest.raises(UserError, match="embed_dims"):
        create_model("siclip-nano", embed_dims=3)
    with pytest.raises(UserError, match=r"image\.wdths"):
        create_model("siclip-nano", image={"wdths": (1, 2)})
