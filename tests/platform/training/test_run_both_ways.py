"""A recipe gives the same losses and weights in this process and under Ray Train; block regression starts it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from siclip.checkpoints.formats import load_model, read_checkpoint, save_checkpoint
from siclip.data.batch import Batch
from siclip.errors import UserError
from siclip.models import create_model
from siclip.training.block_regression import fit_blocks
from siclip.training.loop import Save
from siclip_platform.recipes.digits import digits_student
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.training.build import check, prepare
from siclip_platform.training.in_process import regress_blocks, run_recipe
from siclip_platform.training.ray_train import run_with_ray_train, saved_state

pytestmark = pytest.mark.slow


class Record:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics: dict[int, dict[str, float]] = {}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        kept = {k: v for k, v in metrics.items() if not k.startswith(("cost/", "train/samples", "train/data"))}
        if kept:
            self.metrics.setdefault(step, {}).update(kept)

    def milestone(self, step: int, metrics: Mapping[str, float], save: Save | None) -> None:
        self.log(step, metrics)
        if save:
            save(self.folder / f"{step}.pt")


@pytest.fixture(scope="module")
def recipe(digits: Path, nano_teacher: Path) -> Recipe:
    return digits_student(digits, nano_teacher, steps=12).updated(
        {
            "training.batch_size": 32,
            "training.log_every": 1,
            "training.evaluate_every": 6,
            "evaluation.validation_samples": 40,
            "loss.pair_matching": 0.3,
            "loss.negatives": "uniform",
            "model.block_regression_steps": 3,
            "training.thaw_step": 8,
        }
    )


def test_ray_train_and_in_process_agree_bit_for_bit(recipe: Recipe, tmp_path: Path, own_ray: None) -> None:
    local = Record(tmp_path)
    threads = torch.get_num_threads()
    run_recipe(recipe, local)
    torch.set_num_threads(threads)
    remote = Record(tmp_path)
    # as a driver leaves it that is killed before Ray Train has recorded its checkpoint
    forgotten = tmp_path / "train" / "run" / "checkpoint_2026-01-01_00-00-00.000000"
    forgotten.mkdir(parents=True)
    (forgotten / "checkpoint.pt").write_bytes(b"superseded")
    trained = run_with_ray_train(recipe, name="run", storage=tmp_path / "train", log=remote.log)

    assert len(list((tmp_path / "train" / "run").glob("checkpoint_2*"))) == 1 and not forgotten.exists()
    assert sorted(local.metrics) == list(range(13))
    assert local.metrics[0]["train/block_regression_last"] < local.metrics[0]["train/block_regression_first"]
    assert remote.metrics == local.metrics
    ours, theirs = load_model(tmp_path / "12.pt").state_dict(), load_model(trained.checkpoint).state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert read_checkpoint(trained.checkpoint)["training"]["step"] == 12
    assert trained.metrics["validation/mean_recall@1"] == local.metrics[12]["validation/mean_recall@1"]


def test_a_run_at_a_constant_rate_is_extended_bit_for_bit(recipe: Recipe, tmp_path: Path, own_ray: None) -> None:
    constant = recipe.updated({"training.steps": 6, "training.thaw_step": 0, "training.schedule": "constant"})
    longer = constant.updated(
        {"training.steps": 9, "training.schedule": "constant_cooldown", "training.cooldown_steps": 2}
    )
    local, remote = Record(tmp_path), Record(tmp_path / "remote")
    threads = torch.get_num_threads()
    run_recipe(longer, local)
    torch.set_num_threads(threads)
    storage = tmp_path / "train"
    run_with_ray_train(constant, name="run", storage=storage, log=lambda *_: None)
    begin = saved_state("run", storage)
    assert begin is not None and begin.step == 6
    trained = run_with_ray_train(longer, name="longer", storage=storage, log=remote.log, begin=begin)
    assert min(remote.metrics.keys() - {0}) == 7
    assert all(remote.metrics[step] == local.metrics[step] for step in (7, 8, 9))
    ours, theirs = load_model(tmp_path / "9.pt").state_dict(), load_model(trained.checkpoint).state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_run_starts_with_block_regression_on_its_first_batches(recipe: Recipe, tmp_path: Path) -> None:
    local = Record(tmp_path)
    short = recipe.updated({"training.steps": 2, "training.warmup_steps": 1, "training.thaw_step": 0})
    run_recipe(short, local)
    prepared = prepare(short)
    batches = list(prepared.batches(0, 3 * 32))
    teacher = load_model(Path(str(recipe.teacher)))
    losses = fit_blocks(prepared.trainer.model, teacher, batches)
    assert [local.metrics[0][f"train/block_regression_{which}"] for which in ("first", "last")] == losses[::2]
    assert local.metrics[1]["train/loss"] == float(prepared.trainer.train_step(batches[0])["loss"])


def test_block_regression_uses_the_micro_batch_that_fits_and_every_batch(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[tuple[int, int]] = []

    def fit(model: object, teacher: object, batches: Iterator[Batch], **named: Any) -> list[float]:
        fitted.append((named["micro_batch_size"], len({int(i) for batch in batches for i in batch.image_ids})))
        return [0.0]

    monkeypatch.setattr("siclip.training.trainer.find_micro_batch_size", lambda run, size, device: size // 4)
    monkeypatch.setattr("siclip_platform.training.in_process.fit_blocks", fit)
    searched = recipe.updated({"training.micro_batch_size": "auto", "training.batch_norm": "eval"})
    regress_blocks(searched, prepare(searched), Record(tmp_path))
    assert fitted == [(8, 32 * recipe.model.block_regression_steps)]


def test_a_resumed_run_skips_block_regression(recipe: Recipe, tmp_path: Path) -> None:
    prepared, record = prepare(recipe), Record(tmp_path)
    prepared.trainer.train_step(next(prepared.batches(0, 32)))
    before = {name: value.clone() for name, value in prepared.trainer.model.state_dict().items()}
    regress_blocks(recipe, prepared, record)
    assert not record.metrics
    assert all(torch.equal(value, before[name]) for name, value in prepared.trainer.model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.inherit": False}, "model.block_regression_steps: block regression needs model.inherit"),
        ({"model.freeze": "none"}, "training.thaw_step: there is nothing to thaw"),
        ({"model.freeze": True}, "model.freeze: unknown value True; choose one of inherited, before_sasp, none"),
        (
            {"model.name": "mobileclip-nano", "model.image_sharing": None, "model.text_sharing": None},
            "no SAS-P blocks",
        ),
    ],
)
def test_invalid_combinations_are_refused(recipe: Recipe, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(recipe.updated(changes), with_data=False)


def test_a_teacher_with_other_blocks_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "deep.pt", create_model("mobileclip-nano", image={"layers": (1, 1, 3)}))
    deep = recipe.updated({"teacher": str(tmp_path / "deep.pt")})
    check(deep.updated({"model.block_regression_steps": 0}), with_data=False)
    with pytest.raises(
        UserError, match=r"image tower of 'siclip-nano' has 2 blocks of width 128, that of .* 3 blocks"
    ):
        check(deep, with_data=False)
