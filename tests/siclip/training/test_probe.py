"""``micro_batch_size: auto`` through the real trainer, on a device with simulated out-of-memory errors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from siclip.checkpoints.formats import save_checkpoint
from siclip.config import LossConfig, TrainingConfig
from siclip.data.batch import Batch
from siclip.models import create_model, model_config
from siclip.training import memory
from siclip.training.loop import resume
from siclip.training.setup import make_trainer
from siclip.training.step import Step
from siclip.training.trainer import Trainer

Fits = Callable[[Step, int], bool]


def batch(index: int, size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(index)
    images = torch.randint(0, 256, (size, 64, 64, 3), generator=generator, dtype=torch.uint8)
    tokens = torch.randint(1, 400, (size, 20), generator=generator)
    ids = torch.arange(size) + index * size
    return Batch(images, tokens, ids, ids)


def student(**changes: object) -> Trainer:
    values = {"steps": 6, "batch_size": 8, "warmup_steps": 2, "precision": "fp32", "threads": 1, "batch_norm": "eval"}
    torch.manual_seed(7)
    return make_trainer(
        model_config("siclip-nano"),
        LossConfig(pair_matching=0.5),
        TrainingConfig.model_validate(values | changes),
        teacher=create_model("mobileclip-nano"),
        inherit_weights=True,
        device=torch.device("cpu"),
    )


class Card:
    """The events on a device whose memory fits what ``fits`` accepts."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.fits: Fits = lambda step, size: True
        self.fits_batch: Callable[[Batch], bool] = lambda data: True


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    found, gradients = Card(), Step.gradients

    def limited(step: Step, data: Batch, *rest: Any, **named: Any) -> Any:
        size = step.micro_batch_size or len(data)
        found.sizes.append(size)
        if not (found.fits(step, size) and found.fits_batch(data)):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gradients(step, data, *rest, **named)

    monkeypatch.setattr(memory, "is_limited", lambda device: True)
    monkeypatch.setattr(Step, "gradients", limited)
    yield found


def test_the_size_is_measured_on_the_first_batch_and_trains_like_a_fixed_size(card: Card) -> None:
    auto, set_ = student(micro_batch_size="auto"), student(micro_batch_size=4)
    card.fits = lambda step, size: size <= 4
    losses = [float(auto.train_step(batch(i))["loss"]) for i in range(3)]
    assert card.sizes == [8, 4, 4, 4, 4]
    assert auto.micro_batch_size == 4
    assert losses == [float(set_.train_step(batch(i))["loss"]) for i in range(3)]
    state = set_.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in auto.model.state_dict().items())


def test_the_longest_captions_must_fit(card: Card) -> None:
    """The size is measured with captions without padding, although those of the first batch are short."""
    auto = student(micro_batch_size="auto")
    short = batch(0)
    short.tokens[:, 5:] = 0
    lengths: list[int] = []
    card.fits_batch = lambda data: lengths.append(int((data.tokens != 0).sum(dim=1).min())) or True
    auto.train_step(short)
    padded_ones = (short.tokens == 0).sum(dim=1)
    # Not exactly 20, because a random id may be 0.
    assert lengths[0] >= 18 and lengths[1] <= 5
    # The batch itself was not changed.
    assert (padded_ones >= 15).all()


def test_a_probe_does_not_change_statistics_and_random_state(card: Card) -> None:
    auto = student(micro_batch_size="auto", batch_norm="train", inexact_batch_norm=True)
    set_ = student(micro_batch_size=4, batch_norm="train", inexact_batch_norm=True)
    card.fits = lambda step, size: size <= 4
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for trainer in (auto, set_):
        trainer.train_step(batch(0))
    assert torch.equal(torch.get_rng_state(), before)
    state = set_.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in auto.model.state_dict().items())


def test_memory_for_the_optimizers_moments_is_reserved_during_a_probe(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    empty_like = torch.empty_like

    def counting(tensor: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        made.append(tensor.numel() if isinstance(tensor, torch.nn.Parameter) else 0)
        return empty_like(tensor, *rest, **named)

    at_first: list[int] = []

    def fits(step: Step, size: int) -> bool:
        at_first.append(sum(made))
        return True

    card.fits = fits
    trainer = student(micro_batch_size="auto")
    monkeypatch.setattr(torch, "empty_like", counting)
    trainer.train_step(batch(0))
    trained = sum(p.numel() for group in trainer.optimizer.param_groups for p in group["params"])
    assert at_first[0] == 2 * trained
    moments = [state[key] for state in trainer.optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    assert sum(moment.numel() for moment in moments) == 2 * trained


def test_with_a_thaw_the_thawed_step_is_the_one_that_must_fit(card: Card) -> None:
    auto, set_ = student(micro_batch_size="auto", thaw_step=2), student(micro_batch_size=2, thaw_step=2)

    def fits(step: Step, size: int) -> bool:
        thawed = not step.model.trunk_is_frozen()
        return size <= (2 if thawed else 8)

    card.fits = fits
    losses = [float(auto.train_step(batch(i))["loss"]) for i in range(4)]
    assert card.sizes == [8, 4, 2, 2, 2, 2, 2]
    assert losses == [float(set_.train_step(batch(i))["loss"]) for i in range(4)]
    assert auto.thawed and auto.teacher is not None


@pytest.mark.parametrize(("name", "tries"), [("cpu", []), ("another card", [8, 4])])
def test_a_resumed_run_measures_again_only_on_another_card(
    name: str, tries: list[int], card: Card, tmp_path: Path
) -> None:
    first, second = student(micro_batch_size="auto"), student(micro_batch_size="auto")
    card.fits = lambda step, size: size <= 2
    first.train_step(batch(0))
    state = copy.deepcopy(first.state_dict())
    assert state["card"] == "cpu" and state["micro_batch_size"] == 2
    save_checkpoint(tmp_path / "1.pt", first.result, state | {"card": name})
    resume(second, tmp_path / "1.pt")
    card.sizes.clear()
    card.fits = lambda step, size: size <= 4
    second.train_step(batch(1))
    assert card.sizes == ([*tries, 4] if tries else [2])
