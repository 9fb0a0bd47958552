"""Synthetic MLflow stores in the layout that searches and ablations write: for the report's tests and benchmark.

Nothing in them was measured. Names say ``synthetic`` wherever a report of them could be taken for a result.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METRIC = "validation/mean_recall@1"
PATTERNS = ("none", "qk:0-0-1-1", "qk:0-0-0-0", "mlp:0-0-1-1", "block:0-0-0-0")
TEXT_PARAMETERS = dict(zip(PATTERNS, (40_335_976, 39_285_352, 38_760_040, 36_100_000, 32_457_754), strict=True))
Points = Sequence[tuple[int, float]]
START = 1_790_000_000_000  # milliseconds


class SyntheticStore:
    """An MLflow sqlite store in a folder. ``database``: an empty store to begin with, which saves its making."""

    def __init__(self, folder: Path, database: bytes | None = None) -> None:
        from mlflow import MlflowClient

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "mlflow.db"
        if database is not None and not path.exists():
            path.write_bytes(database)
        self.folder, self.uri = folder, f"sqlite:///{path}"
        self.client = MlflowClient(tracking_uri=self.uri)
        self.clock = START

    def experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        return str(self.client.create_experiment(name, artifact_location=(self.folder / "artifacts").as_uri()))

    def run(
        self,
        experiment: str,
        kind: str,
        *,
        name: str | None = None,
        parent: str | None = None,
        state: str = "completed",
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        curves: Mapping[str, Points] | None = None,
        seconds: float = 10.0,
    ) -> str:
        """One run; ``tags`` are given in full. Metrics are logged at step 0."""
        from mlflow.entities import Metric, Param

        every = {"siclip.kind": kind, "siclip.state": state, **(tags or {})}
        if parent:
            every["mlflow.parentRunId"] = parent
        made = self.client.create_run(experiment, tags=every, run_name=name or kind, start_time=self.clock)
        run = str(made.info.run_id)
        points = {key: [(0, value)] for key, value in (metrics or {}).items()} | dict(curves or {})
        logged = [
            Metric(key.replace("@", "_at_"), value, self.clock, step)
            for key, found in points.items()
            for step, value in found
        ]
        parameters = [Param(key, str(value)) for key, value in (params or {}).items()]
        for first in range(0, max(1, len(logged)), 1000):
            self.client.log_batch(run, metrics=logged[first : first + 1000], params=parameters[:100])
            parameters = parameters[100:]
        self.clock += int(1000 * seconds)
        if state != "running":
            self.client.set_terminated(run, "FAILED" if state == "failed" else "FINISHED", self.clock)
        return run

    def study(
        self, experiment: str, name: str, *, study_type: str = "search", tags: Mapping[str, str] | None = None,
        state: str = "completed", metric: str = METRIC, **params: Any,
    ) -> str:  # fmt: skip
        """The parent of a study's runs; ``tags`` without their prefix."""
        every = {"study": name, "study_type": study_type, "git_commit": "0123456789ab", **(tags or {})}
        settings = {"metric": metric, "mode": "max", **params}
        return self.run(
            experiment,
            "study",
            name=name,
            state=state,
            tags={f"siclip.{key}": value for key, value in every.items()},
            params={f"study.{key}": value for key, value in settings.items()},
            seconds=0.001,
        )


@dataclass(frozen=True)
class Ablation:
    """What `add_ablation` writes: setting → true mean; ``noise`` is the deviation between seeds of a setting, on top
    of one that all settings share at a seed."""

    means: Mapping[str, float]
    seeds: Sequence[int] = (0, 1, 2)
    noise: float = 0.004
    shared_noise: float = 0.01
    steps: int = 100
    points: int = 10
    confirm: str | None = None
    fresh_seeds: Sequence[int] = (100, 101, 102, 103, 104)
    question: str | None = None
    params: Mapping[str, Mapping[str, Any]] | None = None


