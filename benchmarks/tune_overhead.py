"""The overhead of a study: the ratio of its wall time to the sum of its trials' pure training time.

    python benchmarks/tune_overhead.py [--trials 12] [--steps 96] [--train-trials 4]

One trial at a time on all cores, random settings of the space ``wikd``, none stopped early, on the digit scenes:
(a) in reused processes, (b) each under Ray Train, (c) as (a) with the frozen trunk's outputs read from a cache.
Pure training is the time that the loop counts: steps without evaluations, model building, data checks, reports and
checkpoints. (a) and (c) alternate, a third of their trials at a time; building the cache is measured separately.
There is no peer. Writes benchmarks/results/tune_overhead.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from siclip_platform.cluster.connect import Needs, ray_cluster

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "tune_overhead.json"
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--trials", type=int, default=12, help="trials in reused processes, and as many with the cache"
    )
    parser.add_argument("--train-trials", type=int, default=4, help="trials under Ray Train")
    parser.add_argument("--steps", type=int, default=96, help="steps per trial; 96 are about 30 s on two cores")
    parser.add_argument("--data", type=Path, help="digit scenes (default: built for this benchmark)")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ray_cluster(Needs(concurrent=1, worker_cpus=1.0)):
        bench = Bench(Path(folder), options)
        studies = bench.run()
    result = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("ray", "torch", "mlflow", "optuna")},
        "commit": bench.commit,
        "steps": options.steps,
        "cache_seconds": bench.cache_seconds,
        "studies": studies,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


class Bench:
    """The dataset, the teacher, the tracker, and the studies on them."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        from siclip.checkpoints.formats import save_checkpoint
        from siclip.models import create_model
        from siclip_platform.datasets.digits.digits import DigitScenesConfig, build_digit_scenes
        from siclip_platform.recipes.digits import digits_student
        from siclip_platform.tracking import Tracker, default_tracking_uri, git_commit

        self.folder, self.options, self.commit = folder, options, git_commit()
        data = options.data.resolve() if options.data else folder / "data"
        if not options.data:
            build_digit_scenes(data, DigitScenesConfig())
        teacher = folder / "teacher.pt"
        # Untrained, because the work is the same.
        save_checkpoint(teacher, create_model("mobileclip-nano"))
        threads = {"training.threads": os.cpu_count() or 1}
        self.base = digits_student(data, teacher, steps=options.steps).updated(threads)
        self.cache_seconds = 0.0
        self.tracker = Tracker(default_tracking_uri(folder), artifacts=folder / "artifacts")

    def run(self) -> dict[str, Any]:
        cached = self._build_cache()
        rounds: dict[str, list[dict[str, Any]]] = {"process": [], "cached": [], "train": []}
        for number in range(ROUNDS):
            trials = self.options.trials // ROUNDS
            rounds["process"].append(self._study(f"process-{number}", self.base, trials, number))
            rounds["cached"].append(self._study(f"cached-{number}", cached, trials, number))
        if self.options.train_trials:
            rounds["train"].append(self._study("train", self.base, self.options.train_trials, 0, "train"))
        self.tracker.close()
        return {name: whole(studies) for name, studies in rounds.items() if studies}

    def _build_cache(self) -> Any:
        from siclip_platform.training.build import prepare

        recipe = self.base.updated({"data.trunk_cache": str(self.folder / "cache")})
        started = time.perf_counter()
        prepare(recipe)
        self.cache_seconds = time.perf_counter() - started
        return recipe

    def _study(self, name: str, base: Any, trials: int, seed: int, backend: Any = "process") -> dict[str, Any]:
        """Wall seconds of a study and each trial's pure training seconds."""
        from siclip_platform.search.ledger.recorder import Recorder
        from siclip_platform.search.policy.defaults import searcher_of
        from siclip_platform.search.study import StudyPlan
        from siclip_platform.search.tune_run import run_study
        from siclip_platform.spaces import load_space

        space = load_space("wikd")
        folder = self.folder / name
        searcher = searcher_of(space, base, name=name, trials=trials, seed=seed, folder=folder)
        search = {"metric": space.metric, "trials": trials, "searcher": searcher}
        execution = {"concurrent": 1, "backend": backend, "resources": {"CPU": 0.01 if backend == "train" else 1.0}}
        plan = StudyPlan(name=name, folder=folder, base=base, **search, **execution)
        run = self.tracker.start(name, "study", params={}, tags={"study": name}, key=name)
        started = time.perf_counter()
        result = run_study(plan, Recorder(self.tracker, run, {"study": name}), rerun=True)
        wall = time.perf_counter() - started
        assert self.tracker.flush() == 0
        states = [trial.state for trial in result.trials]
        assert states == ["completed"] * trials, [trial.reason for trial in result.trials]
        return {"wall_seconds": wall, "training_seconds": [self._training(name, t.trial_id) for t in result.trials]}

    def _training(self, study: str, trial: str) -> float:
        run = self.tracker.client.get_run(self.tracker.run_id(f"{study}/{trial}"))
        return float(run.data.metrics["cost/training_seconds"])


def whole(studies: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of all rounds of one variant; ``ratios`` are of each round."""
    wall = sum(study["wall_seconds"] for study in studies)
    training = [seconds for study in studies for seconds in study["training_seconds"]]
    return {
        "trials": len(training),
        "wall_seconds": wall,
        "training_seconds_a_trial": statistics.median(training),
        "ratio": wall / sum(training),
        "ratios": [study["wall_seconds"] / sum(study["training_seconds"]) for study in studies],
        "trials_an_hour": 3600 * len(training) / wall,
    }


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="A study's wall time relative to its trials' pure training time, one trial at a time")
    for title in ("", "trials", "s per trial", "ratio", "of each round", "trials per hour"):
        table.add_column(title, justify="left" if not title else "right")
    titles = {"process": "in reused processes", "cached": "the same, trunk cached", "train": "under Ray Train"}
    for name, study in result["studies"].items():
        rounds = " ".join(f"{ratio:.2f}" for ratio in study["ratios"])
        seconds, per_hour = f"{study['training_seconds_a_trial']:.1f}", f"{study['trials_an_hour']:.0f}"
        table.add_row(titles[name], str(study["trials"]), seconds, f"{study['ratio']:.2f}", rounds, per_hour)
    Console().print(table)
    Console().print(f"The cache took {result['cache_seconds']:.1f} s to build.")


if __name__ == "__main__":
    main()
