from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from siclip.config import LossConfig, TrainingConfig
from siclip.data.batch import Batch
from siclip.errors import UserError
from siclip.models import Clip, create_model, model_config
from siclip.training.loop import Save, resume, train
from siclip.training.optimizer import learning_rate, make_optimizer
from siclip.training.setup import make_trainer
from siclip.training.trainer import Trainer, TrainingDiverged

EVERYTHING = LossConfig(pair_matching=0.5, negatives="sampled")


def batch(index: int, size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(index)
    images = torch.randint(0, 256, (size, 64, 64, 3), generator=generator, dtype=torch.uint8)
    tokens = torch.randint(1, 400, (size, 20), generator=generator)
    ids = torch.arange(size) + index * size
    return Batch(images, tokens, ids, ids + 10_000)


def batches(start: int, stop: int) -> Iterator[Batch]:
    return (batch(position // 8) for position in range(start, stop, 8))


class Record:
    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.losses: dict[int, float] = {}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.losses[step] = metrics["train/loss"]

    def milestone(self, step: int, metrics: Mapping[str, float], save: Save | None) -> None:
        if save and self.folder:
            save(self.folder / f"{step}.pt")


def config(**changes: object) -> TrainingConfig:
    values = {"steps": 6, "batch_size": 8, "warmup_steps": 2, "precision": "fp32", "log_every": 1, "threads": 1}
    return TrainingConfig.model_validate(values | changes)


def student(training: TrainingConfig, loss: LossConfig = EVERYTHING) -> Trainer:
    torch.manual_seed(7)
    teacher = create_model("mobileclip-nano")
    return make_trainer(model_config("siclip-nano"), loss, training, teacher=teacher, inherit_weights=True)


def test_a_run_continued_from_a_checkpoint_is_the_uninterrupted_one(tmp_path: Path) -> None:
    training = config(checkpoint_every=3)
    whole, first = Record(tmp_path), student(training)
    train(first, batches, whole)
    rest, second = Record(), student(training)
    resume(second, tmp_path / "3.pt")
    train(second, batches, rest)
    assert rest.losses == {step: whole.losses[step] for step in (4, 5, 6)}
    state = second.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in first.model.state_dict().items())


def test_training_keeps_frozen_weights_and_statistics_and_moves_the_rest() -> None:
    trainer = student(config(steps=20))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trained = {name for name, p in trainer.model.named_parameters(remove_duplicate=False) if p.requires_grad}
    train(trainer, batches, Record())
    after = trainer.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    statistics_of_blocks = {
        name for name in before if ".stages.2.blocks." in name and ("running" in name or "num_batches" in name)
    }
    assert trained <= moved
    assert moved - trained == statistics_of_blocks


def test_the_loss_falls_on_one_batch() -> None:
    record = Record()
    one = batch(0)
    train(student(config(steps=30, learning_rate=3e-3)), lambda start, stop: iter([one] * 30), record)
    assert record.losses[30] < 0.5 * record.losses[1]


def test_the_figures_of_a_step_hold_every_part_and_the_weighted_sum() -> None:
    trainer = student(config())
    figures = {name: float(value) for name, value in trainer.train_step(batch(0)).items()}
    parts = (
        "contrastive",
        "feature_distillation",
        "contrastive_relational",
        "interactive_contrastive",
        "pair_matching",
    )
    weighted = sum(getattr(EVERYTHING, part) * figures[part] for part in parts)
    assert figures["loss"] == pytest.approx(weighted, rel=1e-5)
    assert {"gradient_norm", "learning_rate", "logit_scale"} <= figures.keys()


def test_the_learning_rate_warms_up_and_falls_to_nothing() -> None:
    training = config(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(step, training) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5) and 0 < rates[99] < 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_gains_biases_norms_and_scales_do_not_decay() -> None:
    model = create_model("siclip-nano")
    decay, plain = make_optimizer(model.named_parameters(), config()).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    without = {names[id(p)] for p in plain["params"]}
    assert plain["weight_decay"] == 0.0 and decay["weight_decay"] == 0.1
    for word in ("alpha", "beta_ff", "bias", "norm.weight", "logit_scale", "layer_scale", ".bn.weight"):
        assert any(word in name for name in without), word
    assert all(p.squeeze().dim() >= 2 for p in decay["params"])
    assert len(decay["params"]) + len(plain["params"]) == len(list(model.parameters()))


def test_the_logit_scale_is_clamped_at_100() -> None:
    trainer = student(config())
    with torch.no_grad():
        trainer.model.logit_scale.fill_(9.0)
    trainer.train_step(batch(0))
    assert trainer.model.logit_scale.exp().item() == pytest.approx(100.0, rel=1e-6)


def test_at_the_cap_the_logit_scale_has_a_gradient_and_can_fall() -> None:
    model = create_model("siclip-nano")
    for start in (math.log(100), 5.0):
        with torch.no_grad():
            model.logit_scale.fill_(start)
        (gradient,) = torch.autograd.grad(model.scale(), model.logit_scale)
        assert model.scale().item() == pytest.approx(100.0, rel=1e-6)
        assert gradient.item() == pytest.approx(100.0, rel=1e-6)


def test_a_loss_that_is_not_finite_is_skipped_and_counted_then_stops_the_run_and_keeps_the_weights() -> None:
    trainer = student(config(max_skipped_steps=2), LossConfig())
    trainer.train_step(batch(0))
    with torch.no_grad():
        trainer.model.image_encoder.blocks[0].beta_sa.fill_(float("nan"))
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    assert trainer.train_step(batch(1))["skipped_steps"] == 1
    with pytest.raises(TrainingDiverged, match=r"in 2 steps in a row, up to step 2; image ids .*\[16, 17"):
        trainer.train_step(batch(2))
    for name, p in trainer.model.named_parameters():
        assert torch.equal(p, before[name]) or name.endswith("beta_sa")


def test_bf16_autocast_stays_close_to_fp32() -> None:
    losses = [float(student(config(precision=p)).train_step(batch(0))["contrastive"]) for p in ("fp32", "bf16")]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_data_that_ends_early_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="ended at step 2 of 6"):
        train(student(config()), lambda start, stop: iter([batch(0), batch(1)]), Record())


def test_distillation_without_a_teacher_is_refused() -> None:
    with pytest.raises(UserError, match="needs a teacher"):
        make_trainer(model_config("siclip-nano"), LossConfig(), config())


def test_resuming_another_run_names_what_differs(tmp_path: Path) -> None:
    record = Record(tmp_path)
    train(student(config(steps=3)), batches, record)
    with pytest.raises(UserError, match=r"another training config: .*learning_rate"):
        resume(student(config(steps=3, learning_rate=0.5)), tmp_path / "3.pt")


@pytest.mark.gpu
def test_a_step_on_a_gpu_agrees_with_the_cpu() -> None:
    losses = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(7)
        teacher: Clip = create_model("mobileclip-nano")
        trainer = make_trainer(
            model_config("siclip-nano"), LossConfig(), config(), teacher=teacher, inherit_weights=True,
            device=torch.device(device),
        )  # fmt: skip
        losses.append(float(trainer.train_step(batch(0))["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
