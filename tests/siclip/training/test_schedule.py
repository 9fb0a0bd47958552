"""Loss weights that change at a step: which are applied, and which checkpoints can be resumed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from siclip.config import LossConfig
from siclip.errors import UserError
from siclip.training.loop import Save, resume, train
from siclip.training.trainer import Trainer
from tests.siclip.training.test_training import batch, batches, config, student

BASE = LossConfig(pair_matching=0.5)
CHANGES = {"feature_distillation": 500.0, "pair_matching": 2.0, "relational_temperature": 3.0}


class Keep:
    """A `Reporter` that keeps checkpoints in a folder, if it has one."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def milestone(self, step: int, metrics: Mapping[str, float], save: Save | None) -> None:
        if save and self.folder:
            save(self.folder / f"{step}.pt")


def scheduled(*stages: tuple[int, dict[str, float]]) -> LossConfig:
    plain = [{"step": step, "weights": weights} for step, weights in stages]
    return LossConfig.model_validate(BASE.model_dump() | {"schedule": plain})


def same_weights(one: Trainer, other: Trainer) -> bool:
    mine, theirs = (
        {**trainer.model.state_dict(), **{f"objective.{k}": v for k, v in trainer.objective.state_dict().items()}}
        for trainer in (one, other)
    )
    return all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_each_step_has_the_weights_of_its_stage() -> None:
    trainer = student(config(), scheduled((2, CHANGES), (4, {"contrastive": 0.25})))
    for step in range(6):
        metrics = {name: float(value) for name, value in trainer.train_step(batch(step)).items()}
        expected = {
            "contrastive": 1.0 if step < 4 else 0.25,
            "feature_distillation": 2000.0 if step < 2 else 500.0,
            "contrastive_relational": 1.0,
            "pair_matching": 0.5 if step < 2 else 2.0,
        }
        for part, weight in expected.items():
            assert metrics[f"weighted/{part}"] == pytest.approx(weight * metrics[part], rel=1e-6), (step, part)


def test_a_schedule_equals_a_run_whose_objective_was_replaced_manually() -> None:
    whole = student(config(), scheduled((3, CHANGES)))
    by_hand, later = student(config(), BASE), student(config(), BASE.model_copy(update=CHANGES))
    for step in range(6):
        whole.train_step(batch(step))
        if step == 3:
            later.model.load_state_dict(by_hand.model.state_dict())
            later.objective.load_state_dict(by_hand.objective.state_dict())
            later.optimizer.load_state_dict(by_hand.optimizer.state_dict())
            later.step = 3
        (by_hand if step < 3 else later).train_step(batch(step))
    assert same_weights(whole, later)
    assert not same_weights(whole, by_hand)


def test_a_stage_may_be_added_to_a_run_at_its_checkpoint_but_not_before(tmp_path: Path) -> None:
    first = student(config(checkpoint_every=2), scheduled((1, {"contrastive": 2.0})))
    train(first, batches, Keep(tmp_path))
    longer = scheduled((1, {"contrastive": 2.0}), (4, CHANGES))
    added, whole = (student(config(checkpoint_every=2), longer) for _ in range(2))
    resume(added, tmp_path / "4.pt")
    train(added, batches, Keep())
    train(whole, batches, Keep())
    assert same_weights(added, whole)

    earlier = student(config(checkpoint_every=2), scheduled((1, {"contrastive": 2.0}), (3, CHANGES)))
    with pytest.raises(UserError, match=r"another run: loss.schedule"):
        resume(earlier, tmp_path / "4.pt")


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (((3, {"contrastive": 2.0}), (3, {"contrastive": 3.0})), "do not increase"),
        (((3, {"interactive_contrastive": 2.0}),), "interactive_contrastive is 0 at the start"),
        (((3, {"contrastive": 0.0}),), "greater than 0"),
        (((0, {"contrastive": 2.0}),), "greater than or equal to 1"),
        (((3, {"pair_head": 2.0}),), "Input should be 'contrastive'"),
    ],
)
def test_an_invalid_schedule_is_refused(stages: tuple[tuple[int, dict[str, float]], ...], words: str) -> None:
    plain = [{"step": step, "weights": weights} for step, weights in stages]
    with pytest.raises(ValidationError, match=words):
        LossConfig.model_validate({"interactive_contrastive": 0, "schedule": plain})
