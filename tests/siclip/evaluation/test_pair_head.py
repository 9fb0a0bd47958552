"""The pair head's accuracies, compared with loops in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from siclip.evaluation import pair_head
from siclip.evaluation.evaluate import EvaluationSet, evaluate
from siclip.evaluation.pair_head import pair_head_metrics
from siclip.losses import PairMatchingHead
from siclip.models import create_model

N, K, D = 30, 3, 8


def unit(seed: int, *shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, D, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_the_accuracies_are_those_of_loops_over_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_head, "ROWS", 7)
    torch.manual_seed(0)
    head = PairMatchingHead("product", D)
    torch.nn.init.constant_(head.bias, -7.0)
    image = unit(1, N)
    text = F.normalize(image + 0.8 * unit(2, N), dim=-1)
    text[5] = text[4]  # two samples with one caption
    false = F.normalize(text[:, None] + unit(3, N, K), dim=-1)
    weight, bias = head.weight.detach().numpy(), head.bias.item()

    def yes(i: int, caption: torch.Tensor) -> bool:
        return float((image[i] * caption).numpy() @ weight) + bias > 0

    true = [yes(i, text[i]) for i in range(N)]
    mined = []
    for i in range(N):
        others = [j for j in range(N) if j != i and {i, j} != {4, 5}]
        mined.append(not yes(i, text[max(others, key=lambda j: float(image[i] @ text[j]))]))
    generated = [not yes(i, false[i, k]) for i in range(N) for k in range(K)]
    assert 0 < np.mean(true) < 1 and 0 < np.mean(mined) < 1 and 0 < np.mean(generated) < 1
    found = pair_head_metrics(head, image, text, false)
    assert found["pair_head_true"] == pytest.approx(np.mean(true))
    assert found["pair_head_mined"] == pytest.approx(np.mean(mined))
    assert found["pair_head_generated"] == pytest.approx(np.mean(generated))
    expected = (np.mean(true) + (np.mean(mined) + np.mean(generated)) / 2) / 2
    assert found["pair_head_balanced_accuracy"] == pytest.approx(expected)
    without = pair_head_metrics(head, image, text)
    assert "pair_head_generated" not in without
    assert without["pair_head_balanced_accuracy"] == pytest.approx((np.mean(true) + np.mean(mined)) / 2)


@pytest.mark.parametrize("bias", [100.0, -100.0])
def test_a_head_that_always_says_the_same_scores_a_half(bias: float) -> None:
    head = PairMatchingHead("mlp", D)
    torch.nn.init.constant_(head.output.bias, bias)
    found = pair_head_metrics(head, unit(1, N), unit(2, N), unit(3, N, K))
    assert found["pair_head_balanced_accuracy"] == 0.5
    assert found["pair_head_true"] == (bias > 0)


def test_an_evaluation_has_them_if_it_gets_a_head() -> None:
    torch.manual_seed(0)
    model = create_model("siclip-nano").eval()
    size = model.config.image.image_size
    draw = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (4, size, size, 3), generator=draw, dtype=torch.uint8)
    tokens, false = (torch.randint(1, 400, shape, generator=draw) for shape in ((4, 20), (4, 2, 20)))
    data, head = EvaluationSet(images, tokens, false), PairMatchingHead("product", model.config.embed_dim)
    plain = evaluate(model, data, device=torch.device("cpu"))
    with_head = evaluate(model, data, device=torch.device("cpu"), pair_head=head)
    assert {name: with_head[name] for name in plain} == plain
    assert {name for name in with_head if name not in plain} == {
        f"pair_head_{name}" for name in ("true", "mined", "generated", "balanced_accuracy")
    }
