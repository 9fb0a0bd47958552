"""`siclip-platform evaluate`: two models, intervals, MLflow keys, the pair-matching head and costs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mlflow
import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from siclip.checkpoints.formats import load_model, save_checkpoint
from siclip.config import LossConfig
from siclip.diagnostics.describe import describe_model
from siclip.errors import UserError
from siclip.evaluation.cost import latency, measure_cost
from siclip.evaluation.reranking import load_pair_head, rerank_retrieval
from siclip.evaluation.retrieval import retrieve
from siclip.losses.objective import Objective
from siclip.losses.pair_matching import PairMatchingHead
from siclip_platform.cli import main
from siclip_platform.evaluation.models import open_model


@pytest.fixture(scope="module")
def matched(nano_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose training state has a pair-matching head."""
    model = load_model(nano_teacher)
    torch.manual_seed(8)
    for parameter in model.text_encoder.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    loss = LossConfig(
        feature_distillation=0, contrastive_relational=0, interactive_contrastive=0, pair_matching=1, pair_head="mlp"
    )
    objective = Objective(loss, model.config.embed_dim, None)
    path = tmp_path_factory.mktemp("matched") / "matched.pt"
    save_checkpoint(path, model, {"objective": objective.state_dict()})
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["siclip-platform", "evaluate", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_two_models_side_by_side_and_in_mlflow(
    nano_teacher: Path,
    matched: Path,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    suite = ["--data", digits.parent, "--suite", digits.name]
    command = [nano_teacher, *suite, "--compare", matched, "--resamples", 50, "--tracking-uri", uri, "--json"]
    assert run(monkeypatch, *command) == 0
    tree: dict[str, Any] = json.loads(capsys.readouterr().out)
    found = tree["sets"][digits.name]
    first, second = (found["metrics"][str(path)] for path in (nano_teacher, matched))
    difference = found["differences"][str(matched)]["beats_all_negatives"]
    expected = second["beats_all_negatives"]["value"] - first["beats_all_negatives"]["value"]
    assert difference["value"] == pytest.approx(expected) and difference["low"] <= expected <= difference["high"]
    key = f"eval/{digits.name}/image_retrieval_recall@5"
    assert tree["metrics"][str(matched)][key] == second["image_retrieval_recall@5"]["value"]
    runs = mlflow.MlflowClient(tracking_uri=uri).search_runs(["1"], "tags.`siclip.kind` = 'evaluation'")
    logged = {each.data.params["model"]: each.data.metrics for each in runs}
    assert logged[str(matched)][key.replace("@", "_at_")] == pytest.approx(tree["metrics"][str(matched)][key])
    assert logged.keys() == {str(nano_teacher), str(matched)}


def test_the_table_and_the_pair_matching_head(
    matched: Path, digits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert run(monkeypatch, matched, "--data", digits, "--pair-matching", "--top", 5, "--resamples", 20) == 0
    screen = capsys.readouterr().out
    for part in (
        "pair_matching_image_retrieval_recall@1",
        "pair_matching_beats_all_negatives",
        "bootstrap intervals",
    ):
        assert part in screen, screen
    assert (
        run(monkeypatch, matched, "--data", digits.parent, "--suite", f"mnist,{digits.name}", "--resamples", 5) == 0
    )
    assert "Missing, 1 of 2: mnist" in capsys.readouterr().out


def test_bad_input_ends_with_a_message(
    nano_teacher: Path, digits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        ("missing.pt", "--suite", "datacomp"): "missing.pt does not exist",
        (nano_teacher, "--pair-matching"): "has no training state",
        (nano_teacher, "--compare", nano_teacher): "named twice",
        (nano_teacher, "--compare", "open_clip:ViT-B-32"): "open_clip:NAME:TAG",
        (nano_teacher, "--compare", "open_clip:ViT-B-32:nothing"): "ViT-B-32",
        (nano_teacher, "--suite", "38"): "none of the sets was found",
        (nano_teacher, "--split", "other"): "no split 'other'",
    }
    for arguments, message in cases.items():
        assert run(monkeypatch, *arguments, "--data", digits) == 2
        assert message in capsys.readouterr().err


def test_a_head_is_read_from_the_training_state(nano_teacher: Path, matched: Path, tmp_path: Path) -> None:
    head = load_pair_head(matched)
    state = torch.load(matched, weights_only=True)["training"]["objective"]
    assert torch.equal(head.hidden.weight, state["pair_matching_head.hidden.weight"])
    plain = tmp_path / "plain.pt"
    save_checkpoint(plain, load_model(nano_teacher), {"objective": {}})
    with pytest.raises(UserError, match="was trained without pair matching"):
        load_pair_head(plain)


def brute_force(image: Tensor, text: Tensor, head: PairMatchingHead, top: int) -> float:
    """Share of captions whose image ranks first when the head sorts the first ``top``; one caption per image."""
    hits = 0
    for index, query in enumerate(text):
        order = (image @ query).argsort(descending=True)[:top]
        best = order[head(image[order], query.expand(top, -1)).argmax()]
        hits += int(best == index) if index in order else int((image @ query).argmax() == index)
    return hits / len(text)


def test_reranking_equals_brute_force() -> None:
    torch.manual_seed(3)
    image = normalize(torch.randn(40, 8), dim=-1)
    text = normalize(image + 0.8 * normalize(torch.randn(40, 8), dim=-1), dim=-1)
    head = PairMatchingHead("product", 8)
    torch.nn.init.normal_(head.weight, 10, 4)
    owner = torch.arange(40)
    plain = retrieve(image, text).image_retrieval
    with torch.no_grad():
        for top in (1, 4, 40):
            found = rerank_retrieval(image, text, owner, head, top)
            assert found.image_retrieval.hits(1).mean() == pytest.approx(brute_force(image, text, head, top)), top
            assert (
                found.image_retrieval.hits(top) == plain.hits(top)
            ).all()  # re-ranking does not change which images are among the first
    torch.nn.init.constant_(head.weight, 10)  # with equal weights the head orders by cosine
    by_cosine = retrieve(image, text).text_retrieval.greater
    assert (rerank_retrieval(image, text, owner, head, 40).text_retrieval.greater == by_cosine).all()


def test_constant_embeddings_score_at_chance_after_reranking() -> None:
    same = normalize(torch.ones(1, 8), dim=-1).repeat(50, 1)
    found = rerank_retrieval(same, same, torch.arange(50), PairMatchingHead("product", 8), 10)
    assert found.image_retrieval.hits(1).mean() == pytest.approx(1 / 50)
    assert found.image_retrieval.hits(20).mean() == pytest.approx(20 / 50)


def test_costs_equal_those_of_the_model_description(nano_teacher: Path) -> None:
    encoder = open_model(str(nano_teacher), torch.device("cpu"))
    cost = measure_cost(encoder, encoder, rounds=2)
    described = describe_model(load_model(nano_teacher)).total
    assert cost.parameters == described.reparameterized_parameters
    assert cost.multiply_adds == described.multiply_adds
    assert all(low <= median <= high for median, low, high in cost.times_reference.values())
    assert set(cost.milliseconds) == {1, 32} and cost.peak_bytes > 2**20


def test_latency_is_the_median_after_a_warm_up_and_does_not_change_the_model(
    nano_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([9.0, 0.004, 0.001, 0.005, 0.002, 0.003])
    monkeypatch.setattr("siclip.evaluation.cost._seconds", lambda run, device: next(seconds))
    model, state = load_model(nano_teacher).train(), torch.get_rng_state()
    assert latency(model, torch.device("cpu")) == pytest.approx(3.0)
    assert torch.equal(torch.get_rng_state(), state) and model.training and not model.is_reparameterized


def test_an_open_clip_model_on_either_side(
    nano_teacher: Path,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    (tmp_path / "siclip-test-side.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "siclip-test-side.json")
    torch.save(open_clip.create_model("siclip-test-side").state_dict(), tmp_path / "weights.pt")
    other = f"open_clip:siclip-test-side:{tmp_path / 'weights.pt'}"
    for models in ((other, "--compare", nano_teacher), (nano_teacher, "--compare", other)):
        assert run(monkeypatch, *models, "--data", digits, "--resamples", 5, "--json") == 0
        tree = json.loads(capsys.readouterr().out)
        assert set(tree["models"]) == {other, str(nano_teacher)}
        (found,) = tree["sets"].values()
        assert found["state"] == "measured" and set(found["differences"]) == {tree["models"][1]}
