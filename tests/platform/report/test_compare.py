"""The commands ``siclip-platform report`` and ``compare``."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from report_store import METRIC, SyntheticStore
from typer.testing import CliRunner

from siclip.errors import UserError
from siclip_platform.cli import app
from siclip_platform.report.compare import differing, headings
from siclip_platform.report.read.query import find_runs
from siclip_platform.report.read.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, mlflow_database: bytes) -> SyntheticStore:
    made = SyntheticStore(tmp_path_factory.mktemp("store"), mlflow_database)
    experiment = made.experiment("siclip")
    study = made.study(experiment, "wikd")
    for index, name in enumerate(("one", "two\x1b[31m")):
        # The names contain a terminal escape sequence and Rich markup.
        params = {
            "loss.pair_matching": index,
            "model.name": "nano",
            "loss.kind": f"[red]{index}",
            "only.here" if index else "y": 1,
        }
        metrics = {METRIC: 0.25 + index / 10, "cost/steps": 100.0, "train/odd": math.nan}
        tags = {"siclip.trial": f"t{index}", "siclip.study": "wikd"}
        made.run(experiment, "trial", name=name, parent=study, params=params, metrics=metrics, tags=tags)
    return made


def run(*arguments: str) -> str:
    # Wide enough that Rich does not wrap a table.
    found = CliRunner(env={"COLUMNS": "140"}).invoke(app, list(arguments), catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.output


def test_columns_are_told_apart_and_have_differences(store: SyntheticStore) -> None:
    """Equal settings by their seed, equal seeds by the run's id; the figures that matter come first."""
    experiment = store.experiment("apart")
    rows = (("wikd", "pm", 0, 0.30), ("wikd", "pm", 1, 0.32), ("other", "pm", 0, 0.25), ("other", "pm", 0, 0.2))
    ids = []
    for study, setting, seed, value in rows:
        tags = {"siclip.study": study, "siclip.setting": setting, "siclip.seed": str(seed)}
        metrics = {"train/loss": 1 - value, "cost/seconds": 100 * value, "test/mean_recall@1": value}
        ids.append(store.run(experiment, "trial", tags=tags, metrics=metrics))
    runs = find_runs(Store(store.uri), ids)
    last = [f"other pm seed 0 {run_id[:8]}" for run_id in ids[2:]]
    assert headings(runs) == ["wikd pm seed 0", "wikd pm seed 1", *last]
    params, metrics_found = differing(runs)
    assert [name for name, _ in metrics_found] == ["test/mean_recall@1", "cost/seconds", "train/loss"] and not params
    expected = [f"{100 * (value - rows[0][3]):+.1f} points".replace("-", "−") for *_, value in rows[1:]]
    assert list(metrics_found[0][1][4:]) == expected == ["+2.0 points", "−5.0 points", "−10.0 points"]
    output = run("compare", ids[0], ids[1], "--tracking-uri", store.uri)
    assert "wikd pm seed 1 − wikd pm seed 0" in " ".join(output.split()) and "+2.0 points" in output


def test_compare_shows_only_differences(store: SyntheticStore) -> None:
    output = run("compare", "t0", "t1", "--tracking-uri", store.uri)
    rows = {line.split("│")[1].strip(): line.split("│")[2:4] for line in output.splitlines() if line.count("│") > 3}
    assert [cell.strip() for cell in rows["loss.pair_matching"]] == ["0", "1"]
    assert [cell.strip() for cell in rows[METRIC]] == ["25.0 %", "35.0 %"], rows
    assert [cell.strip() for cell in rows["only.here"]] == ["—", "1"]
    assert [cell.strip() for cell in rows["loss.kind"]] == ["[red]0", "[red]1"]
    assert "model.name" not in output and "train/odd" not in output
    assert "\x1b" not in output


def test_runs_are_found_by_id_prefix_or_name(store: SyntheticStore) -> None:
    reader = Store(store.uri)
    one, two = find_runs(reader, ["one", "t1"])
    again = find_runs(reader, [one.run_id, two.run_id[:8]])
    assert [run.run_id for run in again] == [one.run_id, two.run_id]
    params, metrics = differing([one, one])
    assert params == [] and metrics == []
    with pytest.raises(UserError, match=r"no run 'three'.*one"):
        find_runs(reader, ["three"])
    store.run(store.experiment("siclip"), "train", name="one")
    with pytest.raises(UserError, match="2 runs match 'one'"):
        find_runs(reader, ["one"])


def test_compare_of_one_run_is_refused(store: SyntheticStore) -> None:
    with pytest.raises(UserError, match="at least two runs"):
        run("compare", "t0", "--tracking-uri", store.uri)


def test_report_selects_by_command_line_options(store: SyntheticStore, tmp_path: Path) -> None:
    output = run("report", "--tracking-uri", store.uri, "--out", str(tmp_path), "--run", "t0", "--run", "t1")
    assert [Path(line).exists() for line in output.split()] == [True, True, True]
    twin = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "# chosen runs" in twin and "| t0 |" in twin and "| t1 |" in twin
    output = run("report", "--tracking-uri", store.uri, "--out", str(tmp_path), "--study", "wikd", "--watch", "1")
    assert "# Search wikd" in (tmp_path / "report.md").read_text(encoding="utf-8")
