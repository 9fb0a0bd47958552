"""A store of finished runs of the studies in benchmarks/, with invented metrics."""

from __future__ import annotations

from pathlib import Path

import study_tools


def made_up(runs: list[study_tools.Run], figures: dict[tuple[str, int], float], path: Path) -> study_tools.RunStore:
    """A store in which these runs are finished.

    Args:
        runs: the runs.
        figures: (setting, seed) → *beats all*; half of it is R@1.
        path: folder of the store.
    """
    path.mkdir(exist_ok=True)
    store = study_tools.RunStore(path)
    for run in runs:
        value = figures.get((run.setting, run.seed), 0.5)
        metrics = {"beats_all_negatives": value, "mean_recall@1": value / 2}
        named = {f"{split}/{name}": number for split in ("validation", "test") for name, number in metrics.items()}
        store.add(run, named | {"cost/training_seconds": 10.0 * run.seed})
    return store