def curve(last: float, steps: int, points: int, generator: random.Random) -> list[tuple[int, float]]:
    """A noisy rise that ends exactly at ``last``."""
    places = [max(1, round(steps * (index + 1) / points)) for index in range(points)]
    values = [last * (1 - math.exp(-4 * step / steps)) / (1 - math.exp(-4)) for step in places]
    noisy = [value * (1 + generator.gauss(0, 0.02)) for value in values[:-1]]
    return list(zip(places, [*noisy, last], strict=True))


def add_ablation(store: SyntheticStore, experiment: str, name: str, plan: Ablation, seed: int = 0) -> str:
    """An ablation; the first setting is the baseline. Each setting is a trial with a child run per seed."""
    generator = random.Random(seed)
    baseline = next(iter(plan.means))
    tags = {"baseline": baseline, **({"question": plan.question} if plan.question else {})}
    study = store.study(experiment, name, study_type="ablation", tags=tags)
    shared = {each: generator.gauss(0, plan.shared_noise) for each in (*plan.seeds, *plan.fresh_seeds)}

    def values(setting: str, each: int) -> dict[str, float]:
        value = plan.means[setting] + shared[each] + generator.gauss(0, plan.noise)
        return {METRIC: value, "test/mean_recall@1": value - 0.01, "test/beats_all_negatives": value + 0.2}

    for order, setting in enumerate(plan.means):
        params = {"model.name": "synthetic", "loss.pair_matching": float("PM" in setting), "loss.step": order}
        params |= dict((plan.params or {}).get(setting, {}))
        setting_tags = {"siclip.study": name, "siclip.setting": setting, "siclip.setting_order": str(order)}
        found = {each: values(setting, each) for each in plan.seeds}
        means = {key: sum(each[key] for each in found.values()) / len(found) for key in next(iter(found.values()))}
        trial = store.run(
            experiment, "trial", name=f"setting-{order}", parent=study,
            tags=setting_tags | {"siclip.trial": f"s{order}"},
            params=params, metrics=means | _costs(order), seconds=0.001,
        )  # fmt: skip
        for each, figures in found.items():
            _seed_run(store, experiment, "seed", trial, plan, setting_tags, params, each, figures, order, generator)
    for setting in [*([baseline, plan.confirm] if plan.confirm else [])]:
        setting_tags = {"siclip.study": name, "siclip.setting": setting}
        for each in plan.fresh_seeds:
            _seed_run(
                store, experiment, "confirm", study, plan, setting_tags, {}, each, values(setting, each), 0, generator
            )
    return study


def _seed_run(
    store: SyntheticStore, experiment: str, kind: str, parent: str, plan: Ablation, tags: Mapping[str, str],
    params: Mapping[str, Any], seed: int, figures: Mapping[str, float], order: int, generator: random.Random,
) -> None:  # fmt: skip
    curves = {METRIC: curve(figures[METRIC], plan.steps, plan.points, generator)}
    curves["train/loss"] = [(step, 3 * math.exp(-step / 60) + 0.1 * order) for step, _ in curves[METRIC]]
    for tower, pair in (("image", "0-1"), ("text", "0-1"), ("text", "1-2"), ("text", "2-3")):
        level = 0.01 + 0.01 * (pair == "1-2")
        curves[f"train/divergence/{tower}/{pair}"] = [(step, level * step / plan.steps) for step, _ in curves[METRIC]]
    if params.get("loss.pair_matching"):
        for key, level in (("pair_matching", 0.5), ("pair_positive_accuracy", 0.8), ("pair_negative_accuracy", 0.9)):
            curves[f"train/{key}"] = [(step, level) for step, _ in curves[METRIC]]
    rest = {key: value for key, value in figures.items() if key not in curves}
    store.run(
        experiment, kind, name=f"{kind}-{seed}", parent=parent, tags={**tags, "siclip.seed": str(seed)},
        params={**params, "training.seed": seed}, metrics=rest | _costs(order, plan.steps), curves=curves,
    )  # fmt: skip


