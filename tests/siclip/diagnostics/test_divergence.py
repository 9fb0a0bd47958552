from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr
from scipy.stats import entropy
from torch import Tensor, nn
from torch.nn import functional as F

from siclip.diagnostics import (
    AttentionDivergence,
    attention_divergence,
    jensen_shannon_divergence,
    propose_sharing,
)
from siclip.diagnostics.divergence import attention_map
from siclip.diagnostics.proposal import parameters_saved
from siclip.errors import UserError
from siclip.models import Clip, create_model, model_config, parse_pattern
from siclip.models.sasp import SasPBlock

Counts = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=40)


def model_with_structure(name: str, **config: str) -> Clip:
    """A model in train mode whose attention is far from uniform."""
    torch.manual_seed(0)
    model = create_model(name, **config)
    # One pass in train mode then gives every BatchNorm real statistics.
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        model(*pairs_of(8))
    for block in (*model.image_encoder.blocks, *model.text_encoder.blocks):
        for key, weight in block.named_parameters():
            if any(part in key for part in ("qkv", "qk.query", "qk.key")) and key.endswith("weight"):
                nn.init.normal_(weight, std=0.3)
    return model.train()


def pairs_of(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 64, 64, generator=generator)
    return images, torch.randint(1, 49408, (count, 20), generator=generator)


def divergence_of(pairs: list[list[float]]) -> AttentionDivergence:
    return AttentionDivergence(pairs=tuple(tuple(row) for row in pairs), entropy_share=(0.5,) * len(pairs), samples=1)


@settings(max_examples=100, deadline=None)
@given(Counts.filter(lambda rows: all(any(row[side] for row in rows) for side in (0, 1))))
def test_js_divergence_equals_scipy_and_is_symmetric(rows: list[tuple[int, int]]) -> None:
    p, q = (np.array(column, dtype=np.float64) / sum(column) for column in zip(*rows, strict=True))
    ours = jensen_shannon_divergence(torch.from_numpy(p), torch.from_numpy(q))
    assert ours.dtype == torch.float32
    assert 0 <= ours <= math.log(2) + 1e-7
    # Not scipy's jensenshannon: its square root can become nan through rounding.
    middle = (p + q) / 2
    expected = 0.5 * (rel_entr(p, middle) + rel_entr(q, middle)).sum()
    assert ours.item() == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert ours.item() == pytest.approx(jensen_shannon_divergence(torch.from_numpy(q), torch.from_numpy(p)).item())


def test_js_divergence_is_zero_for_equal_rows_and_ln_2_for_disjoint_ones() -> None:
    torch.manual_seed(0)
    p = torch.randn(50, 77).softmax(dim=-1)
    assert torch.equal(jensen_shannon_divergence(p, p), torch.zeros(50))
    left, right = torch.cat([p, torch.zeros(50, 77)], -1), torch.cat([torch.zeros(50, 77), p], -1)
    torch.testing.assert_close(jensen_shannon_divergence(left, right), torch.full((50,), math.log(2)))


def test_js_divergence_of_almost_equal_rows_is_precise() -> None:
    torch.manual_seed(0)
    p, q = ((1e-3 * torch.randn(200, 64)).softmax(dim=-1) for _ in range(2))
    exact = jensenshannon(p.double(), q.double(), axis=-1) ** 2
    assert exact.max() < 1e-5
    np.testing.assert_allclose(jensen_shannon_divergence(p, q).numpy(), exact, rtol=1e-6)


def test_js_divergence_of_peaked_rows_is_finite_with_vanishing_probabilities() -> None:
    torch.manual_seed(0)
    p, q = ((30 * torch.randn(200, 16)).softmax(dim=-1) for _ in range(2))
    assert ((p > 0) & (p < 1e-20)).any()
    exact = jensenshannon(p.double(), q.double(), axis=-1) ** 2
    np.testing.assert_allclose(jensen_shannon_divergence(p, q).numpy(), exact, rtol=1e-6)


def test_js_divergence_broadcasts_all_but_the_last_dimension() -> None:
    torch.manual_seed(0)
    p, q = torch.randn(3, 1, 5, 6).softmax(dim=-1), torch.randn(4, 1, 6).softmax(dim=-1)
    ours = jensen_shannon_divergence(p, q)
    assert ours.shape == (3, 4, 5)
    assert ours[2, 1, 3].item() == pytest.approx(jensenshannon(p[2, 0, 3], q[1, 0]) ** 2, rel=1e-4)


