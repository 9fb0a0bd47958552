"""Measure models on evaluation sets: classification, retrieval, composition, with confidence intervals.

python jobs/evaluate_siclip.py runs/train/train/train.pt --data eval-sets --suite datacomp
ray job submit -- python jobs/evaluate_siclip.py /shared/best.pt --recipe /shared/my.yaml

With a recipe: on its dataset, with its teacher beside the model.
"""

from __future__ import annotations

from siclip_platform.cli.evaluate import evaluate
from siclip_platform.cli.guard import as_app, guarded

app = as_app(evaluate)

if __name__ == "__main__":
    guarded(app)
