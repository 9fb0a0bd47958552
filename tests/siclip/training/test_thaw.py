"""Thawing at a step: frozen inherited weights train from then on, and a resumed run equals the uninterrupted one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from siclip.checkpoints.formats import save_checkpoint
from siclip.config import FreezePolicy, LossConfig, TrainingConfig
from siclip.data.batch import Batch, to_float_images
from siclip.errors import UserError
from siclip.models import create_model, model_config
from siclip.training.loop import resume
from siclip.training.setup import make_trainer
from siclip.training.trainer import Trainer

State = dict[str, torch.Tensor]


def batch(index: int, size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(index)
    images = torch.randint(0, 256, (size, 64, 64, 3), generator=generator, dtype=torch.uint8)
    tokens = torch.randint(1, 400, (size, 20), generator=generator)
    ids = torch.arange(size) + index * size
    return Batch(images, tokens, ids, ids + 10_000)


def trainer(thaw_step: int, freeze: FreezePolicy = "inherited", **model: object) -> Trainer:
    training = TrainingConfig(steps=6, batch_size=8, warmup_steps=2, precision="fp32", threads=1, thaw_step=thaw_step)
    torch.manual_seed(7)
    teacher = create_model("mobileclip-nano")
    config = model_config("siclip-nano", **model)
    return make_trainer(
        config, LossConfig(pair_matching=0.5), training, teacher=teacher, inherit_weights=True, freeze=freeze
    )


def run(trainer: Trainer, stop: int) -> list[float]:
    return [float(trainer.train_step(batch(step))["loss"]) for step in range(trainer.step, stop)]


def weights(trainer: Trainer) -> State:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def moved(before: State, after: State) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("saved_at", [2, 3, 4])
@pytest.mark.parametrize("freeze", ["inherited", "before_sasp"])
def test_a_run_resumed_around_the_thaw_equals_the_uninterrupted_one(
    saved_at: int, freeze: FreezePolicy, tmp_path: Path
) -> None:
    whole, second = trainer(3, freeze), trainer(3, freeze)
    run(whole, saved_at)
    save_checkpoint(tmp_path / "saved.pt", whole.model, whole.state_dict())
    losses = run(whole, 6)
    resume(second, tmp_path / "saved.pt")
    assert run(second, 6) == losses
    assert not moved(weights(whole), weights(second))
    ours, theirs = whole.optimizer.state_dict()["state"], second.optimizer.state_dict()["state"]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[i][key]) for i, state in ours.items() for key, value in state.items())


@pytest.mark.parametrize("freeze", ["inherited", "before_sasp"])
def test_frozen_weights_and_statistics_change_only_after_the_thaw(freeze: FreezePolicy) -> None:
    thawing = trainer(3, freeze)
    frozen = {name for name, p in thawing.model.named_parameters() if not p.requires_grad}
    statistics = {
        f"{name}.{statistic}"
        for name, module in thawing.model.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d) and not module.weight.requires_grad
        for statistic in ("running_mean", "running_var", "num_batches_tracked")
    }
    start = weights(thawing)
    run(thawing, 3)
    at_thaw = weights(thawing)
    assert frozen and statistics
    assert not moved(start, at_thaw) & (frozen | statistics)
    run(thawing, 6)
    assert not (frozen | statistics) - moved(at_thaw, weights(thawing))
    assert all(p.requires_grad for p in thawing.model.parameters())
    assert all(m.training for m in thawing.model.modules())


def test_until_the_thaw_a_run_equals_one_without_it() -> None:
    thawing, frozen = trainer(3), trainer(0)
    assert run(thawing, 3) == run(frozen, 3)
    assert not moved(weights(thawing), weights(frozen))
    run(thawing, 4), run(frozen, 4)
    assert moved(weights(thawing), weights(frozen))


def test_the_first_step_after_the_thaw_is_adams_first_for_thawed_weights() -> None:
    """Bias correction starts at the first gradient: |Δ| = learning rate for every weight with a gradient."""
    thawing = trainer(3)
    run(thawing, 3)
    scale = thawing.model.text_encoder.final_layer_norm.weight
    before = scale.detach().clone()
    rate = thawing.train_step(batch(3))["learning_rate"]
    torch.testing.assert_close((scale - before).abs(), torch.full_like(before, float(rate)), rtol=0.05, atol=1e-6)


def test_the_teacher_runs_its_own_trunk_from_the_thaw_on() -> None:
    thawing = trainer(3)
    run(thawing, 3)
    assert thawing.teacher is not None and all(thawing.teacher.shares.values())
    run(thawing, 5)
    assert not all(thawing.teacher.shares.values())
    data = batch(9)
    assert data.images is not None
    images = to_float_images(data.images)
    features = thawing.model.trunk(images, data.tokens)
    expected, _ = thawing.teacher.model(images, data.tokens)
    torch.testing.assert_close(thawing.teacher.embed(data, features).image, expected)


def test_fixed_gains_stay_fixed_after_the_thaw() -> None:
    thawing = trainer(3, text={"sasp": {"trainable_gains": False}})
    run(thawing, 5)
    for block in thawing.model.text_encoder.blocks:
        assert block.alpha.tolist() == [1.0] * 3 and block.beta_ff.item() == pytest.approx(0.1)
        assert not block.alpha.requires_grad


def test_loading_a_state_from_before_the_thaw_freezes_again(tmp_path: Path) -> None:
    thawing = trainer(3)
    run(thawing, 2)
    save_checkpoint(tmp_path / "2.pt", thawing.model, thawing.state_dict())
    losses, at_end = run(thawing, 5), weights(thawing)
    resume(thawing, tmp_path / "2.pt")
    assert thawing.teacher is not None and all(thawing.teacher.shares.values())
    assert run(thawing, 5) == losses
    assert not moved(weights(thawing), at_end)


def test_a_thaw_without_anything_frozen_is_refused() -> None:
    with pytest.raises(UserError, match=r"training.thaw_step 3 has nothing to thaw.*model.freeze"):
        trainer(3, "none")


def test_a_thaw_after_the_last_step_is_refused() -> None:
    with pytest.raises(ValidationError, match="thaw_step 6 must be below the 6 steps"):
        TrainingConfig(steps=6, warmup_steps=1, thaw_step=6)
