"""The text head computes only tokens on which the pooled one depends; the full computation is the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from siclip.models import Clip, create_model
from siclip.models.rep_mixer import RepMixerBlock
from siclip.models.text_tower import TextTower

LENGTH = 40


def tower(name: str, **sasp: object) -> TextTower:
    torch.manual_seed(0)
    text = {"context_length": LENGTH} | ({"sasp": sasp} if sasp else {})
    model: Clip = create_model(name, text=text)
    for module in model.text_encoder.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 1.5)
        if hasattr(module, "qk"):
            nn.init.normal_(module.qk.query.weight, std=0.3)
            nn.init.uniform_(module.alpha, 0.5, 1.5)
    return model.text_encoder.eval()


def texts() -> Tensor:
    """One text for each position of the context, ending there."""
    ids = torch.randint(1, 400, (LENGTH, LENGTH), generator=torch.Generator().manual_seed(1))
    ids[range(LENGTH), range(LENGTH)] = 49407
    return ids


def all_tokens(text: TextTower, ids: Tensor) -> Tensor:
    x = text.trunk(ids)
    for layer in (*text.blocks, text.last_mixer or nn.Identity()):
        x = layer(x)
    return text.final_layer_norm(x)[range(LENGTH), range(LENGTH)] @ text.projection_layer


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mobileclip-nano", {}),
        ("siclip-nano", {}),
        ("siclip-nano", {"first_value": True}),
        ("siclip-nano", {"norm": "batch"}),
        ("mobileclip2-nano", {}),
        ("siclip2-nano", {"first_value": True}),
    ],
)
def test_embeddings_equal_the_full_computation_wherever_the_text_ends(
    name: str, options: dict[str, object], fused: bool
) -> None:
    text = tower(name, **options)
    if fused:
        for layer in text.transformer:
            if isinstance(layer, RepMixerBlock):
                layer.token_mixer.reparameterize()
    assert text._windowed(LENGTH)
    torch.testing.assert_close(text(texts()), all_tokens(text, texts()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["siclip-nano", "siclip2-nano"])
def test_gradients_equal_the_full_computation(name: str) -> None:
    text = tower(name)
    weights = torch.randn(LENGTH, 128)
    (text(texts()) * weights).sum().backward()
    ours = {key: p.grad.clone() for key, p in text.named_parameters()}
    text.zero_grad()
    (all_tokens(text, texts()) * weights).sum().backward()
    largest = max(float(p.grad.abs().max()) for p in text.parameters())
    for key, parameter in text.named_parameters():
        torch.testing.assert_close(ours[key], parameter.grad, atol=1e-6 * largest, rtol=1e-4, msg=key)


def test_batch_statistics_include_all_tokens() -> None:
    text = tower("mobileclip-nano").train()
    assert not text._windowed(LENGTH)
    torch.testing.assert_close(text(texts()), all_tokens(text, texts()))


def padded(longest: int) -> Tensor:
    """Texts of different lengths padded with zeros, the longest with ``longest`` tokens."""
    ids = torch.zeros(6, LENGTH, dtype=torch.int64)
    drawn = torch.randint(1, 400, (6, LENGTH), generator=torch.Generator().manual_seed(1))
    for row, length in enumerate(range(longest - 5, longest + 1)):
        ids[row, : length - 1] = drawn[row, : length - 1]
        ids[row, length - 1] = 49407
    return ids


def gradients_of(text: TextTower, features: Tensor, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    text.zero_grad()
    out = text.head(features, ids)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    return out.detach(), {name: p.grad.clone() for name, p in text.named_parameters() if p.grad is not None}


def test_equal_texts_have_the_embedding_of_one() -> None:
    text = tower("siclip-nano")
    ids = padded(12)[:1].expand(3, -1)
    features = text.trunk(ids).detach()
    assert text._common_tokens(features) == LENGTH
    torch.testing.assert_close(text.head(features, ids), text.head(features[:1], ids[:1]).expand(3, -1))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("siclip-nano", {}),
        ("siclip-nano", {"norm": "rms"}),
        ("siclip-nano", {"norm": "batch"}),
        ("siclip2-nano", {}),
    ],
)
def test_padding_that_all_texts_share_is_computed_once_with_the_same_result(
    name: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    text, ids = tower(name, **options), padded(12)
    features = text.trunk(ids).detach()
    common = text._common_tokens(features)
    # The trunk's output depends on 10 tokens on either side, that of a plain tower on none.
    reach = 10 if text.has_mixers else 0
    assert LENGTH - 12 - reach <= common <= LENGTH - 12
    seen: list[int] = []
    text.blocks[0].mlp.register_forward_hook(lambda mlp, inputs, out: seen.append(out.numel() // out.shape[-1]))
    ours, gradients = gradients_of(text, features, ids)
    monkeypatch.setattr(TextTower, "_common_tokens", lambda self, features: 0)
    plain, expected = gradients_of(text, features, ids)
    assert seen == [6 * (LENGTH - common) + common, 6 * LENGTH]
    torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert gradients.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(gradients[key], gradient, atol=1e-6 * largest, rtol=1e-4, msg=key)


def test_padding_is_computed_for_each_text_where_sharing_is_not_exact() -> None:
    ids = padded(12)
    trained = tower("siclip-nano")
    # The trunk needs a gradient from each text.
    assert trained._common_tokens(trained.trunk(ids)) == 0
    assert tower("siclip-nano", first_value=True)._common_tokens(trained.trunk(ids).detach()) == 0
    assert tower("mobileclip-nano")._common_tokens(trained.trunk(ids).detach()) == 0
    statistics = tower("siclip-nano", norm="batch").train()
    assert statistics._common_tokens(trained.trunk(ids).detach()) == 0
    one_differs = trained.trunk(ids).detach().clone()
    one_differs[3, -1, 0] += 1
    assert trained._common_tokens(one_differs) == 0
    assert trained._common_tokens(one_differs[:1]) == 0
