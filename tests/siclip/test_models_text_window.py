"""The text head computes only what the pooled token depends on; the full computation is the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from siclip.models import Clip, create_model
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
    """One text that ends at every place of the context."""
    ids = torch.randint(1, 400, (LENGTH, LENGTH), generator=torch.Generator().manual_seed(1))
    ids[range(LENGTH), range(LENGTH)] = 49407
    return ids


def all_tokens(text: TextTower, ids: Tensor) -> Tensor:
    x = text.trunk(ids)
    for layer in list(text.transformer)[1:]:
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
    ],
)
def test_embeddings_are_those_of_all_tokens_wherever_the_text_ends(
    name: str, options: dict[str, object], fused: bool
) -> None:
    text = tower(name, **options)
    if fused:
        for layer in (text.transformer[0], text.transformer[-1]):
            layer.token_mixer.reparameterize()
    assert text._windowed(LENGTH)
    torch.testing.assert_close(text(texts()), all_tokens(text, texts()), atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_all_tokens() -> None:
    text = tower("siclip-nano")
    weights = torch.randn(LENGTH, 128)
    (text(texts()) * weights).sum().backward()
    ours = {name: p.grad.clone() for name, p in text.named_parameters()}
    text.zero_grad()
    (all_tokens(text, texts()) * weights).sum().backward()
    largest = max(float(p.grad.abs().max()) for p in text.parameters())
    for name, parameter in text.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-6 * largest, rtol=1e-4, msg=name)


def test_batch_statistics_are_of_all_tokens() -> None:
    text = tower("mobileclip-nano").train()
    assert not text._windowed(LENGTH)
    torch.testing.assert_close(text(texts()), all_tokens(text, texts()))
