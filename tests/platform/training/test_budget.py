"""Evaluations in training: their share of the time, and the samples that they use."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from siclip.models.clip import Clip
from siclip.models.registry import create_model, model_config
from siclip_platform.recipes.digits import digits_teacher
from siclip_platform.stream import load_evaluation_set, validation_set
from siclip_platform.training.budget import Budgeted
from siclip_platform.training.build import prepare


class Run:
    """A run with steps of 1 s and evaluations of ``seconds``, on a simulated clock."""

    def __init__(self, max_share: float, seconds: float, steps: int = 100) -> None:
        self.time = self.trained = 0.0
        self.step, self.seconds = 0, seconds
        self.evaluated: list[int] = []
        self.budgeted = Budgeted(
            self.evaluate,
            max_share=max_share,
            last_step=steps,
            now=lambda: (self.step, self.trained),
            clock=lambda: self.time,
        )

    def evaluate(self, model: Clip) -> dict[str, float]:
        self.evaluated.append(self.step)
        self.time += self.seconds
        return {"validation/recall@1": 0.5}

    def train(self, every: int) -> dict[str, float]:
        metrics: dict[str, float] = {}
        model = create_model("mobileclip-nano")
        for step in range(1, self.budgeted.last_step + 1):
            self.step = step
            self.trained += 1
            self.time += 1
            if self.step % every == 0:
                metrics = self.budgeted(model)
        return metrics


def test_evaluations_stay_within_their_share(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(max_share=0.2, seconds=4)
    with caplog.at_level(logging.WARNING):
        metrics = run.train(every=5)
    assert run.evaluated[0] == 5 and run.evaluated[-1] == 100 and len(run.evaluated) < 20
    for number, step in list(enumerate(run.evaluated, start=1))[1:-1]:
        assert 4 * number / (4 * number + step) <= 0.2
    assert metrics["cost/evaluations_skipped"] == 20 - len(run.evaluated) == len(caplog.records)
    assert metrics["cost/evaluation_seconds"] == 4 * len(run.evaluated)
    assert "evaluation.max_share allows 20%" in caplog.text


def test_with_a_share_of_one_nothing_is_skipped() -> None:
    run = Run(max_share=1, seconds=50)
    assert run.train(every=10) == {"validation/recall@1": 0.5} and len(run.evaluated) == 10


def test_the_subset_is_drawn_by_its_seed(digits: Path) -> None:
    model = model_config("mobileclip-nano")
    recipe = digits_teacher(digits).updated({"evaluation.validation_samples": 12})
    drawn = [validation_set(recipe.updated({"evaluation.subset_seed": seed}), model).tokens for seed in (0, 0, 1)]
    whole = load_evaluation_set(digits, "validation", model).tokens
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert all(any(torch.equal(row, other) for other in whole) for row in drawn[0])
    assert not torch.equal(drawn[0], whole[:12]) and len(drawn[0]) == 12


def test_a_recipe_sets_the_share(digits: Path) -> None:
    changes = {"evaluation.max_share": 0.01, "evaluation.validation_samples": 4, "training.evaluate_every": 1}
    prepared = prepare(digits_teacher(digits, steps=20).updated(changes))
    model = prepared.trainer.model
    prepared.trainer.step, prepared.trainer.training_seconds = 1, 0.001
    assert "validation/mean_recall@1" in prepared.evaluate(model)
    assert prepared.evaluate(model)["cost/evaluations_skipped"] == 1
    prepared.trainer.step = 20
    assert "validation/mean_recall@1" in prepared.evaluate(model)
