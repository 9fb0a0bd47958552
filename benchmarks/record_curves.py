"""Learning curves of a random study, recorded for `siclip-platform simulate`.

    python benchmarks/record_curves.py --data FOLDER --out runs/curves --settings 100 --write FILE.json

Draws random settings of a space, trains each in this process starting from the student of the digit scenes, and
records the study's metric and the seconds at every evaluation. A finished setting is a line in ``curves.jsonl`` under
``--out``; a repeated command trains only the missing ones. The outputs of the frozen trunk are cached in ``--out``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna

from siclip.errors import UserError
from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.recipes.digits import digits_student, digits_teacher
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.spaces.definition import SearchSpace
from siclip_platform.spaces.load import load_space
from siclip_platform.storage.atomic import replacing

LINES = "curves.jsonl"
TEACHER = "teacher.pt"
COSTS = ("cost/parameters_trainable", "cost/parameters_image", "cost/parameters_text")


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    try:
        space = load_space(options.space)
        dataset = open_dataset(options.data)
        options.out.mkdir(parents=True, exist_ok=True)
        base = make_base(options)
        record(space, base, options)
        head = {
            "name": options.write.stem,
            "space": options.space,
            "metric": space.metric,
            "steps": options.steps,
            "made_by": shlex.join(["python", "benchmarks/record_curves.py", *arguments]),
            "dataset": f"{dataset.manifest.name} {dataset.hash}",
            "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": 1},
            "versions": {"python": platform.python_version()} | {name: version(name) for name in ("torch", "optuna")},
        }
        write(options.write, head, finished(options.out))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="digit scenes")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="teacher, features, finished curves"
    )
    parser.add_argument("--write", type=Path, required=True, metavar="FILE.json", help="file for all curves")
    parser.add_argument("--space", default="wikd", help="(%(default)s)")
    parser.add_argument("--settings", type=int, default=100, help="(%(default)s)")
    parser.add_argument(
        "--steps", type=int, default=digits_student(Path()).training.steps, help="steps per setting (%(default)s)"
    )
    parser.add_argument("--every", type=int, default=8, help="steps between evaluations (%(default)s)")
    parser.add_argument(
        "--teacher-steps", type=int, default=digits_teacher(Path()).training.steps, help="(%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws and of the trainings (%(default)s)")
    return parser.parse_args(arguments)


def make_base(options: argparse.Namespace) -> Recipe:
    """The student's recipe that settings change; its teacher is trained if it is missing."""
    from siclip_platform.training.in_process import run_recipe

    teacher = options.out / TEACHER
    if not teacher.is_file():
        recipe = digits_teacher(options.data.resolve(), steps=options.teacher_steps, seed=options.seed)
        run_recipe(recipe.updated({"training.threads": 1}), _KeepLast(teacher))
    student = digits_student(options.data.resolve(), teacher.resolve(), steps=options.steps, seed=options.seed)
    return student.updated(
        {
            "training.evaluate_every": options.every,
            "training.threads": 1,
            "data.trunk_cache": str((options.out / "trunk").resolve()),
        }
    )


def record(space: SearchSpace, base: Recipe, options: argparse.Namespace) -> None:
    """Train the settings that the folder lacks."""
    from siclip_platform.training.in_process import run_recipe

    recorded = {row["number"] for row in finished(options.out)}
    for number, values in enumerate(draw(space, options.settings, options.seed)):
        if number in recorded:
            continue
        curve = _Curve(space.metric)
        reason = ""
        try:
            run_recipe(base.updated(values), curve)
        except (UserError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {error}"
        row = {"number": number, "values": values, "seconds": curve.seconds, "scores": curve.scores}
        row |= {"costs": curve.costs} | ({"reason": reason} if reason else {})
        with (options.out / LINES).open("a") as file:
            file.write(json.dumps(row) + "\n")
        last = next(reversed(curve.scores.values()), None)
        print(f"{number + 1}/{options.settings}: {last} after {sum(curve.seconds):.1f} s {reason}", flush=True)


def draw(space: SearchSpace, number: int, seed: int) -> list[dict[str, Any]]:
    """Random settings, the same for the same seed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [space.suggest(study.ask()) for _ in range(number)]


def finished(folder: Path) -> list[dict[str, Any]]:
    """The recorded rows; an incomplete last line, left by a killed process, is removed."""
    file = folder / LINES
    if not file.is_file():
        return []
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(file, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def write(path: Path, head: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one JSON file with one curve per line."""
    curves = ",\n".join(json.dumps({key: row[key] for key in row if key != "number"}) for row in rows)
    text = json.dumps(head, indent=1)
    path.write_text(f'{text[:-2]},\n "curves": [\n{curves}\n]}}\n')


class _Curve:
    """A `Reporter` that keeps one metric by step and the seconds between evaluations; the first include set-up."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.scores: dict[str, float | None] = {}
        self.seconds: list[float] = []
        self.costs: dict[str, float] = {}
        self._since = time.perf_counter()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.costs |= {key: metrics[key] for key in COSTS if key in metrics}

    def milestone(self, step: int, metrics: Mapping[str, float], save: Any) -> None:
        if self.metric not in metrics:
            return
        now = time.perf_counter()
        score = metrics[self.metric]
        self.scores[str(step)] = round(score, 5) if math.isfinite(score) else None
        self.seconds.append(round(now - self._since, 3))
        self._since = now


class _KeepLast:
    """A `Reporter` that writes the last checkpoint to one file."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        print(f"teacher, step {step}: {dict(metrics).get('train/loss')}", flush=True)

    def milestone(self, step: int, metrics: Mapping[str, float], save: Any) -> None:
        if save is not None:
            with replacing(self.checkpoint) as temporary:
                save(temporary)


if __name__ == "__main__":
    sys.exit(main())
