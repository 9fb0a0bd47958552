"""``siclip-platform report`` and ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from siclip_platform.cli.tune import OUT

Opt = typer.Option
DEFAULT_OUT = OUT
"""Where ``tune`` writes by default."""


def report(
    tracking_uri: Annotated[str | None, Opt(help="MLflow store; default: sqlite in --out.")] = None,
    out: Annotated[Path, Opt(help="Where report.html, report.md and report_files/ go.")] = DEFAULT_OUT,
    study: Annotated[list[str] | None, Opt(help="Name of a study; may be repeated. Default: the newest.")] = None,
    run: Annotated[
        list[str] | None, Opt(help="A run's id, the start of its id, or its name; may be repeated.")
    ] = None,
    tag: Annotated[list[str] | None, Opt(help="Studies or runs with a tag, NAME=VALUE; may be repeated.")] = None,
    search: Annotated[str | None, Opt(help="Studies and runs that match an MLflow search string.")] = None,
    experiment: Annotated[str | None, Opt(help="Only this MLflow experiment; default: all.")] = None,
    mlflow_url: Annotated[str | None, Opt(help="Address of MLflow's pages, for links to runs.")] = None,
    log_artifacts: Annotated[bool, Opt("--log-artifacts", help="Also log the report with each study's run.")] = False,
    watch: Annotated[int | None, Opt(min=1, help="Write it again every N seconds until the study ends.")] = None,
) -> None:
    """Write a report on studies or runs of an MLflow store: one HTML file, the same in Markdown, plots and data."""
    from siclip_platform.display import echo
    from siclip_platform.report import ReportPaths, Selection, write_report
    from siclip_platform.report.watch import follow
    from siclip_platform.tracking import check_store_exists, default_tracking_uri

    uri = tracking_uri or default_tracking_uri(out)
    check_store_exists(uri)
    chosen = Selection(tuple(study or ()), tuple(run or ()), tuple(tag or ()), search, experiment)

    def make() -> ReportPaths:
        return write_report(
            uri,
            out.resolve(),
            selection=chosen,
            mlflow_url=mlflow_url,
            log_artifacts=log_artifacts,
            watch_seconds=watch or 0,
        )

    paths = follow(make, watch, lambda made: echo(f"{made.html}: running")) if watch else make()
    echo(f"{paths.html}\n{paths.markdown}\n{paths.files}")


def compare(
    runs: Annotated[list[str], typer.Argument(help="Two runs or more: ids, starts of ids, or names.")],
    tracking_uri: Annotated[str | None, Opt(help="MLflow store; default: sqlite in --out.")] = None,
    out: Annotated[Path, Opt(help="The folder of the store.")] = DEFAULT_OUT,
    experiment: Annotated[str | None, Opt(help="Only this MLflow experiment; default: all.")] = None,
) -> None:
    """Show the parameters and metrics in which runs differ, and each difference from the first run."""
    from siclip.errors import UserError
    from siclip_platform.display import Terminal
    from siclip_platform.report.compare import comparison_tables
    from siclip_platform.report.read.query import find_runs
    from siclip_platform.report.read.store import Store
    from siclip_platform.tracking import check_store_exists, default_tracking_uri

    if len(runs) < 2:
        raise UserError("compare requires at least two runs: give ids, starts of ids, or names")
    uri = tracking_uri or default_tracking_uri(out)
    check_store_exists(uri)
    console = Terminal()
    for table in comparison_tables(find_runs(Store(uri), runs, experiment)):
        console.print(table)
