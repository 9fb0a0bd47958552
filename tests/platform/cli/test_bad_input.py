"""Bad input ends before training, with exit code 2 and a message that names the thing; never a traceback."""

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
    """Run the job in this process, in an empty folder; what it says when it refuses."""

    def run(*arguments: str, tracked: bool = False) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(JOB), *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(JOB), run_name="__main__")
        said = capsys.readouterr().err
        assert ended.value.code == 2, said
        assert "Traceback" not in said
        assert tracked or not list(tmp_path.rglob("mlflow.db")), "it was tracked before the input was checked"
        return re.sub(r"\s+", " ", said)

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
def test_a_space_with_an_unknown_path_in_a_process_of_its_own(tmp_path: Path, space: Path) -> None:
    command = [sys.executable, str(JOB), "--space", str(space), "--out", str(tmp_path / "o")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    said = re.sub(r"\s+", " ", done.stderr)
    assert done.returncode == 2, said
    assert "Traceback" not in said and not list(tmp_path.rglob("mlflow.db"))
    assert f"{space}:4" in said and "feature_destillation" in said and "feature_distillation" in said


@pytest.mark.slow
def test_a_space_that_does_not_exist(refused: Refused) -> None:
    assert "no-such-space" in refused("--space", "no-such-space")


@pytest.mark.slow
def test_a_dataset_that_is_missing(tmp_path: Path, refused: Refused) -> None:
    assert "nowhere" in refused("--data", str(tmp_path / "nowhere"))


@pytest.mark.slow
def test_a_dataset_of_another_schema(tmp_path: Path, digits: Path, refused: Refused) -> None:
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
    said = refused("--teacher", str(teacher), "--data", str(digits))
    assert "'mobileclip-nano', which has a different structure" in said
    (tmp_path / "text.pt").write_text("not a checkpoint")
    said = refused("--teacher", str(tmp_path / "text.pt"), "--data", str(digits))
    assert "text.pt" in said


@pytest.mark.slow
def test_a_tracking_server_that_does_not_answer(digits: Path, refused: Refused) -> None:
    said = refused("--data", str(digits), "--tracking-uri", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9" in said and "does not answer" in said


@pytest.mark.slow
def test_a_cluster_that_is_not_there(tmp_path: Path, digits: Path, refused: Refused) -> None:
    place = ("--address", "127.0.0.1:9", "--out", str(tmp_path / "o"))
    assert "127.0.0.1:9" in refused("--data", str(digits), *place, tracked=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "--recipe FILE or --preset NAME"),
        (["train", "--preset", "digits-teacher"], "data build"),
        (["train", "--preset", "nothing", "--data", "."], "no preset 'nothing'"),
        (["train", "--recipe", "missing.yaml"], "missing.yaml does not exist"),
        (["train", "--preset", "digits-teacher", "--data", ".", "--set", "loss.fd=1"], "no recipe field"),
        (["train", "--preset", "digits-teacher", "--data", ".", "--set", "training.steps=x"], "training.steps"),
        (["train", "--preset", "digits-teacher", "--data", ".", "--set", "steps"], "PATH=VALUE"),
        (["train", "--preset", "digits-teacher", "--data", "."], "manifest"),
        (["evaluate", "missing.pt", "--data", "."], "missing.pt does not exist"),
        (["report", "--out", "empty"], "no MLflow store"),
        (["train", "--trials", "3"], "--trials"),
        (["demo", "--space", "nope"], "nope"),
        (["tune", "--space", "nope", "--preset", "digits-student", "--data", "."], "nope"),
        (["tune", "--sampler", "gpp", "--preset", "digits-student", "--data", "."], "did you mean 'gp'"),
        (["tune", "--scheduler", "pbt", "--preset", "digits-student", "--data", "."], "'loss.pair_head' must stay"),
        (["tune", "--resume", "wikd", "--sampler", "gp"], "no study 'wikd'"),
        (["ablate"], "name a study file"),
    ],
)
def test_the_command_line(
    tmp_path: Path,
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["siclip-platform", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob("mlflow.db"))


def test_a_cluster_too_small_names_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from siclip.errors import UserError
    from siclip_platform.cluster.connect import Needs, check_size

    needs = Needs(concurrent=2, worker_cpus=1.0)
    assert needs.cpus == pytest.approx(2 * (0.01 + 1.0 + 0.5) + 1)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    with pytest.raises(UserError, match=r"has 4 CPUs and this needs 4\.02: 2 × \(0\.01 coordinator \+ 1 worker"):
        check_size(needs, "here")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 5.0})
    check_size(needs, "here")
