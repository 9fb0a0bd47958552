"""Time to report a large study and small ones, and size of the page. The stores are synthetic.

    python benchmarks/report.py [--trials 2000] [--points 100] [--store FOLDER] [--repeats 3]
    python benchmarks/report.py --small

Fills an MLflow sqlite store with a search of --trials trials and --points evaluations in each. This takes a few
minutes; a store in --store is kept and reused. Each report runs in a new process and is compared with what a user has
without it: `mlflow.search_runs` into a table, without curves or plots. Report and peer alternate. Prints a table and
writes benchmarks/results/report.json.

With --small it reports a search of the demo's size (eight trials, teacher, best, control) and an ablation (six
settings with three seeds, two of them with five fresh seeds), and writes report_small.json. It also records CPU
seconds, because other load on the machine increases only wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from report_store import Ablation, SyntheticStore, add_ablation, add_search
from rich.console import Console
from rich.table import Table

from siclip_platform.tracking import git_commit

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "report.json"
SMALL = RESULT.with_name("report_small.json")
SETTINGS = ("baseline", "+ inheritance", "+ FD", "+ CRD", "+ ICL", "+ PM")
REPORT = "import sys; from siclip_platform.cli import main; sys.argv[0] = 'siclip-platform'; main()"
PEER = (
    "import sys, mlflow; mlflow.set_tracking_uri(sys.argv[1]); "
    "print(len(mlflow.search_runs(search_all_experiments=True, max_results=100_000)))"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--points", type=int, default=100, help="evaluations per trial")
    parser.add_argument("--store", type=Path, help="folder in which to keep the store, or of a store to reuse")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--small", action="store_true", help="report a demo and an ablation instead of the large study"
    )
    options = parser.parse_args()
    if options.small:
        small(options.repeats)
        return
    with tempfile.TemporaryDirectory() as folder:
        uri = fill((options.store or Path(folder)).resolve(), options.trials, options.points)
        out = Path(folder) / "out"
        runs = [measure(uri, out) for _ in range(options.repeats)]
        result = summarize(runs, out, options)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


def fill(folder: Path, trials: int, points: int) -> str:
    """Create the store unless the folder has one, and return its URI."""
    exists = (folder / "mlflow.db").exists()
    store = SyntheticStore(folder)
    if not exists:
        add_search(store, store.experiment("synthetic"), "synthetic", trials=trials, points=points, steps=10 * points)
    return store.uri


def small(repeats: int) -> None:
    """Report a demo's study and an ablation in alternation, each in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        store = SyntheticStore(Path(folder))
        add_search(store, store.experiment("demo"), "demo", trials=8)
        plan = Ablation({name: 0.2 + 0.02 * index for index, name in enumerate(SETTINGS)}, confirm=SETTINGS[-1])
        add_ablation(store, store.experiment("ablation"), "ablation", plan)
        runs: dict[str, list[dict[str, float]]] = {"demo": [], "ablation": []}
        for _ in range(repeats):
            for name, found in runs.items():
                command = [sys.executable, "-c", REPORT, "report", "--tracking-uri", store.uri, "--study", name]
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                seconds = timed([*command, "--out", f"{folder}/{name}"])
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                found.append({"wall_seconds": seconds, "cpu_seconds": cpu})
        sizes = {name: Path(folder, name, "report.html").stat().st_size for name in runs}
    medians = {
        name: {key: statistics.median(run[key] for run in found) for key in found[0]} for name, found in runs.items()
    }
    result = {**provenance(), "runs": runs, "median": medians, "html_bytes": sizes}
    SMALL.write_text(json.dumps(result, indent=2) + "\n")
    Console().print(medians, f"written to {SMALL.relative_to(ROOT)}")


def measure(uri: str, out: Path) -> dict[str, float]:
    """Wall seconds of the report and of the peer, including their imports."""
    report = [sys.executable, "-c", REPORT, "report", "--tracking-uri", uri, "--out", str(out)]
    return {"report_seconds": timed(report), "peer_seconds": timed([sys.executable, "-c", PEER, uri])}


def timed(command: list[str]) -> float:
    """Wall seconds of a command."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def summarize(runs: list[dict[str, float]], out: Path, options: argparse.Namespace) -> dict[str, Any]:
    ratios = [run["report_seconds"] / run["peer_seconds"] for run in runs]
    files = [path for path in (out / "report_files").rglob("*") if path.is_file()]
    return {
        **provenance(),
        "trials": options.trials,
        "points": options.points,
        "runs": runs,
        "report_seconds": statistics.median(run["report_seconds"] for run in runs),
        "peer_seconds": statistics.median(run["peer_seconds"] for run in runs),
        "ratio": {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)},
        "html_bytes": (out / "report.html").stat().st_size,
        "files_bytes": sum(path.stat().st_size for path in files),
    }


def provenance() -> dict[str, Any]:
    return {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("mlflow", "optuna", "plotly", "matplotlib")},
        "commit": git_commit(),
    }


def show(result: dict[str, Any]) -> None:
    table = Table(title=f"{result['trials']} trials × {result['points']} evaluations, {len(result['runs'])} times")
    table.add_column("")
    table.add_column("median", justify="right")
    ratio = result["ratio"]
    for name, text in (
        ("report", f"{result['report_seconds']:.1f} s"),
        ("mlflow.search_runs alone", f"{result['peer_seconds']:.1f} s"),
        ("ratio", f"{ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"),
        ("report.html", f"{result['html_bytes'] / 1e6:.2f} MB"),
        ("plots and data files", f"{result['files_bytes'] / 1e6:.2f} MB"),
    ):
        table.add_row(name, text)
    console = Console()
    console.print(table)
    console.print(f"written to {RESULT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
