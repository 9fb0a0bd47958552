"""Metrics compared with scikit-learn and torchmetrics; ties; chunks; intervals."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    jaccard_score,
    top_k_accuracy_score,
)
from torch import Tensor
from torch.nn.functional import normalize

from siclip.errors import UserError
from siclip.evaluation import ranks
from siclip.evaluation.bootstrap import intervals, paired_differences
from siclip.evaluation.classification import (
    check_labels,
    class_embeddings,
    classify,
    macro_f1,
    multilabel_statistics,
    prompts_of,
)
from siclip.evaluation.composition import (
    CompositionItem,
    composition_statistics,
    jaccard_statistics,
    winoground_statistics,
)
from siclip.evaluation.retrieval import retrieval_metrics, retrieve, values
from siclip.evaluation.suite import SETS, average, find_set, suite_sets

torchmetrics = pytest.importorskip("torchmetrics")


def unit(*shape: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture(scope="module")
def captioned() -> tuple[Tensor, Tensor, Tensor]:
    """60 images with 1 to 4 captions each, in mixed order."""
    owner = torch.cat([torch.full((1 + image % 4,), image) for image in range(60)])
    owner = owner[torch.randperm(len(owner), generator=torch.Generator().manual_seed(1))]
    image = unit(60, 16)
    return image, normalize(image[owner] + 2 * unit(len(owner), 16, seed=2), dim=-1), owner


def test_retrieval_equals_torchmetrics(captioned: tuple[Tensor, Tensor, Tensor]) -> None:
    from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_reciprocal_rank

    image, text, owner = captioned
    found = retrieval_metrics(image, text, owner)
    scores = text @ image.T
    right = owner.unsqueeze(1) == torch.arange(60)
    for name, rows, targets in (("image_retrieval", scores, right), ("text_retrieval", scores.T, right.T)):
        # torchmetrics does not count a score of 0 or less as retrieved.
        pairs = list(zip(rows + 2, targets, strict=True))
        for k in (1, 5, 10):
            expected = np.mean([retrieval_hit_rate(row, target, top_k=k).item() for row, target in pairs])
            assert found[f"{name}_recall@{k}"] == pytest.approx(expected, abs=1e-7)
        mrr = np.mean([retrieval_reciprocal_rank(row, target).item() for row, target in pairs])
        assert found[f"{name}_mrr"] == pytest.approx(mrr, abs=1e-7)
        positions = [int((row > row[target].max()).sum()) + 1 for row, target in pairs]
        assert found[f"{name}_median_rank"] == np.median(positions)
    assert 0.1 < found["mean_recall@1"] < 0.9


def test_chunks_equal_the_full_matrix(
    captioned: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = retrieval_metrics(*captioned)
    monkeypatch.setattr(ranks, "SCORES_AT_ONCE", 7 * 60)
    assert retrieval_metrics(*captioned) == pytest.approx(whole, abs=1e-12)


def test_equal_candidates_are_found_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = unit(40, 8)
    rows[[3, 17, 30]] = rows[20].clone()
    rows[39] = rows[0]
    expected = [next(j for j in range(40) if torch.equal(rows[j], rows[i])) for i in range(40)]
    # With len as the hash, different rows collide.
    for hashing in (hash, len):
        monkeypatch.setitem(ranks.__dict__, "hash", hashing)
        found = ranks._first_of_equals(rows)
        assert found is not None and found.tolist() == expected
    monkeypatch.undo()
    assert ranks._first_of_equals(unit(5, 8)) is None


def test_expected_values_equal_the_mean_over_all_ways_of_breaking_ties() -> None:
    """All orders of five candidates; three tie, two of these are right."""
    scores, right = [0.9, 0.5, 0.5, 0.5, 0.1], {1, 2}
    first = [
        1 + min(order.index(c) for c in right)
        for order in permutations(range(5))
        if [scores[c] for c in order] == sorted(scores, reverse=True)
    ]
    found = ranks.ranks_of_scores(torch.tensor([scores]), torch.tensor([[1, 2, -1]]))
    for k in range(1, 6):
        assert found.hits(k)[0] == pytest.approx(np.mean([position <= k for position in first]))
    assert found.expected()[0] == pytest.approx(np.mean(first))
    assert found.reciprocal()[0] == pytest.approx(np.mean([1 / position for position in first]))


def test_constant_embeddings_get_chance() -> None:
    same = unit(1, 8)
    found = retrieval_metrics(same.repeat(20, 1), same.repeat(100, 1), torch.arange(100) // 5)
    for k in (1, 5, 10):
        assert found[f"image_retrieval_recall@{k}"] == pytest.approx(k / 20)
        missed = math.comb(95, k) / math.comb(100, k)
        assert found[f"text_retrieval_recall@{k}"] == pytest.approx(1 - missed)
    constant = classify(same.repeat(30, 1), same.repeat(10, 1), np.arange(30) % 10)
    assert values(constant.statistics(), 30) == pytest.approx(
        {"acc1": 0.1, "acc5": 0.5, "mean_per_class_recall": 0.1}
    )


def test_nan_embeddings_are_never_right() -> None:
    image, text = unit(20, 8), unit(20, 8) * float("nan")
    assert retrieval_metrics(image, text)["mean_recall@1"] == pytest.approx(1 / 20)
    broken = unit(20, 8)
    broken[:10] = float("nan")
    assert retrieval_metrics(broken, unit(20, 8))["image_retrieval_recall@1"] == 0.5


@pytest.fixture(scope="module")
def predictions() -> tuple[Tensor, Tensor, np.ndarray]:
    classes = unit(12, 16)
    labels = torch.randint(0, 9, (200,), generator=torch.Generator().manual_seed(3)).numpy()
    return normalize(classes[labels] + unit(200, 16, seed=4), dim=-1), classes, labels


def test_classification_equals_scikit_learn_and_torchmetrics(predictions: tuple[Tensor, Tensor, np.ndarray]) -> None:
    from torchmetrics.functional.classification import multiclass_accuracy

    image, classes, labels = predictions
    found = classify(image, classes, labels)
    scores = image @ classes.T
    named = values(found.statistics() | found.macro_f1(), 200)
    for k in (1, 5):
        expected = top_k_accuracy_score(labels, scores.numpy(), k=k, labels=np.arange(12))
        assert named[f"acc{k}"] == pytest.approx(expected, abs=1e-12)
        own = multiclass_accuracy(scores, torch.from_numpy(labels), 12, average="micro", top_k=k).item()
        assert named[f"acc{k}"] == pytest.approx(own, abs=1e-6)
    predicted = scores.argmax(dim=1).numpy()
    assert named["mean_per_class_recall"] == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-12)
    expected = f1_score(labels, predicted, average="macro", labels=np.unique(labels))
    assert named["F1-macro_all"] == macro_f1(labels, predicted) == pytest.approx(expected, abs=1e-12)
    # Group 1 has no samples.
    groups = np.arange(200) % 3 * 2
    worst = min((predicted == labels)[groups == group].mean() for group in (0, 2, 4))
    assert values(found.worst_group("acc_wg", groups), 200)["acc_wg"] == pytest.approx(worst)


def test_multilabel_precision_equals_scikit_learns() -> None:
    generator = np.random.default_rng(5)
    targets = (generator.random((80, 6)) < 0.3).astype(np.int64)
    # Rounded, so that many scores tie.
    scores = np.round(generator.random((80, 6)) + 0.4 * targets, 1)
    found = values(multilabel_statistics(scores, targets), 80)
    expected = average_precision_score(targets, scores, average="macro")
    assert found["mean_average_precision"] == pytest.approx(expected, abs=1e-12)
    eleven = []
    for c in range(6):
        best = []
        for point in np.linspace(0, 1, 11):
            chosen = [scores[:, c] >= cut for cut in np.unique(scores[:, c])]
            least = point * targets[:, c].sum() - 1e-9
            best.append(max(targets[s, c].mean() for s in chosen if targets[s, c].sum() >= least))
        eleven.append(np.mean(best))
    assert found["mean_average_precision_11_point"] == pytest.approx(np.mean(eleven), abs=1e-12)


def test_class_embeddings_average_over_templates() -> None:
    prompts = ("x cat", "x dog", "y cat", "y dog")
    table = {prompt: unit(1, 4, seed=number)[0] for number, prompt in enumerate(prompts)}
    found = class_embeddings(lambda texts: torch.stack([table[t] for t in texts]), ["cat", "dog"], ["x {c}", "y {c}"])
    cat = normalize((table["x cat"] + table["y cat"]) / 2, dim=-1)
    assert torch.allclose(found[0], cat, atol=1e-7) and found.shape == (2, 4)
    own = class_embeddings(lambda texts: torch.stack([table[t] for t in texts]), ["dog"], {"dog": ["y dog"]})
    assert torch.allclose(own[0], table["y dog"], atol=1e-7)
    for templates in (["a photo"], []):
        with pytest.raises(UserError, match=r"templates need \{c\}"):
            prompts_of("cat", templates)
    with pytest.raises(UserError, match="no prompts for class 'cat'"):
        prompts_of("cat", {"dog": ["a dog"]})


def test_labels_without_a_class_name_are_refused() -> None:
    check_labels(np.array([0, 2]), ["a", "b", "c"], "here")
    with pytest.raises(UserError, match=r"here: labels 3, 7 have no class name, there are 3"):
        check_labels(np.array([0, 7, 3, 7]), ["a", "b", "c"], "here")


def test_composition_by_kind() -> None:
    image = torch.eye(3)
    text = torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0, 1.0, 0], [0, 1.0, 0], [0, 0, 0.5], [0, 0, 0.6]])
    items = [
        CompositionItem(0, 0, (("swap", (1,)), ("add", (2, 3)))),  # right in both
        CompositionItem(1, 2, (("swap", (3,)),)),  # a tie
        CompositionItem(2, 4, (("add", (5,)),)),  # wrong
    ]
    found = values(composition_statistics(items, image, text), 3)
    assert found == pytest.approx(
        {"accuracy": (0.75 + 0.5) / 2, "beats_all_negatives": 0.5, "accuracy_add": 0.5, "accuracy_swap": 0.75}
    )


def test_winoground_scores_follow_their_definition() -> None:
    image, text = unit(10, 6, seed=6), unit(10, 6, seed=7)
    pairs = [
        (CompositionItem(i, i, (("swap", (i + 1,)),)), CompositionItem(i + 1, i + 1, (("swap", (i,)),)))
        for i in range(0, 10, 2)
    ]
    found = values(winoground_statistics(pairs, image, text), 5)
    s = (image @ text.T).view(10, 10).numpy()
    by_text = [s[i, i] > s[i, i + 1] and s[i + 1, i + 1] > s[i + 1, i] for i in range(0, 10, 2)]
    by_image = [s[i, i] > s[i + 1, i] and s[i + 1, i + 1] > s[i, i + 1] for i in range(0, 10, 2)]
    assert found["text_score"] == np.mean(by_text) and found["image_score"] == np.mean(by_image)
    assert found["group_score"] == np.mean(np.logical_and(by_text, by_image))


def test_jaccard_equals_scikit_learns() -> None:
    cues, expected = [], {5: [], 10: []}
    for index, size in enumerate((5, 5, 10, 10)):
        text, candidates = unit(1, 8, seed=index)[0], unit(size, 8, seed=10 + index)
        right = np.isin(np.arange(size), [0, 2])
        cues.append((text, candidates, right))
        chosen = np.isin(np.arange(size), np.argsort((candidates @ text).numpy())[-2:])
        expected[size].append(jaccard_score(right, chosen))
    found = values(jaccard_statistics(cues), 4)
    assert found["jaccard_score_5-6"] == pytest.approx(np.mean(expected[5]))
    assert found["jaccard_score_10-12"] == pytest.approx(np.mean(expected[10]))


def test_intervals_cover_the_true_value_as_often_as_stated() -> None:
    """95 % intervals of the mean of 200 coin tosses with probability 0.3, in 300 experiments."""
    generator = np.random.default_rng(0)
    covered = 0
    for experiment in range(300):
        tosses = (generator.random(200) < 0.3).astype(float)
        found = intervals({"m": lambda u, t=tosses: float(t[u].mean())}, 200, resamples=200, seed=experiment)["m"]
        covered += found.low <= 0.3 <= found.high
    # The percentile method covers slightly less than 95 %.
    assert binomtest(covered, 300, 0.94).pvalue > 0.001


def test_paired_differences_are_narrower_than_separate_ones() -> None:
    generator = np.random.default_rng(1)
    first = generator.random(500)
    second = first + 0.01 * generator.standard_normal(500) + 0.02
    metrics = [{"m": lambda u, x=x: float(x[u].mean())} for x in (first, second)]
    single = intervals(metrics[0], 500)["m"]
    both = paired_differences(metrics[0], metrics[1], 500)["m"]
    assert both.value == pytest.approx(0.02, abs=0.002) and both.low > 0.018 and both.high < 0.022
    assert single.high - single.low > 10 * (both.high - both.low)
    assert paired_differences(metrics[0], metrics[0], 500)["m"].high == 0
    assert intervals(metrics[0], 500) == intervals(metrics[0], 500)


def test_captions_are_resampled_with_their_image(captioned: tuple[Tensor, Tensor, Tensor]) -> None:
    image, text, owner = captioned
    found = retrieve(image, text, owner).statistics()["image_retrieval_recall@1"]
    hit = (text @ image.T).argmax(dim=1) == owner
    five, nine = hit[owner == 5].double(), hit[owner == 9].double()
    assert found(np.array([5, 5, 9])) == pytest.approx(torch.cat([five, five, nine]).mean().item())


def test_the_suite_has_38_sets_and_an_average_reports_how_many_it_covers() -> None:
    assert len(SETS) == 38 == len({each.name for each in SETS}) == len({f for each in SETS for f in each.folders[:1]})
    assert suite_sets("datacomp") == SETS == suite_sets("38") and suite_sets("imagenet1k") is None
    usual = {"acc1", "mean_per_class_recall", "mean_recall@1", "jaccard_score_10-12", "F1-macro_all"}
    assert {s.metric for s in SETS} == usual | {"acc_worst_region", "acc_top5_wg", "acc_wg"}
    caltech = find_set("vtab/caltech101")
    assert caltech is not None and caltech is find_set("caltech101")
    assert caltech.folders[0] == "wds_vtab-caltech101_test"
    whole = average({each.name: 0.5 for each in SETS})
    assert (whole.title, whole.value, whole.missing) == ("38-set average", 0.5, ())
    some = average({"mnist": 0.2, "cars": 0.4, "not of the suite": 1.0})
    assert some.title == "average over 2 of 38" and some.value == pytest.approx(0.3) and len(some.missing) == 36
    with pytest.raises(UserError, match="none of the suite's sets"):
        average({})
