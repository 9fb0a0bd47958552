"""A checkpoint stores the position in the data; a resumed worker reads from it, and other data is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import torch

from siclip.checkpoints.formats import read_checkpoint, save_checkpoint
from siclip.data.batch import Batch
from siclip.errors import UserError
from siclip.training.loop import resume
from siclip_platform.datasets.manifest import open_dataset, write_manifest
from siclip_platform.recipes.digits import digits_teacher
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.stream import Stream, reading, thread_batches
from siclip_platform.training import ray_worker
from siclip_platform.training.build import Prepared, prepare


def recipe(folder: Path, **changes: object) -> Recipe:
    values = {"training.batch_size": 16, "training.threads": 1, "evaluation.validation_samples": 10}
    return digits_teacher(folder, steps=6).updated(values | changes)


@pytest.fixture(scope="module")
def checkpoint(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After two steps."""
    threads = torch.get_num_threads()
    prepared: Prepared = prepare(recipe(digits))
    for batch in prepared.batches(0, 32):
        prepared.trainer.train_step(batch)
    path = tmp_path_factory.mktemp("run") / "checkpoint.pt"
    save_checkpoint(path, prepared.trainer.result, prepared.trainer.state_dict())
    torch.set_num_threads(threads)
    return path


def test_a_checkpoint_has_the_cursor(checkpoint: Path, digits: Path) -> None:
    cursor = read_checkpoint(checkpoint)["training"]["cursor"]
    assert (cursor["seed"], cursor["epoch"], cursor["position"]) == (0, 0, 32)
    assert cursor["datasets"] == [open_dataset(digits).hash]
    resume(prepare(recipe(digits)).trainer, checkpoint)


def test_a_changed_dataset_is_refused(checkpoint: Path, digits: Path, tmp_path: Path) -> None:
    for file in digits.iterdir():
        if file.is_file():
            (tmp_path / file.name).symlink_to(file)
    manifest = open_dataset(digits).manifest
    (tmp_path / "manifest.json").unlink()
    write_manifest(tmp_path, manifest.model_copy(update={"version": "other"}))
    trainer = prepare(recipe(tmp_path)).trainer
    before = [value.clone() for value in trainer.model.state_dict().values()]
    with pytest.raises(UserError, match=rf"manifest hash {open_dataset(digits).hash}, but the recipe's data now has"):
        resume(trainer, checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.state_dict().values(), strict=True))
    with pytest.raises(UserError, match="samples in another order"):
        resume(prepare(recipe(digits, **{"data.limit": 100})).trainer, checkpoint)


def test_a_resumed_worker_reads_from_its_position(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[int] = []

    def recorded(stream: Stream, size: int, start: int, stop: int, *share: int) -> object:
        starts.append(start)
        return thread_batches(stream, size, start, stop, *share)

    monkeypatch.setattr(reading, "thread_batches", recorded)
    threads = recipe(digits, **{"data.reader": "threads"})
    prepared = prepare(threads)
    fresh = ray_worker._Share(threads, 1, 2, early=True)
    assert starts == [0]
    first = next(iter(fresh(prepared, 0, 96)))
    assert starts == [0] and len(first) == 8
    resumed = ray_worker._Share(threads, 1, 2, early=False)
    assert starts == [0]
    third = next(iter(resumed(prepared, 32, 96)))
    assert starts == [0, 32]
    expected = list(prepared.batches(0, 48))[2][slice(8, 16)]
    assert torch.equal(third.images, expected.images) and torch.equal(third.tokens, expected.tokens)


@pytest.mark.parametrize(
    ("reader", "under_ray_train", "in_process"),
    [(None, "ray", "threads"), ("ray", "ray", "ray"), ("threads", "threads", "threads")],
)
def test_ray_data_reads_under_ray_train_and_where_it_is_asked_for(
    reader: str | None, under_ray_train: str, in_process: str, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_with: list[str] = []

    def recorder(name: str) -> Callable[..., Iterator[Batch]]:
        return lambda *args, **options: read_with.append(name) or iter(())

    for name in ("threads", "ray"):
        monkeypatch.setattr(reading, {"threads": "thread_batches", "ray": "ray_batches"}[name], recorder(name))
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    asked = recipe(digits, **{"data.reader": reader})
    prepared = prepare(asked)
    fresh, resumed = (ray_worker._Share(asked, 0, 1, early=early) for early in (True, False))
    fresh(prepared, 0, 96)
    resumed(prepared, 32, 96)
    assert read_with == [under_ray_train] * 2
    prepared.batches(0, 96)
    assert read_with[2:] == [in_process]


def test_ray_data_without_ray_is_refused(digits: Path) -> None:
    assert not ray.is_initialized()
    with pytest.raises(UserError, match=r"data\.reader is ray, and this process has no connection to Ray"):
        prepare(recipe(digits, **{"data.reader": "ray"})).batches(0, 32)
