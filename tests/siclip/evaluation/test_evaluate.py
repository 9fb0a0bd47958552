from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score
from torch.nn.functional import normalize

from siclip.data.batch import to_float_images
from siclip.data.transforms import fit_image
from siclip.evaluation.evaluate import EvaluationSet, evaluate
from siclip.evaluation.retrieval import beats_all_negatives, retrieval_metrics
from siclip.models import create_model
from siclip.models.fused_trunk import fused_trunk


def test_recall_equals_scikit_learns_top_k_accuracy() -> None:
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(60, 8, generator=generator), dim=-1)
    image = normalize(text + 0.5 * torch.randn(60, 8, generator=generator), dim=-1)
    metrics = retrieval_metrics(image, text)
    similarity = (image.double() @ text.double().T).numpy()
    for k in (1, 5, 10):
        for name, scores in (("text_retrieval", similarity), ("image_retrieval", similarity.T)):
            expected = top_k_accuracy_score(np.arange(60), scores, k=k)
            assert abs(metrics[f"{name}_recall@{k}"] - expected) < 1e-12
    both = (metrics["image_retrieval_recall@1"] + metrics["text_retrieval_recall@1"]) / 2
    assert metrics["mean_recall@1"] == both


def test_constant_embeddings_score_chance() -> None:
    same = normalize(torch.ones(20, 4), dim=-1)
    metrics = retrieval_metrics(same, same)
    for k in (1, 5, 10):
        for name in ("image_retrieval", "text_retrieval"):
            assert abs(metrics[f"{name}_recall@{k}"] - k / 20) < 1e-12
    assert abs(beats_all_negatives(same, same, same.unsqueeze(1).expand(20, 5, 4)) - 1 / 6) < 1e-12


def test_beating_all_negatives_requires_beating_each() -> None:
    image = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    text = torch.tensor([[0.8, 0.6], [0.8, 0.6]])
    worse, better = [0.6, 0.8], [1.0, 0.0]
    negatives = torch.tensor([[worse, worse], [worse, better]])
    assert beats_all_negatives(image, text, negatives) == 0.5


def test_fitting_resizes_the_shorter_side_and_crops_the_centre() -> None:
    image = np.zeros((32, 96, 3), np.uint8)
    image[:, 32:64] = 255
    fitted = fit_image(image, 16)
    assert fitted.shape == (16, 16, 3)
    assert (fitted > 200).all()
    assert fit_image(fitted, 16) is fitted


def test_a_frozen_trunk_has_the_metrics_of_one_that_trains() -> None:
    """A frozen trunk runs folded. 30 samples in chunks that do not divide them."""
    torch.manual_seed(0)
    model = create_model("mobileclip-nano").train()
    images = torch.randint(0, 256, (30, 64, 64, 3), dtype=torch.uint8)
    tokens = torch.randint(1, 400, (30, 20))
    negatives = torch.randint(1, 400, (30, 2, 20))
    with torch.no_grad():
        for _ in range(5):
            # Gives the BatchNorms statistics of the data.
            model.trunk(to_float_images(images), tokens)
        model.eval()
        image = model.encode_image(to_float_images(images), normalize=True)
        text, flat = (model.encode_text(t, normalize=True) for t in (tokens, negatives.flatten(0, 1)))
    expected = {k: v for k, v in retrieval_metrics(image, text).items() if "recall@" in k}
    expected["beats_all_negatives"] = beats_all_negatives(image, text, flat.view(30, 2, -1))
    data, device = EvaluationSet(images, tokens, negatives), torch.device("cpu")
    assert evaluate(model, data, device=device, chunk=7) == expected
    model.requires_grad_(False)
    assert model.trunk_is_frozen()
    assert evaluate(model, data, device=device, chunk=7) == expected
    features = fused_trunk(model.image_encoder, to_float_images(images))
    folded = normalize(model.image_encoder.head(features), dim=-1)
    torch.testing.assert_close(folded, image, rtol=1e-4, atol=1e-5)


def test_all_captions_are_searched_and_the_first_is_compared_with_false_ones() -> None:
    torch.manual_seed(0)
    model = create_model("mobileclip-nano").eval()
    images = torch.randint(0, 256, (6, 64, 64, 3), dtype=torch.uint8)
    owner = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 5, 5])
    tokens, negatives = torch.randint(1, 400, (10, 20)), torch.randint(1, 400, (6, 2, 20))
    data = EvaluationSet(images, tokens, negatives, owner)
    assert torch.equal(data.first_tokens, tokens[[0, 2, 3, 6, 7, 8]])
    found = evaluate(model, data, device=torch.device("cpu"), chunk=4)
    with torch.no_grad():
        image = model.encode_image(to_float_images(images), normalize=True)
        text, false = (model.encode_text(t, normalize=True) for t in (tokens, negatives.flatten(0, 1)))
    scores = image @ text.T
    # by hand: a caption finds its image, an image finds any of its captions
    for k in (1, 5):
        hits = (scores.T.topk(k).indices == owner[:, None]).any(dim=1)
        assert found[f"image_retrieval_recall@{k}"] == pytest.approx(hits.float().mean().item())
        hits = (owner[scores.topk(k).indices] == torch.arange(6)[:, None]).any(dim=1)
        assert found[f"text_retrieval_recall@{k}"] == pytest.approx(hits.float().mean().item())
    true = (image * text[[0, 2, 3, 6, 7, 8]]).sum(dim=1, keepdim=True)
    right = (true > (image[:, None] * false.view(6, 2, -1)).sum(dim=-1)).all(dim=1)
    assert found["beats_all_negatives"] == pytest.approx(right.float().mean().item())
