"""A checkpoint says where its data stands; a worker that goes on reads from there, and other data is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from siclip.checkpoints.formats import read_checkpoint, save_checkpoint
from siclip.errors import UserError
from siclip.training.loop import resume
from siclip_platform.datasets.manifest import open_dataset, write_manifest
from siclip_platform.recipes.presets import digits_teacher
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.stream import Stream
from siclip_platform.training.build import Prepared, prepare
from siclip_platform.training.ray_worker import _Batches


def recipe(folder: Path, **changes: object) -> Recipe:
    values = {"training.batch_size": 16, "training.threads": 1, "evaluation.validation_samples": 10}
    return digits_teacher(folder, steps=6).updated(values | changes)


@pytest.fixture(scope="module")
def checkpoint(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After two steps."""
    threads = torch.get_num_threads()
    prepared: Prepared = prepare(recipe(digits))
    for batch in prepared.stream.batches(16, 0, 32):
        prepared.trainer.train_step(batch)
    path = tmp_path_factory.mktemp("run") / "checkpoint.pt"
    save_checkpoint(path, prepared.trainer.result, prepared.trainer.state_dict())
    torch.set_num_threads(threads)
    return path


def test_a_checkpoint_holds_the_cursor(checkpoint: Path, digits: Path) -> None:
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
    with pytest.raises(UserError, match=rf"manifest hash {open_dataset(digits).hash}, the recipe's data now has"):
        resume(trainer, checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.state_dict().values(), strict=True))
    with pytest.raises(UserError, match="samples in another order"):
        resume(prepare(recipe(digits, **{"data.limit": 100})).trainer, checkpoint)


def test_a_worker_that_goes_on_reads_from_where_it_stands(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Stream.of(recipe(digits), prepare(recipe(digits)).trainer.model.config)
    starts: list[int] = []
    plain = Stream.batches

    def noted(stream: Stream, size: int, start: int, stop: int, *place: int) -> object:
        starts.append(start)
        return plain(stream, size, start, stop, *place)

    monkeypatch.setattr(Stream, "batches", noted)
    anew = _Batches(recipe(digits), 1, 2, goes_on=False)
    assert starts == [0]
    first = next(iter(anew(0, 96)))
    assert starts == [0] and len(first) == 8
    goes_on = _Batches(recipe(digits), 1, 2, goes_on=True)
    assert starts == [0]
    goes_on.stream = whole
    third = next(iter(goes_on(32, 96)))
    assert starts == [0, 32]
    expected = list(plain(whole, 16, 0, 48))[2][slice(8, 16)]
    assert torch.equal(third.images, expected.images) and torch.equal(third.tokens, expected.tokens)
