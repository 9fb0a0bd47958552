"""Measure models on evaluation sets: classification, retrieval, composition, with confidence intervals.

python jobs/evaluate_siclip.py runs/train/train/train.pt --data eval-sets --suite datacomp
ray job submit -- python jobs/evaluate_siclip.py /shared/best.pt --data /shared/eval-sets --suite datacomp
"""

from __future__ import annotations

import typer

from siclip_platform.cli.evaluate import evaluate
from siclip_platform.cli.guard import guarded

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(evaluate)

if __name__ == "__main__":
    guarded(app)
