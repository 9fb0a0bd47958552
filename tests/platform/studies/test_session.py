"""What an experiment that is stopped leaves, and says about it."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path

import pytest
from mlflow import MlflowClient
from study_parts import base_recipe

from siclip_platform.studies.options import Options
from siclip_platform.studies.session import STOPPED, open_experiment
from siclip_platform.tracking import default_tracking_uri


@pytest.mark.parametrize(
    ("program", "kind", "said"),
    [
        ("siclip-platform", None, "stopped; there is nothing to go on with: start it again"),
        ("siclip-platform", "search", "stopped; to go on: siclip-platform tune --resume s --out OUT"),
        ("jobs/train_siclip.py", "train", "stopped; to go on: siclip-platform train --resume s --out OUT"),
        ("jobs/tune_wikd.py", "search", "stopped; to go on: the same command with --resume s"),
        ("jobs/ablate_siclip.py", "ablation", "stopped; to go on: the same command with --resume s"),
    ],
)
def test_ctrl_c_says_what_goes_on(
    program: str,
    kind: str | None,
    said: str,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mlflow_database: bytes,
) -> None:
    (tmp_path / "mlflow.db").write_bytes(mlflow_database)
    monkeypatch.setattr("siclip_platform.studies.session.ray_cluster", lambda *given: nullcontext())
    monkeypatch.setattr("sys.argv", [program])
    with pytest.raises(SystemExit) as ended, open_experiment(Options(out=tmp_path), "s") as experiment:
        if kind:
            experiment.keep(base_recipe(digits), kind=kind)
            experiment.begin(base_recipe(digits), {}, {})
        raise KeyboardInterrupt
    assert ended.value.code == STOPPED
    assert said.replace("OUT", str(tmp_path)) in re.sub(r"\s+", " ", capsys.readouterr().out)
    client = MlflowClient(tracking_uri=default_tracking_uri(tmp_path))
    runs = client.search_runs([client.get_experiment_by_name("siclip").experiment_id])
    assert [run.data.tags["siclip.state"] for run in runs] == (["interrupted"] if kind else [])
