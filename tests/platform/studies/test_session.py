"""What a study that is stopped leaves behind and prints."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path

import pytest
from mlflow import MlflowClient
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
