"""Bad input is refused before training, with exit code 2 and a message without a traceback."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siclip_platform.cli import main

ROOT = Path(__file__).resolve().parents[3]
JOB = ROOT / "jobs" / "tune_wikd.py"
Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs the job in this process, in an empty folder; returns the message with which it refuses."""

    def run(*arguments: str, tracked: bool = False) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(JOB), *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(JOB), run_name="__main__")
        message = capsys.readouterr().err
        assert ended.value.code == 2, message
        assert "Traceback" not in message
        assert tracked or not list(tmp_path.rglob("mlflow.db")), "it was tracked before the input was checked"
        return re.sub(r"\s+", " ", message)

    return run


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text(
        "name: s\nmetric: validation/mean_recall@1\nparameters:\n"
        "  loss.feature_destillation: {distribution: uniform, low: 0, high: 1}\n"
    )
    return path


@pytest.mark.slow
def test_a_space_with_an_unknown_path_ends_the_process_without_a_traceback(tmp_path: Path, space: Path) -> None:
    command = [sys.executable, str(JOB), "--space", str(space), "--out", str(tmp_path / "o")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    message = re.sub(r"\s+", " ", done.stderr)
    assert done.returncode == 2, message
    assert "Traceback" not in message and not list(tmp_path.rglob("mlflow.db"))
    assert f"{space}:4" in message and "feature_destillation" in message and "feature_distillation" in message


@pytest.mark.slow
def test_a_space_that_does_not_exist(refused: Refused) -> None:
    assert "no-such-space" in refused("--space", "no-such-space")


@pytest.mark.slow
def test_a_dataset_that_is_missing(tmp_path: Path, refused: Refused) -> None:
    assert "nowhere" in refused("--data", str(tmp_path / "nowhere"))


@pytest.mark.slow
def test_a_dataset_with_another_schema(tmp_path: Path, digits: Path, refused: Refused) -> None:
    copy = tmp_path / "digits"
    shutil.copytree(digits, copy)
    shard = copy / "validation-00000.parquet"
    size = shard.stat().st_size
    pq.write_table(pa.table({"id": ["a"], "picture": [b"x"]}), shard)
    with shard.open("ab") as file:
        file.write(b"\0" * max(0, size - shard.stat().st_size))
    assert str(shard) in refused("--data", str(copy))


@pytest.mark.slow
def test_a_teacher_that_is_another_model(tmp_path: Path, digits: Path, refused: Refused) -> None:
    from siclip.checkpoints.formats import save_checkpoint
    from siclip.models import create_model

    teacher = tmp_path / "teacher.pt"
    save_checkpoint(teacher, create_model("mobileclip-nano", embed_dim=64, image={"widths": (16, 32, 64)}))
    message = refused("--teacher", str(teacher), "--data", str(digits))
    assert "'mobileclip-nano', which has a different structure" in message
    (tmp_path / "text.pt").write_text("not a checkpoint")
    assert "text.pt" in refused("--teacher", str(tmp_path / "text.pt"), "--data", str(digits))


@pytest.mark.slow
def test_a_tracking_server_that_does_not_answer(digits: Path, refused: Refused) -> None:
    message = refused("--data", str(digits), "--tracking-uri", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9" in message and "does not answer" in message


@pytest.mark.slow
def test_a_cluster_that_does_not_exist(tmp_path: Path, digits: Path, refused: Refused) -> None:
    options = ("--address", "127.0.0.1:9", "--out", str(tmp_path / "o"))
    assert "127.0.0.1:9" in refused("--data", str(digits), *options, tracked=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "name a recipe with --recipe NAME-OR-FILE"),
        (["train", "--recipe", "digits-teacher"], "data build"),
        (["train", "--recipe", "nothing", "--data", "."], "no recipe 'nothing'; choose one of digits-student"),
        (["train", "--recipe", "missing.yaml"], "missing.yaml does not exist"),
        (["train", "--recipe", "digits-teacher", "--data", ".", "--set", "loss.fd=1"], "no recipe field"),
        (["train", "--recipe", "digits-teacher", "--data", ".", "--set", "training.steps=x"], "training.steps"),
        (["train", "--recipe", "digits-teacher", "--data", ".", "--set", "steps"], "PATH=VALUE"),
        (["train", "--recipe", "digits-teacher", "--data", "."], "manifest"),
        (["evaluate", "missing.pt", "--data", "."], "missing.pt does not exist"),
        (["report", "--out", "empty"], "no MLflow store"),
        (["train", "--trials", "3"], "--trials"),
        (["demo", "--space", "nope"], "nope"),
        (["tune", "--space", "nope", "--recipe", "digits-student", "--data", "."], "nope"),
        (["tune", "--sampler", "gpp", "--recipe", "digits-student", "--data", "."], "did you mean 'gp'"),
        (
            ["tune", "--scheduler", "pbt", "--recipe", "digits-student", "--data", "."],
            "parameters.loss.pair_head: scheduler 'pbt'",
        ),
        (["tune", "--resume", "wikd", "--sampler", "gp"], "no study 'wikd'"),
        (["ablate"], "name a study file"),
        (["demo", "--data", "s3://k:secret@b/d"], "--data: s3://… was given with credentials"),
        (
            ["train", "--recipe", "digits-teacher", "--data", ".", "--checkpoints", "s3://"],
            "--checkpoints: s3:",
        ),
        (
            ["tune", "--recipe", "digits-teacher", "--data", ".", "--disk-budget", "20"],
            "--disk-budget: '20' is not a size",
        ),
    ],
)
def test_bad_arguments_are_refused(
    tmp_path: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["siclip-platform", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed and "secret" not in printed
    assert not list(tmp_path.rglob("mlflow.db"))
