"""``siclip-platform evaluate`` and ``report``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint that training wrote.")],
    data: Annotated[Path, typer.Option(help="The dataset folder.")],
    split: Annotated[str, typer.Option(help="A split of the dataset.")] = "test",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Retrieval R@1/5/10 both ways, and how often a caption beats every false one."""
    from siclip_platform.evaluation import evaluate_checkpoint

    metrics = evaluate_checkpoint(checkpoint, data, split)
    if as_json:
        typer.echo(json.dumps(metrics, indent=2))
        return
    for name, value in metrics.items():
        typer.echo(f"{name:<36} {value:.4f}")


def report(
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow store; default: sqlite in --out.")] = None,
    out: Annotated[Path, typer.Option(help="Where report.html and report.md go.")] = Path("runs/tune_wikd"),
    study: Annotated[str | None, typer.Option(help="The study; default: the newest.")] = None,
) -> None:
    """Write one HTML file, and a Markdown twin, from what an MLflow store holds of a study."""
    from siclip_platform.report import write_report
    from siclip_platform.tracking import check_store_exists, default_tracking_uri

    uri = tracking_uri or default_tracking_uri(out)
    check_store_exists(uri)
    paths = write_report(uri, out.resolve(), study=study)
    typer.echo(f"{paths.html}\n{paths.markdown}")
