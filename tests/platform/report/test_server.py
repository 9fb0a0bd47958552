"""Reports of a store behind an MLflow server."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow_server import free_port, server
from report_pages import Page, report
from report_store import Ablation, SyntheticStore, add_ablation
from typer.testing import CliRunner

from siclip_platform.cli import app
from siclip_platform.report import ReportPaths, write_report
from siclip_platform.report.watch import follow

pytestmark = pytest.mark.slow


def run(*arguments: str) -> str:
    # Wide enough that Rich does not wrap a table.
    found = CliRunner(env={"COLUMNS": "140"}).invoke(app, list(arguments), catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.output


def test_a_report_over_http_equals_that_of_the_database(tmp_path: Path, mlflow_database: bytes) -> None:
    """The same tables, with links to the server's pages; artifacts through the server; ``compare``; ``--watch``."""
    store = SyntheticStore(tmp_path / "store", mlflow_database)
    experiment = str(store.client.create_experiment("served", artifact_location="mlflow-artifacts:/served"))
    study = add_ablation(store, experiment, "served", Ablation({"baseline": 0.3, "+ PM": 0.4}, seeds=(0, 1)))
    watched = store.study(experiment, "watched", state="running")
    direct, _ = report(store.uri, tmp_path / "direct", study="served")
    with server(free_port(), tmp_path / "store") as address:
        client = MlflowClient(tracking_uri=address)
        client.log_text(study, '{"name": "dots", "version": "1", "hash": "x"}', "data_summary.json")
        options = ("--tracking-uri", address, "--out", str(tmp_path / "out"), "--study", "served")
        assert "report.html" in run("report", *options, "--log-artifacts")
        html = (tmp_path / "out" / "report.html").read_bytes()
        served = Page(html.decode())
        assert "dots 1, hash x" in served.text and "dots 1, hash x" not in direct.text
        assert served.tables == direct.tables
        links = {attributes["href"] for tag, attributes in served.tags if tag == "a"}
        assert f"{address}/#/experiments/{experiment}/runs/{study}" in links
        names = {item.path for item in client.list_artifacts(study, "report")}
        assert names == {"report/report.html", "report/report.md", "report/report_files"}
        kept = Path(client.download_artifacts(study, "report/report.html", str(tmp_path)))
        assert kept.read_bytes() == html

        output = run("compare", "s0", "s1", "--tracking-uri", address)
        assert [line.split()[3:6:2] for line in output.splitlines() if "loss.pair_matching" in line] == [["0", "1"]]

        def end(_: float) -> None:
            client.set_tag(watched, "siclip.state", "completed")

        def make() -> ReportPaths:
            return write_report(address, tmp_path / "watched", study="watched", watch_seconds=5)

        states: list[bool] = []
        last = follow(make, 5, lambda paths: states.append(paths.running), end)
        assert states == [True] and not last.running
