"""Only the run that wrote a checkpoint can resume it, with its clock and its count of skipped steps."""

from __future__ import annotations

import csv
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from siclip.checkpoints.formats import read_checkpoint, save_checkpoint
from siclip.config import FreezePolicy, LossConfig, TrainingConfig
from siclip.data.batch import Batch
from siclip.errors import UserError
from siclip.models import create_model, model_config
from siclip.teachers import ModelTeacher, StoredTeacher, Teacher, TeacherEnsemble
from siclip.training.diverged import SkippedBatch, TrainingDiverged, write_ids
from siclip.training.loop import Save, resume, train
from siclip.training.setup import make_trainer
from siclip.training.trainer import Trainer

CPU = torch.device("cpu")


def batch(index: int, size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(index)
    images = torch.randint(0, 256, (size, 64, 64, 3), generator=generator, dtype=torch.uint8)
    tokens = torch.randint(1, 400, (size, 20), generator=generator)
    stored = [torch.randn(size, 128, generator=generator) for _ in range(2)]
    ids = torch.arange(size) + index * size
    return Batch(images, tokens, ids, ids + 10_000, teacher_image=stored[0], teacher_text=stored[1])


def not_finite(index: int) -> Batch:
    good = batch(index)
    assert good.teacher_image is not None
    return replace(good, teacher_image=good.teacher_image * float("nan"))


def student(
    loss: LossConfig | None = None,
    freeze: FreezePolicy = "inherited",
    teacher_seed: int = 7,
    distil_from: Teacher | None = None,
    inherit: bool = True,
    **changes: object,
) -> Trainer:
    values = {"steps": 4, "batch_size": 8, "warmup_steps": 2, "precision": "fp32", "threads": 1, "log_every": 1}
    torch.manual_seed(teacher_seed)
    teacher = create_model("mobileclip-nano")
    return make_trainer(
        model_config("siclip-nano"),
        loss or LossConfig(),
        TrainingConfig.model_validate(values | changes),
        teacher=teacher,
        inherit_weights=inherit,
        freeze=freeze,
        distil_from=distil_from,
        device=CPU,
    )


def of_another_model() -> Trainer:
    torch.manual_seed(7)
    teacher = create_model("mobileclip-nano")
    training = TrainingConfig(steps=4, batch_size=8, warmup_steps=2, precision="fp32", threads=1, log_every=1)
    model = model_config("siclip-nano", text={"sasp": {"trainable_gains": False}})
    return make_trainer(model, LossConfig(), training, teacher=teacher, inherit_weights=True, device=CPU)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    trainer, path = student(), tmp_path_factory.mktemp("saved") / "1.pt"
    trainer.train_step(batch(0))
    save_checkpoint(path, trainer.result, trainer.state_dict())
    return path


OTHERS: dict[str, tuple[Callable[[], Trainer], str]] = {
    "loss": (
        lambda: student(LossConfig(feature_distillation=1.0)),
        r"loss\.feature_distillation 2000\.0 there, 1\.0 here",
    ),
    "miner": (lambda: student(LossConfig(negatives="hardest")), r"loss\.negatives 'sampled' there, 'hardest' here"),
    "freeze": (lambda: student(freeze="before_sasp"), r"\d+ frozen parameters there, \d+ here \(model\.inherit, "),
    "not inherited": (lambda: student(inherit=False), r"\d+ frozen parameters there, 0 here"),
    "teacher": (lambda: student(teacher_seed=8), r"teacher 'mobileclip-nano \w{16}' there, 'mobileclip-nano \w{16}'"),
    "source": (lambda: student(distil_from=StoredTeacher((128, 128), 10.0)), r"teacher 'mobileclip-nano .*'stored "),
    "model": (of_another_model, r"model\.text\.sasp\.trainable_gains True there, False here"),
    "training": (lambda: student(clip_norm=2.0), r"training\.clip_norm 1\.0 there, 2\.0 here"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_checkpoint_of_another_run_is_refused_and_changes_nothing(what: str, saved: Path) -> None:
    build, message = OTHERS[what]
    other = build()
    before = {name: value.clone() for name, value in other.model.state_dict().items()}
    with pytest.raises(UserError, match=rf"^{saved}: the checkpoint is of another run: .*{message}"):
        resume(other, saved)
    assert all(torch.equal(value, before[name]) for name, value in other.model.state_dict().items())
    assert other.step == 0


def test_the_run_itself_can_resume(saved: Path) -> None:
    trainer = student()
    resume(trainer, saved)
    assert trainer.step == 1


@pytest.mark.parametrize("part", ["identity", "seconds", "diverging", "card"])
def test_keys_that_an_earlier_version_did_not_write_are_named(part: str, saved: Path, tmp_path: Path) -> None:
    content = read_checkpoint(saved)
    del content["training"][part]
    torch.save(content, tmp_path / "old.pt")
    with pytest.raises(UserError, match=f"lacks {part}, because an earlier version wrote it"):
        resume(student(), tmp_path / "old.pt")


def test_a_teachers_identity_is_that_of_its_weights() -> None:
    torch.manual_seed(1)
    model = create_model("mobileclip-nano")
    teacher, moved = ModelTeacher(model), ModelTeacher(create_model("mobileclip-nano"))
    moved.model.load_state_dict(model.state_dict())
    # In another memory format.
    moved.to(CPU)
    assert teacher.identity == moved.identity
    with torch.no_grad():
        moved.model.logit_scale += 1
    changed = ModelTeacher(moved.model)
    assert changed.identity != teacher.identity
    stored = StoredTeacher((128, 128), 10.0, name="a")
    assert stored.identity != StoredTeacher((128, 128), 10.0, name="b").identity
    assert TeacherEnsemble([teacher, stored]).identity != TeacherEnsemble([stored, teacher]).identity


class Recorder:
    """A `Reporter` that keeps training seconds, and checkpoints in a folder, if it has one."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.seconds: list[float] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if "cost/training_seconds" in metrics:
            self.seconds.append(metrics["cost/training_seconds"])

    def milestone(self, step: int, metrics: Mapping[str, float], save: Save | None) -> None:
        if save and self.folder:
            save(self.folder / f"{step}.pt")


def batches(start: int, stop: int) -> Iterator[Batch]:
    return (batch(position // 8) for position in range(start, stop, 8))


def test_the_clock_resumes_at_the_checkpoints_time(tmp_path: Path) -> None:
    first, second = student(checkpoint_every=2, log_every=1), student(checkpoint_every=2, log_every=1)
    train(first, batches, Recorder(tmp_path))
    state = read_checkpoint(tmp_path / "2.pt")["training"]
    state["seconds"] = {"training": 1000.0, "total": 5000.0}
    save_checkpoint(tmp_path / "2.pt", first.result, state)
    resume(second, tmp_path / "2.pt")
    rest = Recorder()
    train(second, batches, rest)
    assert 0 < first.training_seconds <= first.seconds < 1000
    assert all(1000 < seconds < 2000 for seconds in rest.seconds) and rest.seconds == sorted(rest.seconds)
    assert second.training_seconds > 1000 and 5000 < second.seconds < 6000


def diverge(trainer: Trainer) -> TrainingDiverged:
    with pytest.raises(TrainingDiverged) as raised:
        trainer.train_step(not_finite(trainer.step))
    return raised.value


def test_a_diverged_run_keeps_and_writes_every_id_of_the_skipped_batches(tmp_path: Path) -> None:
    """Including those from before a resume, and after pickling, as between processes."""
    source = StoredTeacher((128, 128), 10.0)
    first, second = (student(distil_from=source, max_skipped_steps=3) for _ in range(2))
    for make in (batch, not_finite, not_finite):
        first.train_step(make(first.step))
    save_checkpoint(tmp_path / "3.pt", first.result, first.state_dict())
    resume(second, tmp_path / "3.pt")
    error = pickle.loads(pickle.dumps(diverge(second)))
    assert isinstance(error, TrainingDiverged)
    assert error.batches == tuple(
        SkippedBatch(step, tuple(ids), tuple(i + 10_000 for i in ids))
        for step, ids in ((1, range(8, 16)), (2, range(16, 24)), (3, range(24, 32)))
    )
    named = write_ids(error, tmp_path / "ids.csv")
    assert str(tmp_path / "ids.csv") in str(named) and "in 3 consecutive steps, up to step 3" in str(named)
    with (tmp_path / "ids.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["step", "image_id", "caption_id"]
    assert rows[1:] == [[str(1 + i // 8), str(8 + i), str(10_008 + i)] for i in range(24)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3.pt", "ids.csv"]
