"""Ctrl-C and SIGTERM end every command within seconds at a resumable point, and leave no process behind."""

from __future__ import annotations

import io
import json
import signal
import tarfile
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from interrupt_parts import Stopped, run, stop
from PIL import Image

from siclip.checkpoints.formats import load_model
from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.recipes.digits import digits_student
from siclip_platform.tracking import default_tracking_uri
from siclip_platform.training.in_process import run_recipe

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(1500)]


SIGNALS = [signal.SIGINT, signal.SIGTERM]


def check_stopped(stopped: Stopped, by: signal.Signals = signal.SIGINT) -> None:
    assert stopped.code == 128 + by, stopped.output
    assert stopped.survivors == [], stopped.output
    assert "Traceback" not in stopped.output


def states(out: Path) -> dict[str, str]:
    """The state of every run in an output folder's store, by name."""
    client = mlflow.MlflowClient(tracking_uri=default_tracking_uri(out))
    runs = client.search_runs([client.get_experiment_by_name("siclip").experiment_id])
    return {run.data.tags["mlflow.runName"]: run.data.tags["siclip.state"] for run in runs}


def prepared(out: Path, database: bytes) -> Path:
    out.mkdir()
    (out / "mlflow.db").write_bytes(database)
    return out


class Last:
    """Saves a training's last checkpoint."""

    def __init__(self, path: Path, steps: int) -> None:
        self.path, self.steps = path, steps

    def log(self, step: int, metrics: Any) -> None:
        pass

    def milestone(self, step: int, metrics: Any, save: Any) -> None:
        if save and step == self.steps:
            save(self.path)


# SIGTERM goes the same way in every command; in CI an import shows it.
@pytest.mark.parametrize("by", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_train_resumes_to_the_model_of_an_undisturbed_training(
    digits: Path, nano_teacher: Path, tmp_path: Path, mlflow_database: bytes, by: signal.Signals
) -> None:
    steps = 40
    changes = {
        "training.steps": steps,
        "training.batch_size": 16,
        "training.checkpoint_every": 10,
        "training.evaluate_every": 0,
        "evaluation.validation_samples": 20,
    }
    out = prepared(tmp_path / "out", mlflow_database)
    words = ["train", "--recipe", "digits-student", "--data", str(digits), "--teacher", str(nano_teacher)]
    words += [word for path, value in changes.items() for word in ("--set", f"{path}={value}")]

    def has_checkpoint() -> bool:
        return any((out / "train" / "train").glob("train/checkpoint_*/checkpoint.pt"))

    stopped = stop([*words, "--out", str(out)], tmp_path / "first.log", has_checkpoint, by=by)
    check_stopped(stopped, by)
    assert "core_worker" not in stopped.output and "Stack" not in stopped.output
    assert states(out) == {"train": "interrupted"}
    assert stopped.resume == ["train", "--resume", "train", "--out", str(out)]
    assert not (out / "train" / "train.pt").exists()

    run(stopped.resume, tmp_path / "second.log")
    assert states(out) == {"train": "completed"}
    client = mlflow.MlflowClient(tracking_uri=default_tracking_uri(out))
    (tracked,) = client.search_runs([client.get_experiment_by_name("siclip").experiment_id])
    logged = [point.step for point in client.get_metric_history(tracked.info.run_id, "train/loss")]
    assert len(logged) == len(set(logged)) and max(logged) == steps  # every step once, from both processes

    recipe = digits_student(digits, nano_teacher).updated(changes)
    threads = torch.get_num_threads()
    run_recipe(recipe, Last(tmp_path / "end.pt", steps))
    torch.set_num_threads(threads)
    undisturbed = load_model(tmp_path / "end.pt").state_dict()
    resumed = load_model(out / "train" / "train.pt").state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in undisturbed.items())


@pytest.fixture(scope="module")
def demo(digits: Path, tmp_path_factory: pytest.TempPathFactory, mlflow_database: bytes) -> tuple[Path, Stopped]:
    """A demo that was stopped while its teacher trained."""
    out = prepared(tmp_path_factory.mktemp("demo") / "out", mlflow_database)
    words = ["demo", "--data", str(digits), "--out", str(out), "--trials", "1", "--concurrent", "2"]
    words += ["--steps", "12", "--teacher-steps", "24"]
    training = out / "wikd" / "train" / "teacher"
    return out, stop(words, out / "first.log", training.is_dir)


