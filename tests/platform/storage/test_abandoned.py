"""Temporary files that a kill leaves are removed at the next start, those of running processes are not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from siclip_platform.display import Display
from siclip_platform.storage.atomic import remove_abandoned
from siclip_platform.studies.experiment import Experiment
from siclip_platform.studies.options import Options
from siclip_platform.tracking import Tracker, default_tracking_uri
from tests.support.study_parts import base_recipe

KILLS = 8
KILLED = f"""
import os, signal, sys
import torch
from siclip.checkpoints.formats import save_checkpoint
from siclip.models import create_model
torch.save = lambda content, file: (file.write(b"x" * 1000), file.flush(), os.kill(os.getpid(), signal.SIGKILL))
model = create_model("siclip-nano")
for _ in range({KILLS}):
    process = os.fork()
    if not process:
        save_checkpoint(sys.argv[1], model)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
"""


def test_a_resumed_study_removes_what_kills_left(
    digits: Path, tmp_path: Path, mlflow_database: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow.db").write_bytes(mlflow_database)
    tracker = Tracker(default_tracking_uri(tmp_path), artifacts=tmp_path / "artifacts", spool=tmp_path / "s")
    options = Options(out=tmp_path, data=digits)
    Experiment(options, Display(), tracker, "s").describe("train", base_recipe(digits))
    folder = tmp_path / "s" / "checkpoints" / "trial-000"
    folder.mkdir(parents=True)
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder / "seed-0.step-4.pt")], timeout=100, check=False)
    left = list(folder.iterdir())
    assert done.returncode == 0 and len(left) == KILLS
    assert all(path.suffix == ".tmp" and path.stat().st_size >= 1000 for path in left)
    mine = folder / f"seed-1.step-4.pt.{os.getpid()}.tmp"
    for kept in (mine, folder / "seed-0.step-2.pt", folder / "notes.tmp"):
        kept.write_bytes(b"kept")
    Experiment(options.model_copy(update={"resume": "s"}), Display(), tracker, "s")
    tracker.close(0)
    assert {path.name for path in folder.iterdir()} == {mine.name, "seed-0.step-2.pt", "notes.tmp"}
    assert "temporary files that were left by a kill are removed" in " ".join(capsys.readouterr().out.split())


def test_folders_of_workers_are_removed_by_their_prefix(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in (
        f"siclip-checkpoint.a.{gone.pid}.tmp",
        f"other.{gone.pid}.tmp",
        f"siclip-checkpoint.{os.getpid()}.tmp",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoint.pt").write_bytes(b"12345")
    assert remove_abandoned(tmp_path, prefix="siclip-checkpoint.", deep=False) == 5
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {"other", "siclip-checkpoint"}
    assert remove_abandoned(tmp_path / "nowhere") == 0
