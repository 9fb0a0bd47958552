"""Images per second, time to the first batch and peak memory of the training stream compared with its peers.

    python benchmarks/streaming.py [--images 30000] [--repeats 3] [--batch 256] [--augment] [--only NAME ...]

The same photograph-like JPEGs (256 px, 4:2:0, quality 90, about 16 KB) with two captions each are written as our
Parquet shards, as webdataset tars and as LitData chunks. Every contender delivers batches of 256-px uint8 images and
token ids in shuffled order to a loop that only counts them. It has two workers: threads for ours, tasks for ours
through Ray Data, processes for the peers. All decode with the same function. The contenders alternate, each in a
separate process; a ratio compares runs of the same round.

Peak memory is that of all processes of a contender together, shared pages counted once (PSS), minus their memory
before reading. It includes Ray's object store, but not its services.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from streaming_readers import CONTENDERS, PEERS, SIZE, WORKERS, build, jpeg, sample

RESULT = Path(__file__).resolve().parent / "results" / "streaming.json"


class Memory:
    """Samples the proportional set size of this process and its descendants. Linux only."""

    def __init__(self) -> None:
        self.start = self.peak = resident_bytes()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.done.wait(0.5):
            self.peak = max(self.peak, resident_bytes())

    def stop(self) -> float:
        """The peak in MiB above the start."""
        self.done.set()
        self.thread.join()
        return (max(self.peak, resident_bytes()) - self.start) / 2**20


# Ray's own processes, by a word in their command lines.
SERVICES = ("gcs_server", "raylet", "dashboard", "agent", "log_monitor")


def resident_bytes() -> int:
    """Bytes of this process and its descendants, shared pages counted once."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    family, grown = {os.getpid()}, True
    while grown:
        more = {process for process, parent in parents.items() if parent in family} - family
        family, grown = family | more, bool(more)
    return sum(map(_proportional, family))


def _proportional(process: int) -> int:
    folder = Path("/proc") / str(process)
    try:
        if any(service in (folder / "cmdline").read_text() for service in SERVICES):
            return 0
        line = next(row for row in (folder / "smaps_rollup").read_text().splitlines() if row.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0
    return int(line.split()[1]) * 1024


def measure(name: str, root: Path, batch: int, augment: bool, memory: bool) -> dict[str, float]:
    """One pass over the images. The start of Ray and of the libraries is not counted for any contender."""
    sample(jpeg(0), ["a"], "warm", augment)
    if "Ray" in name:
        from siclip_platform.cluster.connect import Needs, ray_cluster

        with ray_cluster(Needs(concurrent=1, worker_cpus=1.0)):
            return _pass(name, root, batch, augment, memory)
    return _pass(name, root, batch, augment, memory)


def _pass(name: str, root: Path, batch: int, augment: bool, memory: bool) -> dict[str, float]:
    watch = Memory() if memory else None
    started = time.perf_counter()
    batches = CONTENDERS[name](root, batch, augment)
    first, count = 0.0, 0
    for got in batches:
        images = got.images if hasattr(got, "images") else got["images"]
        assert tuple(images.shape) == (batch, SIZE, SIZE, 3), images.shape
        if not count:
            first = time.perf_counter() - started
        count += len(images)
    seconds = time.perf_counter() - started
    figures = {"images": float(count), "images_per_second": count / seconds, "first_batch_seconds": first}
    figures["steady_images_per_second"] = (count - batch) / (seconds - first)
    return figures | ({"peak_memory_mib": watch.stop()} if watch else {})


def in_own_process(name: str, options: argparse.Namespace, root: Path, memory: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", name, "--data", str(root), "--batch", str(options.batch)]
    command += ["--augment"] * options.augment + ["--memory"] * memory
    return child_figures(command)


def child_figures(command: list[str]) -> dict[str, float]:
    """Run a command and return the JSON of its last line."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def summary(rounds: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians, and ratios of images per second to the best peer of the same round in ascending order."""
    figures: dict[str, Any] = {}
    peers = [name for name in rounds if name in PEERS]
    best = (
        [max(rounds[p][i]["images_per_second"] for p in peers) for i in range(len(rounds[peers[0]]))] if peers else []
    )
    for name, runs in rounds.items():
        keys = {key for run in runs for key in run}
        own = {key: statistics.median([run[key] for run in runs if key in run]) for key in sorted(keys)}
        if best:
            ratios = sorted(run["images_per_second"] / top for run, top in zip(runs, best, strict=True))
            own["ratio_to_best_peer"] = {"median": statistics.median(ratios), "all": ratios}
        figures[name] = own
    return figures


def show(figures: dict[str, Any]) -> None:
    print(f"{'':20}{'images/s':>10}{'steady':>10}{'first batch s':>15}{'peak MiB':>10}  ratio to the best peer")
    for name, own in figures.items():
        ratio = own.get("ratio_to_best_peer")
        shown = f"{ratio['median']:.2f} ({ratio['all'][0]:.2f}-{ratio['all'][-1]:.2f})" if ratio else ""
        print(
            f"{name:20}{own['images_per_second']:10.0f}{own['steady_images_per_second']:10.0f}"
            f"{own['first_batch_seconds']:15.2f}{own['peak_memory_mib']:10.0f}  {shown}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--augment", action="store_true", help="random crop and colour jitter for all")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument(
        "--data", type=Path, help="folder in which the images are written and reused (default: a temporary one)"
    )
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.data, options.batch, options.augment, options.memory)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = options.data or Path(temporary)
        build(root, options.images)
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in options.only}
        for repeat in range(options.repeats):
            # Each round starts with another contender, so that none always follows the same one.
            first = repeat % len(options.only)
            for name in options.only[first:] + options.only[:first]:
                rounds[name].append(in_own_process(name, options, root, memory=False))
                print(name, rounds[name][-1], flush=True)
        # In a separate pass, because sampling memory takes time.
        for name in options.only:
            rounds[name][-1]["peak_memory_mib"] = in_own_process(name, options, root, memory=True)["peak_memory_mib"]
    figures = summary(rounds)
    show(figures)
    record = record_of(options, ("images", "repeats", "batch", "augment"), figures, rounds)
    options.result.parent.mkdir(parents=True, exist_ok=True)
    options.result.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {options.result}")


def record_of(options: argparse.Namespace, named: tuple[str, ...], figures: Any, rounds: Any) -> dict[str, Any]:
    """What a result file has: machine, versions, commit, the named options, figures and every run."""
    from siclip_platform.tracking import git_commit

    packages = ("ray", "torch", "pyarrow", "webdataset", "litdata", "simplejpeg", "pillow")
    return {
        "machine": {"processor": platform.machine(), "cpus": os.cpu_count(), "system": platform.platform()},
        "versions": {name: version(name) for name in packages},
        "commit": git_commit(),
        "options": {name: getattr(options, name) for name in named},
        "workers": WORKERS,
        "figures": figures,
        "runs": rounds,
    }


if __name__ == "__main__":
    main()