def test_tune_stops_while_the_teacher_trains(demo: tuple[Path, Stopped]) -> None:
    out, stopped = demo
    check_stopped(stopped)
    assert states(out) == {"wikd": "interrupted", "teacher": "interrupted"}
    assert stopped.resume == ["demo", "--resume", "wikd", "--out", str(out)]


@pytest.fixture(scope="module")
def resumed(demo: tuple[Path, Stopped]) -> tuple[Path, Stopped]:
    """The same demo, resumed and stopped while best and control trained."""
    out, first = demo
    return out, stop(first.resume, out / "second.log", (out / "wikd" / "train" / "best").is_dir)


def test_tune_stops_while_best_and_control_train(resumed: tuple[Path, Stopped]) -> None:
    out, stopped = resumed
    check_stopped(stopped)
    interrupted = {"wikd": "interrupted", "leading": "interrupted", "control": "interrupted"}
    assert states(out) == interrupted | {"teacher": "completed", "trial-000": "completed"}
    assert stopped.resume == ["demo", "--resume", "wikd", "--out", str(out)]


# In CI `train` shows that a stopped training under Ray Train resumes.
@pytest.mark.long
def test_tune_resumes_after_it_was_stopped_twice(resumed: tuple[Path, Stopped]) -> None:
    out, stopped = resumed
    run(stopped.resume, out / "third.log")
    assert set(states(out).values()) == {"completed"} and (out / "report.html").is_file()


def test_a_second_ctrl_c_ends_the_command_at_once(
    digits: Path, nano_teacher: Path, tmp_path: Path, mlflow_database: bytes
) -> None:
    out = prepared(tmp_path / "out", mlflow_database)
    words = ["train", "--recipe", "digits-student", "--data", str(digits), "--teacher", str(nano_teacher)]
    stopped = stop([*words, "--out", str(out)], tmp_path / "log", (out / "train" / "train" / "train").is_dir, times=2)
    assert (stopped.code, stopped.survivors) == (130, []) and stopped.seconds < 5


PARTS = 120


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Archives of images that take an import long enough to be stopped."""
    source = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    for part in range(PARTS):
        with tarfile.open(source / f"{part:05d}.tar", "w") as tar:
            for row in range(4):
                image = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(image, "PNG")
                for suffix, content in (("png", image.getvalue()), ("txt", b"noise")):
                    member = tarfile.TarInfo(f"{part:05d}{row:04d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return source


@pytest.mark.parametrize("by", SIGNALS, ids=lambda by: by.name)
def test_data_import_stops_and_resumes(shards: Path, tmp_path: Path, by: signal.Signals) -> None:
    dest = tmp_path / "dataset"
    words = ["data", "import", str(shards), str(dest), "--split", "train"]

    def finished() -> list[Path]:
        return [path for path in (dest / ".work").rglob("*.parquet") if not path.name.startswith(".")]

    stopped = stop(words, tmp_path / "first.log", lambda: bool(finished()), by=by)
    check_stopped(stopped, by)
    assert stopped.resume == words
    kept = {path: path.stat().st_mtime_ns for path in finished()}
    assert kept and not (dest / "manifest.json").exists()

    output = run(stopped.resume, tmp_path / "second.log")
    assert open_dataset(dest).rows("train") == 4 * PARTS
    assert f"{4 * PARTS:,} rows read" in output


def test_evaluate_stops_and_resumes(nano_teacher: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = {"small": 2, "large": 1500, "last": 2}
    for name, count in images.items():
        for label in ("cat", "dog"):
            folder = tmp_path / "sets" / name / label
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    words = ["evaluate", str(nano_teacher), "--data", str(tmp_path / "sets"), "--suite", ",".join(images)]
    words += ["--cache", str(tmp_path / "cache"), "--json"]
    log = tmp_path / "first.log"
    stopped = stop(words, log, lambda: log.exists() and "small: measured" in log.read_text())
    check_stopped(stopped)
    assert stopped.resume == words and "large:" not in stopped.output

    output = run(stopped.resume, tmp_path / "second.log")
    assert "small: reused from an earlier run" in output and "large: measured" in output
    fresh = run([*words, "--fresh"], tmp_path / "third.log")

    def results(text: str) -> str:
        """As text, since NaN is not equal to NaN."""
        sets = json.loads(text[text.index("{") : text.rindex("}") + 1])["sets"]
        varying = ("kept", "seconds")
        return json.dumps(
            [{key: value for key, value in each.items() if key not in varying} for each in sets.values()]
        )

    assert results(output) == results(fresh)
