"""What a study that is stopped leaves behind and prints; what it finds when it is resumed, or starts with another."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from study_parts import base_recipe

from siclip_platform.cluster.interrupt import INTERRUPTED
from siclip_platform.studies.options import Options
from siclip_platform.studies.session import open_experiment
from siclip_platform.studies.study_file import StudyKind
from siclip_platform.tracking import default_tracking_uri


@pytest.mark.parametrize(
    ("kind", "printed"),
    [
        (None, "stopped; nothing was begun; to start again: python jobs/tune_wikd.py --trials 3"),
        ("search", "stopped; to resume: siclip-platform tune --resume s --out OUT"),
        ("train", "stopped; to resume: siclip-platform train --resume s --out OUT"),
        ("demo", "stopped; to resume: siclip-platform demo --resume s --out OUT"),
        ("ablation", "stopped; to resume: siclip-platform ablate --resume s --out OUT"),
    ],
)
def test_ctrl_c_prints_the_command_that_resumes(
    kind: StudyKind | None,
    printed: str,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mlflow_database: bytes,
) -> None:
    (tmp_path / "mlflow.db").write_bytes(mlflow_database)
    monkeypatch.setattr("siclip_platform.studies.session.ray_cluster", lambda *given: nullcontext())
    # The program's name must not matter: a study that any program begins is resumed by the command of its kind.
    monkeypatch.setattr("sys.argv", ["jobs/tune_wikd.py", "--trials", "3"])
    with pytest.raises(SystemExit) as ended, open_experiment(Options(out=tmp_path), "s") as experiment:
        if kind:
            experiment.describe(kind, base_recipe(digits))
            experiment.begin(base_recipe(digits), {}, {})
        raise KeyboardInterrupt
    assert ended.value.code == INTERRUPTED == 130
    assert printed.replace("OUT", str(tmp_path)) in re.sub(r"\s+", " ", capsys.readouterr().out)
    client = MlflowClient(tracking_uri=default_tracking_uri(tmp_path))
    runs = client.search_runs([client.get_experiment_by_name("siclip").experiment_id])
    assert [run.data.tags["siclip.state"] for run in runs] == (["interrupted"] if kind else [])


def study_runs(out: Path) -> Sequence[Run]:
    client = MlflowClient(tracking_uri=default_tracking_uri(out))
    return list(client.search_runs([client.get_experiment_by_name("siclip").experiment_id]))


@pytest.mark.parametrize("lost", ["spool", "store"])
def test_a_resumed_study_finds_or_writes_again_what_was_lost(
    lost: str,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mlflow_database: bytes,
) -> None:
    """``spool``: also another machine, which gets the study's description from its checkpoints."""
    (tmp_path / "mlflow.db").write_bytes(mlflow_database)
    monkeypatch.setattr("siclip_platform.studies.session.ray_cluster", lambda *given: nullcontext())

    def work(**options: str) -> None:
        with open_experiment(Options(out=tmp_path, **options), "s") as experiment:
            if not options:
                experiment.describe("train", base_recipe(digits))
            experiment.begin(base_recipe(digits), {}, {})
            key = f"{experiment.key}/train"
            run = experiment.tracker.start("train", "train", params={}, tags={}, key=key, parent=experiment.study_run)
            for step in (1, 2):
                run.log(step, {"train/loss": 1 / step})
            run.finish("completed")

    work()
    before = {run.info.run_id for run in study_runs(tmp_path)}
    assert len(before) == 2
    if lost == "store":
        (tmp_path / "mlflow.db").write_bytes(mlflow_database)
    else:
        description = (tmp_path / "s" / "study.json").read_bytes()
        shutil.rmtree(tmp_path / "s")
        (tmp_path / "s").mkdir()
        (tmp_path / "s" / "study.json").write_bytes(description)
    work(resume="s")
    after = {run.info.run_id for run in study_runs(tmp_path)}
    assert len(after) == 2 and (after == before) == (lost != "store")
    client = MlflowClient(tracking_uri=default_tracking_uri(tmp_path))
    (train,) = [run for run in study_runs(tmp_path) if run.info.run_name == "train"]
    assert {run.info.status for run in study_runs(tmp_path)} == {"FINISHED"}
    assert train.data.tags["mlflow.parentRunId"] in after
    points = client.get_metric_history(train.info.run_id, "train/loss")
    assert sorted((point.step, point.value) for point in points) == [(1, 1.0), (2, 0.5)]
    told = "2 runs of the study" if lost == "store" else "2 runs of the study were found in MLflow"
    assert told in " ".join(capsys.readouterr().out.split())


BEGIN = """
import sys
from contextlib import nullcontext
from pathlib import Path
from siclip_platform.studies import session
from siclip_platform.studies.options import Options
from study_parts import base_recipe
session.ray_cluster = lambda *given: nullcontext()
with session.open_experiment(Options(out=Path(sys.argv[1])), "s") as experiment:
    experiment.describe("train", base_recipe(Path(sys.argv[2])))
    experiment.begin(base_recipe(Path(sys.argv[2])), {}, {})
"""


@pytest.mark.slow
def test_two_studies_that_start_at_once_in_a_new_folder_both_work(digits: Path, tmp_path: Path) -> None:
    path = [str(Path(base_recipe.__code__.co_filename).parent), *sys.path]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{BEGIN}", str(tmp_path), str(digits)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    assert sorted(path.parent.name for path in tmp_path.glob("*/study.json")) == ["s", "s-2"]
    assert sorted(run.info.run_name or "" for run in study_runs(tmp_path)) == ["s", "s-2"]
