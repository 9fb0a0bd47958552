from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from siclip.checkpoints.formats import save_checkpoint
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
        if "train/loss" in metrics:
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


def test_a_run_resumed_from_a_checkpoint_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    training = config(checkpoint_every=3)
    whole, first = Record(tmp_path), student(training)
    train(first, batches, whole)
    rest, second = Record(), student(training)
    resume(second, tmp_path / "3.pt")
    train(second, batches, rest)
    assert rest.losses == {step: whole.losses[step] for step in (4, 5, 6)}
    state = second.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in first.model.state_dict().items())


def test_training_changes_everything_except_frozen_weights_and_statistics() -> None:
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


def test_the_metrics_of_a_step_include_every_part_and_the_weighted_sum() -> None:
    trainer = student(config())
    metrics = {name: float(value) for name, value in trainer.train_step(batch(0)).items()}
    parts = (
        "contrastive",
        "feature_distillation",
        "contrastive_relational",
        "interactive_contrastive",
        "pair_matching",
    )
    weighted = sum(getattr(EVERYTHING, part) * metrics[part] for part in parts)
    assert metrics["loss"] == pytest.approx(weighted, rel=1e-5)
    assert {"gradient_norm", "learning_rate", "logit_scale"} <= metrics.keys()


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
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


def test_at_its_bound_the_logit_scale_has_a_gradient_and_can_decrease() -> None:
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
    with pytest.raises(TrainingDiverged, match=r"in 2 consecutive steps, up to step 2$") as raised:
        trainer.train_step(batch(2))
    assert [found.step for found in raised.value.batches] == [1, 2]
    for name, p in trainer.model.named_parameters():
        assert torch.equal(p, before[name]) or name.endswith("beta_sa")


def all_gradients(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


def test_bf16_rounds_encodings_and_keeps_weights_moments_and_loss_in_fp32() -> None:
    exact, rounded = (student(config(precision=p, clip_norm=1e9), LossConfig()) for p in ("fp32", "bf16"))
    seen: set[torch.dtype] = set()
    rounded.model.text_encoder.blocks[0].mlp[0].register_forward_hook(lambda m, x, out: seen.add(out.dtype))
    losses = [trainer.train_step(batch(0))["loss"] for trainer in (exact, rounded)]
    assert seen == {torch.bfloat16}
    assert isinstance(losses[1], torch.Tensor) and losses[1].dtype == torch.float32
    assert losses[0] != losses[1] and float(losses[1]) == pytest.approx(float(losses[0]), rel=0.02)
    ours, truth = all_gradients(rounded), all_gradients(exact)
    assert torch.cosine_similarity(ours, truth, dim=0) > 0.98
    assert 0.9 < ours.norm() / truth.norm() < 1.1
    assert all(p.dtype == torch.float32 for p in rounded.model.parameters())
    assert all(s["exp_avg"].dtype == torch.float32 for s in rounded.optimizer.state.values())


def with_scaler(scale: float, **changes: object) -> Trainer:
    """The gradient scaler of fp16 on the CPU, with fp32 arithmetic."""
    trainer = student(config(**changes), LossConfig())
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
    return trainer


def test_a_gradient_scaler_changes_neither_gradients_nor_steps_and_grows() -> None:
    """Scaling by powers of two does not round."""
    plain, scaled = student(config(), LossConfig()), with_scaler(2.0**10)
    for index in range(3):
        ours, theirs = scaled.train_step(batch(index)), plain.train_step(batch(index))
        assert ours["gradient_norm"] == theirs["gradient_norm"] and ours["loss"] == theirs["loss"]
    state = plain.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in scaled.model.state_dict().items())
    assert scaled.scaler.get_scale() == 2.0**11


def test_a_scale_that_overflows_skips_the_step_and_is_halved_until_it_fits() -> None:
    trainer = with_scaler(2.0**127)
    weights = [p.clone() for p in trainer.model.parameters()]
    assert trainer.train_step(batch(0))["skipped_steps"] == 1
    assert all(torch.equal(p, before) for p, before in zip(trainer.model.parameters(), weights, strict=True))
    assert trainer.scaler.get_scale() == 2.0**126
    trainer.scaler.update(2.0**8)
    assert trainer.train_step(batch(1))["skipped_steps"] == 1 and not trainer.diverging
    assert any(not torch.equal(p, before) for p, before in zip(trainer.model.parameters(), weights, strict=True))


def test_a_resumed_run_keeps_the_scale(tmp_path: Path) -> None:
    first, second = with_scaler(2.0**127), with_scaler(2.0**5)
    first.train_step(batch(0))
    save_checkpoint(tmp_path / "1.pt", first.result, first.state_dict())
    resume(second, tmp_path / "1.pt")
    assert second.scaler.get_scale() == 2.0**126 and second.skipped == 1


def test_data_that_ends_early_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="ended at step 2 of 6"):
        train(student(config()), lambda start, stop: iter([batch(0), batch(1)]), Record())


def test_distillation_without_a_teacher_is_refused() -> None:
    with pytest.raises(UserError, match="needs a teacher"):
        make_trainer(model_config("siclip-nano"), LossConfig(), config())


def test_resuming_another_run_names_what_differs(tmp_path: Path) -> None:
    record = Record(tmp_path)
    train(student(config(steps=3)), batches, record)
    with pytest.raises(UserError, match=r"another run: training.learning_rate 0.001 there, 0.5 here"):
        resume(student(config(steps=3, learning_rate=0.5)), tmp_path / "3.pt")


@pytest.mark.gpu
def test_a_step_on_a_gpu_agrees_with_the_cpu() -> None:
    losses = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(7)
        teacher: Clip = create_model("mobileclip-nano")
        student = model_config("siclip-nano")
        options = {"teacher": teacher, "inherit_weights": True, "device": torch.device(device)}
        trainer = make_trainer(student, LossConfig(), config(), **options)
        losses.append(float(trainer.train_step(batch(0))["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