def _costs(order: int, steps: int = 100, text: int = 39_285_352) -> dict[str, float]:
    image = 9_830_628 - 100_000 * order
    return {
        "cost/seconds": 12.0 + order, "cost/training_seconds": 9.0 + order, "cost/steps": float(steps),
        "cost/parameters_image": float(image), "cost/parameters_text": float(text), "cost/peak_memory_mib": 512.0,
        "cost/device_seconds_cuda": 9.0 + order, "cost/checkpoint_bytes": 8e6,
    }  # fmt: skip


def add_search(
    store: SyntheticStore, experiment: str, name: str, *, trials: int, points: int = 10, steps: int = 100,
    seed: int = 0,
    roles: bool = True,
) -> str:  # fmt: skip
    """A search with trials that ASHA pruned at two rungs, a failed one in forty, teacher, best and control.

    The learning rate decides nearly everything, feature distillation a little, the other two parameters nothing.
    """
    generator = random.Random(seed)
    searched = ["training.learning_rate", "loss.feature_distillation", "model.text_sharing", "data.synthetic_share"]
    rungs = [steps // 9, steps // 3]
    tags = {"searched": json.dumps(searched), "rungs": json.dumps(rungs)}
    study = store.study(experiment, name, tags=tags, space="synthetic", trials=trials, seed=seed)
    finished: list[tuple[float, str, dict[str, Any]]] = []
    for index in range(trials):
        values = _suggested(generator)
        value = _score(values, generator)
        state = "failed" if index % 40 == 39 else generator.choice(["completed", "pruned", "pruned"])
        budget = steps if state == "completed" else generator.choice(rungs)
        trial = f"t{index:04d}"
        run_tags = {"siclip.study": name, "siclip.trial": trial}
        if state != "completed":
            run_tags["siclip.reason"] = f"stopped by ASHA after step {budget}" if state == "pruned" else "loss is NaN"
            run_tags["siclip.rung"] = str(budget)
        text = TEXT_PARAMETERS[values["model.text_sharing"]]
        store.run(
            experiment, "trial", name=f"trial-{index:03d}", parent=study, state=state, tags=run_tags,
            params={**values, "training.seed": 0, "model.name": "synthetic", "model.image_sharing": "qk:0-0"},
            metrics=_costs(0, budget, text),
            curves={METRIC: curve(value * budget / steps, budget, points, generator)},
            seconds=1.0,
        )  # fmt: skip
        if state == "completed":
            finished.append((value, trial, values))
    if roles and finished:
        _roles(store, experiment, name, study, max(finished, key=lambda found: found[0]), steps, generator)
    return study


def _suggested(generator: random.Random) -> dict[str, Any]:
    return {
        "training.learning_rate": 10 ** generator.uniform(-4, -2),
        "loss.feature_distillation": 10 ** generator.uniform(2, 4),
        "model.text_sharing": generator.choice(PATTERNS),
        "data.synthetic_share": generator.choice([0.0, 0.25, 0.5, 0.75, 1.0]),
    }


def _score(values: Mapping[str, Any], generator: random.Random) -> float:
    rate = math.log10(values["training.learning_rate"]) + 3
    feature = math.log10(values["loss.feature_distillation"]) - 3
    return max(0.001, 0.5 - 0.25 * rate**2 - 0.04 * feature**2 + generator.gauss(0, 0.005))


def _roles(
    store: SyntheticStore, experiment: str, name: str, study: str, best: tuple[float, str, Mapping[str, Any]],
    steps: int, generator: random.Random,
) -> None:  # fmt: skip
    value, trial, values = best
    for kind, level in (("teacher", value + 0.1), ("best", value), ("control", value - 0.15)):
        tags = {"siclip.study": name, **({"siclip.best_trial": trial} if kind == "best" else {})}
        figures = {"test/mean_recall@1": level, "test/image_retrieval_recall@1": level + 0.01}
        curves = {METRIC: curve(level, steps, 10, generator), "train/loss": [(1, 3.0), (steps, 1.0)]}
        store.run(
            experiment, kind, parent=study, tags=tags, params={**values, "training.seed": 0}, curves=curves,
            metrics=figures | {"test/beats_all_negatives": level + 0.2} | _costs(0, steps),
        )  # fmt: skip
