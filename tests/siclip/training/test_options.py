"""Options of a training run: micro-batches, fixed statistics, skipped steps, weight average, schedules, metrics."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from siclip.checkpoints.formats import load_model, save_checkpoint
from siclip.config import LossConfig, TrainingConfig
from siclip.data.batch import Batch, to_float_images
from siclip.errors import UserError
from siclip.evaluation.evaluate import EvaluationSet, evaluate
from siclip.models import create_model, model_config
from siclip.teachers import StoredTeacher
from siclip.training.loop import resume
from siclip.training.setup import make_trainer
from siclip.training.trainer import Trainer, TrainingDiverged

EVERYTHING = LossConfig(pair_matching=0.5)
STATISTIC = "image_encoder.model.stages.2.blocks.0.norm.running_mean"
CPU = torch.device("cpu")
State = dict[str, Tensor]


def batch(index: int, size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(index)
    images = torch.randint(0, 256, (size, 64, 64, 3), generator=generator, dtype=torch.uint8)
    tokens = torch.randint(1, 400, (size, 20), generator=generator)
    stored = [torch.randn(size, 128, generator=generator) for _ in range(2)]
    ids = torch.arange(size) + index * size
    return Batch(images, tokens, ids, ids + 10_000, teacher_image=stored[0], teacher_text=stored[1])


def not_finite(index: int) -> Batch:
    """A batch whose stored teacher embeddings are broken, and with them loss and gradient."""
    good = batch(index)
    assert good.teacher_image is not None
    return replace(good, teacher_image=good.teacher_image * float("nan"))


def config(**changes: object) -> TrainingConfig:
    values = {"steps": 6, "batch_size": 8, "warmup_steps": 2, "precision": "fp32", "threads": 1}
    return TrainingConfig.model_validate(values | changes)


def student(loss: LossConfig = EVERYTHING, **changes: object) -> Trainer:
    """A trainer whose image blocks have fresh BatchNorms that train; everything else is inherited and frozen."""
    torch.manual_seed(7)
    teacher = create_model("mobileclip-nano")
    return make_trainer(
        model_config("siclip-nano"), loss, config(**changes), teacher=teacher, inherit_weights=True, device=CPU
    )


def from_stored(**changes: object) -> Trainer:
    """A trainer that distils from the embeddings stored in the batch."""
    source = StoredTeacher((128, 128), logit_scale=10.0)
    return make_trainer(model_config("siclip-nano"), LossConfig(), config(**changes), distil_from=source, device=CPU)


def run(trainer: Trainer, stop: int) -> list[float]:
    return [float(trainer.train_step(batch(step))["loss"]) for step in range(trainer.step, stop)]


def copied(module: nn.Module) -> State:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_equal(ours: State, theirs: State) -> None:
    assert ours.keys() == theirs.keys()
    assert not [name for name, value in ours.items() if not torch.equal(value, theirs[name])]


def statistics(trainer: Trainer) -> State:
    return {name: value for name, value in copied(trainer.model).items() if "running" in name or "num_b" in name}


# Micro-batches


@pytest.mark.parametrize("size", [2, 4, 8])
def test_micro_batches_train_like_the_whole_batch(size: int) -> None:
    whole = student(batch_norm="eval", learning_rate=1e-4)
    pieces = student(batch_norm="eval", learning_rate=1e-4, micro_batch_size=size)
    assert run(pieces, 4) == pytest.approx(run(whole, 4), rel=1e-5)
    ours, theirs = copied(pieces.model), copied(whole.model)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-5, msg=name)


def test_micro_batches_with_batch_norms_that_train_are_refused_unless_accepted() -> None:
    message = r"micro_batch_size 4: \d+ BatchNorms train \(image_enc.*batch_norm=eval, or .*inexact_batch_norm=true"
    with pytest.raises(UserError, match=message):
        student(micro_batch_size=4)
    pieces, whole = student(micro_batch_size=4, inexact_batch_norm=True), student()
    assert run(pieces, 3)[1:] != pytest.approx(run(whole, 3)[1:], rel=1e-4)


def test_a_thaw_to_batch_norms_that_train_is_refused_at_the_start() -> None:
    """No BatchNorm trains before the thaw, because the image blocks have none."""
    torch.manual_seed(7)
    teacher = create_model("mobileclip-nano")
    model = model_config("siclip-nano", image={"sasp": {"norm": "layer", "ffn": "plain"}})

    def build(**changes: object) -> Trainer:
        training = config(micro_batch_size=4, **changes)
        return make_trainer(model, EVERYTHING, training, teacher=teacher, inherit_weights=True, device=CPU)

    assert run(build(), 1)
    with pytest.raises(UserError, match=r"BatchNorms will train once thawed.*training\.batch_norm=eval"):
        build(thaw_step=2)
    assert run(build(thaw_step=2, batch_norm="eval"), 3)


def test_a_micro_batch_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValidationError, match="micro_batch_size 3 does not divide batch_size 8"):
        config(micro_batch_size=3)


def test_auto_is_the_whole_batch_on_a_cpu() -> None:
    auto, whole = student(micro_batch_size="auto", batch_norm="eval"), student(batch_norm="eval")
    assert auto.train_step(batch(0))["micro_batch_size"] == 8
    whole.train_step(batch(0))
    assert run(auto, 3) == run(whole, 3)


# BatchNorm statistics


def test_fresh_batch_norms_get_the_first_batchs_statistics_and_inherited_ones_keep_theirs() -> None:
    trainer = student(batch_norm="eval")
    before, data, block = statistics(trainer), batch(0), trainer.model.image_encoder.blocks[0]
    assert data.images is not None
    x = trainer.model.image_encoder.trunk(to_float_images(data.images)).detach()
    trainer.train_step(data)
    torch.testing.assert_close(block.norm.running_mean, x.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(block.norm.running_var, x.var(dim=(0, 2, 3)))
    changed = {name for name, value in statistics(trainer).items() if not torch.equal(value, before[name])}
    assert changed and all(".stages.2.blocks." in name for name in changed)
    assert block.norm.momentum == 0.1


def test_fixed_statistics_do_not_change_in_training_and_evaluation() -> None:
    trainer, other = student(batch_norm="eval"), student(batch_norm="eval")
    trainer.train_step(batch(0))
    fixed = statistics(trainer)
    run(trainer, 3)
    images = batch(0).images
    assert images is not None
    evaluate(trainer.result, EvaluationSet(images, batch(0).tokens, None), device=CPU)
    losses = run(trainer, 6)
    assert_equal(statistics(trainer), fixed)
    assert run(other, 6)[3:] == losses


# Steps that are not finite


def test_a_step_that_is_not_finite_changes_nothing_and_the_run_continues() -> None:
    trainer = from_stored()
    trainer.train_step(batch(0))
    weights = {name: p.clone() for name, p in trainer.model.named_parameters()}
    moments = copy.deepcopy(trainer.optimizer.state_dict()["state"])
    metrics = trainer.train_step(not_finite(1))
    assert not torch.isfinite(torch.as_tensor(metrics["loss"])) and metrics["skipped_steps"] == 1
    assert_equal({name: p.detach() for name, p in trainer.model.named_parameters()}, weights)
    after = trainer.optimizer.state_dict()["state"]
    assert all(torch.equal(value, after[i][key]) for i, state in moments.items() for key, value in state.items())
    metrics = trainer.train_step(batch(2))
    assert torch.isfinite(torch.as_tensor(metrics["loss"])) and metrics["skipped_steps"] == 1 and trainer.step == 3
    assert all(
        not torch.equal(p, weights[name]) for name, p in trainer.model.named_parameters() if p.grad is not None
    )


def test_a_skipped_step_does_not_change_statistics_and_average() -> None:
    trainer = from_stored(ema_decay=0.5)
    trainer.train_step(batch(0))
    state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    average = {name: value.clone() for name, value in trainer.result.state_dict().items()}
    # This nan reaches BatchNorms, unlike one in the loss.
    with torch.no_grad():
        trainer.model.image_encoder.blocks[0].beta_sa.fill_(float("nan"))
    trainer.train_step(batch(1))
    name = "image_encoder.model.stages.2.blocks.0.beta_sa"
    with torch.no_grad():
        trainer.model.image_encoder.blocks[0].beta_sa.copy_(state[name])
    assert trainer.skipped == 1
    assert_equal(dict(trainer.model.state_dict()), state)
    assert_equal(dict(trainer.result.state_dict()), average)


def test_a_finite_step_in_between_resets_the_count() -> None:
    trainer = from_stored(max_skipped_steps=2, steps=10)
    for make in (not_finite, batch, not_finite, batch, not_finite):
        trainer.train_step(make(trainer.step))
    assert trainer.skipped == 3
    with pytest.raises(TrainingDiverged, match=r"not finite in 2 consecutive steps, up to step 5") as raised:
        trainer.train_step(not_finite(5))
    assert [found.image_ids for found in raised.value.batches] == [tuple(range(32, 40)), tuple(range(40, 48))]


def test_the_count_of_skipped_steps_continues_after_a_resume(tmp_path: Path) -> None:
    first, second = from_stored(max_skipped_steps=3), from_stored(max_skipped_steps=3)
    for make in (batch, not_finite, not_finite):
        first.train_step(make(first.step))
    save_checkpoint(tmp_path / "3.pt", first.result, first.state_dict())
    resume(second, tmp_path / "3.pt")
    assert second.skipped == 2
    with pytest.raises(TrainingDiverged, match="in 3 consecutive steps, up to step 3"):
        second.train_step(not_finite(3))


# The average


def test_the_result_is_the_exponential_moving_average_of_weights_and_statistics(tmp_path: Path) -> None:
    decay, trainer = 0.7, student(ema_decay=0.7)
    history = []
    for step in range(4):
        trainer.train_step(batch(step))
        history.append({n: v.double() for n, v in copied(trainer.model).items() if v.is_floating_point()})
    expected = history[0]
    for weights in history[1:]:
        expected = {name: decay * expected[name] + (1 - decay) * value for name, value in weights.items()}
    assert not torch.allclose(expected[STATISTIC], history[-1][STATISTIC], rtol=0.01)
    save_checkpoint(tmp_path / "4.pt", trainer.result, trainer.state_dict())
    for averaged in (trainer.result, load_model(tmp_path / "4.pt")):
        state = averaged.state_dict()
        for name, value in expected.items():
            torch.testing.assert_close(state[name].double(), value, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("saved_at", [1, 3])
def test_a_resumed_run_has_the_uninterrupted_ones_weights_and_average(saved_at: int, tmp_path: Path) -> None:
    whole, second = student(ema_decay=0.7), student(ema_decay=0.7)
    run(whole, saved_at)
    save_checkpoint(tmp_path / "saved.pt", whole.result, whole.state_dict())
    losses = run(whole, 6)
    resume(second, tmp_path / "saved.pt")
    assert run(second, 6) == losses
    assert_equal(copied(second.model), copied(whole.model))
    assert_equal(copied(second.result), copied(whole.result))
    assert not torch.equal(whole.model.text_encoder.blocks[0].alpha, whole.result.text_encoder.blocks[0].alpha)


# Compilation, schedules and metrics


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")
@pytest.mark.long
def test_compiled_heads_train_like_plain_ones() -> None:
    assert run(student(compile=True), 2) == pytest.approx(run(student(), 2), rel=1e-4)


def test_the_weight_of_pair_matching_warms_up_with_the_run() -> None:
    trainer = student(LossConfig(pair_matching=3, pair_matching_warmup=0.5))
    for step, share in enumerate([0, 1 / 3, 2 / 3, 1, 1, 1]):
        metrics = trainer.train_step(batch(step))
        assert float(metrics["weighted/pair_matching"]) == pytest.approx(3 * share * float(metrics["pair_matching"]))


def test_the_annealed_miner_equals_the_uniform_one_only_at_first() -> None:
    each = [student(LossConfig(pair_matching=0.5, negatives=miner)) for miner in ("annealed", "uniform")]
    annealed, uniform = (run(trainer, 6) for trainer in each)
    assert annealed[0] == uniform[0]
    assert annealed[5] != uniform[5]


def test_gradient_norms_are_those_before_clipping() -> None:
    trainer = student(clip_norm=1e9)
    metrics = trainer.train_step(batch(0))
    squares = {"image": 0.0, "text": 0.0, "objective": 0.0}
    for module in (trainer.model, trainer.objective):
        for name, p in module.named_parameters():
            tower = name.split("_encoder.")[0] if "_encoder." in name else "objective"
            squares[tower] += 0.0 if p.grad is None else float(p.grad.double().square().sum())
    assert all(value > 0 for value in squares.values())
    for name, value in squares.items():
        assert float(metrics[f"gradient_norm/{name}"]) == pytest.approx(value**0.5, rel=1e-5)
    assert float(metrics["gradient_norm"]) == pytest.approx(sum(squares.values()) ** 0.5, rel=1e-5)
    clipped = student(clip_norm=0.01)
    assert float(clipped.train_step(batch(0))["gradient_norm"]) == pytest.approx(float(metrics["gradient_norm"]))
    grads = [p.grad for m in (clipped.model, clipped.objective) for p in m.parameters() if p.grad is not None]
    assert float(torch.cat([g.flatten() for g in grads]).norm()) == pytest.approx(0.01, rel=1e-3)
