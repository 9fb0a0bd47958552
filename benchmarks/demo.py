"""The demo's time by part: imports, Ray, dataset, teacher, trials, best and control; overhead relative to training.

    python benchmarks/demo.py [--out FOLDER] [job options, for example --trials 4]

Runs the job once, reads the metrics that it tracked, prints a table and writes benchmarks/results/demo.json. There is
no peer: the ratio is the wall time to the pure training time of the same runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from siclip_platform.studies.timeline import SPANS_FILE
from siclip_platform.tracking import default_tracking_uri, git_commit

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "demo.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for the demo's output (default: a temporary one)")
    options, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        out = (options.out or Path(folder)).resolve()
        wall_seconds, import_seconds = run_job(out, rest)
        spans = json.loads((out / SPANS_FILE).read_text())
        runs = tracked_runs(out)
    result = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("ray", "torch", "mlflow", "optuna")},
        "commit": git_commit(),
        "arguments": rest,
        "wall_seconds": wall_seconds,
        "parts_seconds": parts(wall_seconds, import_seconds, spans),
        "runs": runs,
        "trials": trials_overhead(spans, runs),
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


def run_job(out: Path, rest: list[str]) -> tuple[float, float]:
    """Wall seconds of the whole job, and of its driver's imports, measured in a separate process."""
    modules = "siclip_platform.studies.experiment, siclip_platform.search.study, siclip_platform.report, mlflow"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)
    import_seconds = time.perf_counter() - started
    started = time.perf_counter()
    subprocess.run([sys.executable, str(ROOT / "jobs" / "tune_wikd.py"), "--out", str(out), *rest], check=True)
    return time.perf_counter() - started, import_seconds


def tracked_runs(out: Path) -> list[dict[str, Any]]:
    """Name, kind, state, steps, wall seconds and pure training seconds of every run of the newest study."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=default_tracking_uri(out))
    experiment = client.get_experiment_by_name("siclip")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], order_by=["start_time ASC"])
    newest = [run for run in runs if run.data.tags["siclip.kind"] == "study"][-1].data.tags["siclip.study"]
    return [
        {
            "name": run.info.run_name,
            "kind": run.data.tags["siclip.kind"],
            "state": run.data.tags["siclip.state"],
            "steps": run.data.metrics.get("cost/steps"),
            "seconds": (run.info.end_time - run.info.start_time) / 1000,
            "training_seconds": run.data.metrics.get("cost/training_seconds"),
        }
        for run in runs
        if run.data.tags["siclip.study"] == newest and run.data.tags["siclip.kind"] != "study"
    ]


def parts(wall_seconds: float, import_seconds: float, spans: dict[str, float]) -> dict[str, float]:
    """The job's time by part; ``rest`` is what no part accounts for, such as starting and stopping Ray."""
    return {"imports": import_seconds, **spans, "rest": wall_seconds - import_seconds - sum(spans.values())}


def trials_overhead(spans: dict[str, float], runs: list[dict[str, Any]]) -> dict[str, float]:
    """Per trial pure training and everything else; and the ratio of the study's wall time to all training."""
    trials = [run for run in runs if run["kind"] == "trial" and run["training_seconds"]]
    training = sum(run["training_seconds"] for run in trials)
    inside = sum(run["seconds"] for run in trials)
    return {
        "count": len(trials),
        "training_seconds_mean": training / len(trials),
        "overhead_seconds_mean": (inside - training) / len(trials),
        "study_wall_to_training": next(s for n, s in spans.items() if n.endswith("trials")) / training,
    }


def show(result: dict[str, Any]) -> None:
    console = Console()
    table = Table(title=f"The demo's {result['wall_seconds']:.0f} s on {result['machine']['cores']} cores")
    table.add_column("part")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for name, seconds in result["parts_seconds"].items():
        table.add_row(name, f"{seconds:.1f}", f"{100 * seconds / result['wall_seconds']:.0f} %")
    console.print(table)
    trials = result["trials"]
    console.print(
        f"{trials['count']} trials: {trials['training_seconds_mean']:.1f} s of training each, "
        f"{trials['overhead_seconds_mean']:.1f} s for everything else (imports, building, evaluations); "
        f"study wall time ÷ training of all trials {trials['study_wall_to_training']:.2f}"
    )
    for run in result["runs"]:
        if run["kind"] != "trial" and run["training_seconds"]:
            training, seconds = run["training_seconds"], run["seconds"]
            console.print(f"{run['name']}: {training:.1f} s of training in {seconds:.1f} s under Ray Train")
    console.print(f"written to {RESULT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