def test_text_map_equals_torch_multi_head_attention() -> None:
    block = model_with_structure("mobileclip-nano").text_encoder.blocks[0]
    norm, attention = block.pre_norm_mha
    reference = nn.MultiheadAttention(96, 3, batch_first=True)
    reference.in_proj_weight.data.copy_(attention.qkv_proj.weight)
    reference.in_proj_bias.data.copy_(attention.qkv_proj.bias)
    x = torch.randn(2, 7, 96)
    y = F.layer_norm(x, (96,), norm.weight, norm.bias)
    _, expected = reference(y, y, y, need_weights=True, average_attn_weights=False)
    torch.testing.assert_close(attention_map(block, x), expected, atol=1e-6, rtol=1e-5)


def test_image_map_equals_timms() -> None:
    block = model_with_structure("mobileclip-nano").eval().image_encoder.blocks[0]
    # timm then computes the map explicitly and passes it through its dropout.
    block.token_mixer.fused_attn = False
    seen: list[Tensor] = []
    block.token_mixer.attn_drop.register_forward_hook(lambda module, args, out: seen.append(out))
    x = torch.randn(2, 128, 4, 3)
    block(x)
    assert seen[0].shape == (2, 4, 12, 12)
    torch.testing.assert_close(attention_map(block, x), seen[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_sasp_map_equals_an_explicit_softmax(tower: str) -> None:
    model = model_with_structure("siclip-nano").eval()
    encoder = model.image_encoder if tower == "image" else model.text_encoder
    x = encoder.trunk(pairs_of(2)[tower == "text"])
    block = encoder.blocks[0]
    assert isinstance(block, SasPBlock)
    y = block.norm(x).flatten(2).mT if tower == "image" else block.norm(x)
    query, key = (layer(y).chunk(block.heads, dim=-1)[1] for layer in (block.qk.query, block.qk.key))  # head 1
    scores = (query @ key.mT / math.sqrt(query.shape[-1])).exp()
    expected = scores / scores.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(attention_map(block, x)[:, 1], expected, atol=1e-6, rtol=1e-4)


def test_a_block_without_attention_is_refused() -> None:
    with pytest.raises(TypeError, match="Linear"):
        attention_map(nn.Linear(4, 4), torch.zeros(1, 4))


@pytest.mark.parametrize("name", ["mobileclip-nano", "siclip-nano", "mobileclip2-nano"])
def test_the_divergence_equals_scipy_on_the_maps_of_the_models_forward(name: str) -> None:
    model = model_with_structure(name)
    images, tokens = pairs_of(5)
    found = attention_divergence(model, [(images[:2], tokens[:2]), (images[2:], tokens[2:])])
    model.eval()
    for tower, encoder in (("image", model.image_encoder), ("text", model.text_encoder)):
        inputs: list[Tensor] = []
        hooks = [
            b.register_forward_pre_hook(lambda block, args, to=inputs: to.append(args[0])) for b in encoder.blocks
        ]
        with torch.no_grad():
            model(images, tokens)
            maps = [attention_map(b, x).double().numpy() for b, x in zip(encoder.blocks, inputs, strict=True)]
        for hook in hooks:
            hook.remove()
        expected = [[(jensenshannon(p, q, axis=-1) ** 2).mean() if p is not q else 0 for q in maps] for p in maps]
        assert np.max(expected) > 0.01, "the maps do differ"
        np.testing.assert_allclose(found[tower].pairs, expected, rtol=1e-4)
        shares = [entropy(p, axis=-1).mean() / np.log(p.shape[-1]) for p in maps]
        np.testing.assert_allclose(found[tower].entropy_share, shares, rtol=1e-5)
        assert found[tower].samples == 5


def test_the_divergence_does_not_change_the_model() -> None:
    model = model_with_structure("siclip-nano")
    model.image_encoder.model.stem.eval()
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    attention_divergence(model, [pairs_of(2)])
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_the_divergence_does_not_depend_on_autocast() -> None:
    model = model_with_structure("siclip-nano")
    expected = attention_divergence(model, [pairs_of(2)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention_divergence(model, [pairs_of(2)]) == expected


def test_a_module_used_by_every_block_is_compared_with_itself() -> None:
    model = model_with_structure("siclip-nano", image_sharing="block:0-0", text_sharing="block:0-0-0-0")
    found = attention_divergence(model, [pairs_of(2)])
    pairs = np.array(found["text"].pairs)
    assert pairs.shape == (4, 4)
    np.testing.assert_array_equal(pairs, pairs.T)
    assert all(pairs[i, i] == 0 for i in range(4))
    assert pairs[0, 1] > 0, "the same weights, other inputs"


def test_untrained_sasp_blocks_attend_uniformly_and_do_not_differ() -> None:
    found = attention_divergence(create_model("siclip-nano"), [pairs_of(2)])["image"]
    assert found.entropy_share == pytest.approx((1.0, 1.0))
    assert found.pairs == ((0.0, 0.0), (0.0, 0.0))


@pytest.mark.parametrize("batches", [[], [(torch.zeros(0, 3, 64, 64), torch.zeros(0, 20, dtype=torch.long))]])
def test_an_empty_input_is_refused(batches: list[tuple[Tensor, Tensor]]) -> None:
    with pytest.raises(UserError, match="no sample"):
        attention_divergence(create_model("mobileclip-nano"), batches)


def test_adjacent_pairs_are_separate_from_their_baseline() -> None:
    found = divergence_of([[0, 1, 2, 3], [1, 0, 4, 5], [2, 4, 0, 6], [3, 5, 6, 0]])
    assert found.adjacent == (1, 4, 6)
    assert found.adjacent_mean == pytest.approx(11 / 3)
    assert found.non_adjacent_mean == pytest.approx((2 + 3 + 5) / 3)
    two, one = divergence_of([[0, 1], [1, 0]]), divergence_of([[0]])
    assert (two.adjacent_mean, two.non_adjacent_mean) == (1, None)
    assert (one.adjacent, one.adjacent_mean, one.non_adjacent_mean) == ((), None, None)


def test_proposals_merge_the_closest_neighbours_first() -> None:
    # Blocks 0–1 and 2–3 are close pairs, 2–3 the closer one.
    found = propose_sharing(
        divergence_of([[0, 0.02, 0.3, 0.4], [0.02, 0, 0.2, 0.3], [0.3, 0.2, 0, 0.01], [0.4, 0.3, 0.01, 0]])
    )
    assert [str(p.pattern) for p in found] == ["qk:0-1-2-2", "qk:0-0-1-1", "qk:0-0-0-0"]
    within = [0.01, (0.02 + 0.01) / 2, (0.02 + 0.3 + 0.4 + 0.2 + 0.3 + 0.01) / 6]
    assert [p.within for p in found] == pytest.approx(within)
    # The baseline is (0.3 + 0.4 + 0.3) / 3.
    assert [p.below_baseline for p in found] == [True, True, True]


def test_all_pairs_across_a_boundary_count() -> None:
    # After 0–1, block 2 is close to block 1 (0.1) but far from 0 (0.9), so 2–3 (0.4) is merged before 1–2 (mean 0.5).
    found = propose_sharing(
        divergence_of([[0, 0.05, 0.9, 0.1], [0.05, 0, 0.1, 0.1], [0.9, 0.1, 0, 0.4], [0.1, 0.1, 0.4, 0]])
    )
    assert [str(p.pattern) for p in found] == ["qk:0-0-1-2", "qk:0-0-1-1", "qk:0-0-0-0"]


def test_a_proposal_may_be_no_better_than_the_baseline_or_have_none() -> None:
    alike = [[0, 0.2, 0.2], [0.2, 0, 0.2], [0.2, 0.2, 0]]
    assert [(str(p.pattern), p.below_baseline) for p in propose_sharing(divergence_of(alike))] == [
        ("qk:0-0-1", False),  # of equal boundaries the first
        ("qk:0-0-0", False),
    ]
    assert [p.below_baseline for p in propose_sharing(divergence_of([[0, 0.1], [0.1, 0]]))] == [None]
    assert propose_sharing(divergence_of([[0]])) == ()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 7), st.randoms(use_true_random=False))
def test_every_proposal_is_a_pattern_that_shares_more_than_the_one_before(blocks: int, random: object) -> None:
    values = np.random.default_rng(random.randint(0, 2**31)).random((blocks, blocks))  # type: ignore[attr-defined]
    pairs = np.triu(values, 1) + np.triu(values, 1).T
    found = propose_sharing(divergence_of(pairs.tolist()))
    assert [len(set(p.pattern.assignment)) for p in found] == list(range(blocks - 1, 0, -1))
    assert all(parse_pattern(str(p.pattern), blocks) == p.pattern for p in found)


@pytest.mark.parametrize("name", ["mobileclip-s0", "siclip-s0"])
def test_parameters_saved_are_the_published_counts_of_s0(name: str) -> None:
    config = model_config(name)
    image, text = parse_pattern("qk:0-0", 2), parse_pattern("qk:0-0-1-1", 4)
    assert parameters_saved(config, "image", image) == 10_354_916 - 9_830_628
    assert parameters_saved(config, "text", text) == 40_335_976 - 39_285_352
