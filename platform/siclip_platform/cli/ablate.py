"""``siclip-platform ablate``."""

from __future__ import annotations

import runpy
import sys

import typer

from siclip_platform.cli.experiments import _find_job


def ablate(context: typer.Context) -> None:
    """Run jobs/ablate_siclip.py: a study's settings, each with the same seeds; takes the job's options (--help)."""
    job = _find_job("ablate_siclip.py")
    sys.argv = [str(job), *context.args]
    runpy.run_path(str(job), run_name="__main__")
