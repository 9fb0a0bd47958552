"""``siclip-platform ablate``."""

from __future__ import annotations

import typer

from siclip_platform.cli.experiments import run_job


def ablate(context: typer.Context) -> None:
    """Run jobs/ablate_siclip.py: train a study's settings with the same seeds; takes the job's options (--help)."""
    run_job("ablate_siclip.py", context)
