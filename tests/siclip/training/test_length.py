"""Schedules of the learning rate, their length in epochs or shares, and which runs may be extended."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.optim import lr_scheduler as torch_schedules

from siclip.checkpoints.formats import save_checkpoint
from siclip.config import LossConfig, TrainingConfig
from siclip.errors import UserError
from siclip.training.loop import resume, train
from siclip.training.optimizer import learning_rate
from tests.siclip.training.test_schedule import Keep, same_weights
from tests.siclip.training.test_training import batches, config, student

PEAK, STEPS, WARMUP, COOLDOWN = 4e-3, 60, 12, 15
PLAIN = LossConfig()


def torch_rates(schedule: str) -> list[float]:
    """The rates of torch's own schedulers, one after the other."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=PEAK)
    rest = STEPS - WARMUP
    later: dict[str, list[tuple[int, torch_schedules.LRScheduler]]] = {
        "cosine": [(WARMUP, torch_schedules.CosineAnnealingLR(optimizer, rest))],
        "constant": [(WARMUP, torch_schedules.ConstantLR(optimizer, 1.0))],
        "constant_cooldown": [
            (WARMUP, torch_schedules.ConstantLR(optimizer, 1.0)),
            (STEPS - COOLDOWN, torch_schedules.LinearLR(optimizer, 1.0, 0.0, COOLDOWN)),
        ],
    }
    # Torch warms up from a share of the peak to the peak, after as many steps as there are in between.
    warmup = torch_schedules.LinearLR(optimizer, 1 / WARMUP, 1.0, WARMUP - 1)
    begins, parts = zip(*later[schedule], strict=True)
    whole = torch_schedules.SequentialLR(optimizer, [warmup, *parts], list(begins))
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        whole.step()
    return rates


@pytest.mark.parametrize("schedule", ["cosine", "constant", "constant_cooldown"])
def test_rates_are_those_of_torchs_schedulers(schedule: str) -> None:
    ours = config(steps=STEPS, warmup_steps=WARMUP, cooldown_steps=COOLDOWN, learning_rate=PEAK, schedule=schedule)
    rates = [learning_rate(step, ours) for step in range(STEPS)]
    assert rates == pytest.approx(torch_rates(schedule), rel=1e-9, abs=1e-15)
    shares = {"warmup_share": WARMUP / STEPS, "cooldown_share": COOLDOWN / STEPS}
    by_share = TrainingConfig.model_validate({"steps": STEPS, "learning_rate": PEAK, "schedule": schedule, **shares})
    assert [learning_rate(step, by_share) for step in range(STEPS)] == rates


@given(
    epochs=st.decimals(min_value="0.01", max_value=400, places=2),
    samples=st.integers(1000, 20_000_000),
    batch_size=st.integers(2, 4096),
)
def test_epochs_become_the_fewest_steps_that_leave_no_sample_out(
    epochs: float, samples: int, batch_size: int
) -> None:
    ours = TrainingConfig(epochs=float(epochs), batch_size=batch_size, warmup_steps=0)
    counted = ours.with_steps(samples)
    needed = Fraction(str(epochs)) * samples
    assert (counted.steps - 1) * batch_size < needed <= counted.steps * batch_size
    assert counted.epochs == 0 and counted.with_steps(7) == counted
    assert counted.model_copy(update={"steps": 0, "epochs": float(epochs)}) == ours


def test_what_is_given_replaces_the_default_of_its_alternative_and_two_are_refused() -> None:
    shares = TrainingConfig(steps=1000, warmup_share=0.05, schedule="constant_cooldown", cooldown_steps=40)
    assert (shares.warmup, shares.cooldown) == (50, 40)
    assert TrainingConfig.model_validate(shares.model_dump()) == shares
    assert TrainingConfig(steps=1000).warmup == 100
    wrong = {
        "epochs 2 and steps 1000 say the same": {"epochs": 2},
        "warmup_share 0.1 and warmup_steps 5 say the same": {"warmup_share": 0.1, "warmup_steps": 5},
        "a warm-up of 100 and a cool-down of 950 steps do not fit": {
            "schedule": "constant_cooldown",
            "cooldown_steps": 950,
        },
        "lacks its cool-down": {"schedule": "constant_cooldown", "cooldown_share": 0},
    }
    for words, values in wrong.items():
        with pytest.raises(ValidationError, match=words):
            TrainingConfig.model_validate({"steps": 1000} | values)
    with pytest.raises(ValidationError, match="lacks its length; add steps or epochs"):
        TrainingConfig()
    with pytest.raises(ValidationError, match="warmup_steps 100 must be below the 20 steps"):
        TrainingConfig(epochs=2).with_steps(15_000)


def test_a_run_at_a_constant_rate_is_extended_and_cooled_down_bit_for_bit(tmp_path: Path) -> None:
    short = student(config(steps=4, warmup_steps=2, schedule="constant"), PLAIN)
    train(short, batches, Keep(tmp_path))
    longer = config(steps=8, warmup_steps=2, schedule="constant_cooldown", cooldown_steps=3)
    extended, whole = student(longer, PLAIN), student(longer, PLAIN)
    resume(extended, tmp_path / "4.pt")
    train(extended, batches, Keep())
    train(whole, batches, Keep())
    assert extended.step == 8 and same_weights(extended, whole)


def test_what_the_length_has_changed_already_cannot_be_extended(tmp_path: Path) -> None:
    values = {"steps": 4, "warmup_steps": 2}
    refused = {
        "cosine": (config(**values), PLAIN, r"steps 4 there, 8 here: the learning rates differ from step 3 on"),
        "late": (
            config(**values, schedule="constant_cooldown", cooldown_steps=2),
            PLAIN,
            "rates differ from step 3 on, and 4 steps are done",
        ),
        "annealed": (
            config(**values, schedule="constant"),
            LossConfig(pair_matching=0.5, negatives="annealed"),
            "loss.negatives annealed follows the share of the steps that are done",
        ),
    }
    for name, (training, loss, words) in refused.items():
        done, longer = student(training, loss), student(training.model_copy(update={"steps": 8}), loss)
        done.step = 4
        save_checkpoint(tmp_path / f"{name}.pt", done.result, done.state_dict())
        with pytest.raises(UserError, match=words):
            resume(longer, tmp_path / f"{name}.pt")
        assert longer.step == 0


def test_a_config_in_epochs_trains_only_once_its_steps_are_counted() -> None:
    with pytest.raises(UserError, match=r"training.epochs 2 are steps only once the samples are counted"):
        student(TrainingConfig(epochs=2, batch_size=8, precision="fp32"))
    assert math.isclose(learning_rate(0, TrainingConfig(steps=10, warmup_share=0.2)), 1e-3 / 2)
