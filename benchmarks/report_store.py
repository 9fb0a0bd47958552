"""Synthetic MLflow stores, as searches and ablations write them, for tests and benchmarks of the report.

Nothing in them was measured. Names contain ``synthetic`` wherever a report could be mistaken for a result.
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
PAIR_METRICS = {"pair_matching": 0.5, "pair_positive_accuracy": 0.8, "pair_negative_accuracy": 0.9}
Points = Sequence[tuple[int, float]]
ENDS = {"failed": "FAILED", "pruned": "KILLED"}
START = 1_790_000_000_000  # milliseconds since 1970: a fixed date, so that stores do not depend on the clock


class SyntheticStore:
    """An MLflow sqlite store in a folder.

    Args:
        folder: The folder; it is created if needed.
        database: Content of an empty store to start from, which saves MLflow's migrations.
    """

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
        """Id of the experiment with this name, which is created if needed."""
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
        """Write one run and return its id.

        Args:
            experiment: Experiment id.
            kind: The tag ``siclip.kind``.
            name: Run name (default: ``kind``).
            parent: Id of the parent run.
            state: The tag ``siclip.state``.
            tags: Further tags with their full names.
            params: Parameters.
            metrics: Metrics, logged at step 0.
            curves: Metric → (step, value).
            seconds: Duration, by which the store's clock advances.
        """
        from mlflow.entities import Metric, Param

        all_tags = {"siclip.kind": kind, "siclip.state": state, **(tags or {})}
        if parent:
            all_tags["mlflow.parentRunId"] = parent
        created = self.client.create_run(experiment, tags=all_tags, run_name=name or kind, start_time=self.clock)
        run = str(created.info.run_id)
        points = {key: [(0, value)] for key, value in (metrics or {}).items()} | dict(curves or {})
        logged = [
            Metric(key.replace("@", "_at_"), value, self.clock, step)
            for key, found in points.items()
            for step, value in found
        ]
        parameters = [Param(key, str(value)) for key, value in (params or {}).items()]
        # MLflow accepts at most 1000 metrics and 100 parameters in one batch.
        for first in range(0, max(1, len(logged)), 1000):
            self.client.log_batch(run, metrics=logged[first : first + 1000], params=parameters[:100])
            parameters = parameters[100:]
        self.clock += int(1000 * seconds)
        if state != "running":
            self.client.set_terminated(run, ENDS.get(state, "FINISHED"), self.clock)
        return run

    def study(
        self,
        experiment: str,
        name: str,
        *,
        study_type: str = "search",
        tags: Mapping[str, str] | None = None,
        state: str = "completed",
        metric: str = METRIC,
        **params: Any,
    ) -> str:
        """Write the parent of a study's runs and return its id.

        Args:
            experiment: Experiment id.
            name: Name of the study.
            study_type: ``search`` or ``ablation``.
            tags: Further tags without the prefix ``siclip.``.
            state: The tag ``siclip.state``.
            metric: The study's metric.
            **params: Further parameters without the prefix ``study.``.
        """
        all_tags = {"study": name, "study_type": study_type, "git_commit": "0123456789ab", **(tags or {})}
        settings = {"metric": metric, "mode": "max", **params}
        return self.run(
            experiment,
            "study",
            name=name,
            state=state,
            tags={f"siclip.{key}": value for key, value in all_tags.items()},
            params={f"study.{key}": value for key, value in settings.items()},
            seconds=0.001,
        )


@dataclass(frozen=True)
class Ablation:
    """What `add_ablation` writes.

    Attributes:
        means: Setting → true mean of the metric; the first setting is the baseline.
        seeds: Seeds of each setting.
        noise: Standard deviation between the seeds of a setting.
        shared_noise: Standard deviation of a shift that all settings share at a seed.
        steps: Optimizer steps of a run.
        points: Evaluations of a run.
        confirm: A setting that is repeated, together with the baseline, with fresh seeds.
        fresh_seeds: Those seeds.
        question: The tag ``siclip.question``.
        params: Setting → its own parameters.
    """

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
    evaluated = [max(1, round(steps * (index + 1) / points)) for index in range(points)]
    values = [last * (1 - math.exp(-4 * step / steps)) / (1 - math.exp(-4)) for step in evaluated]
    noisy = [value * (1 + generator.gauss(0, 0.02)) for value in values[:-1]]
    return list(zip(evaluated, [*noisy, last], strict=True))


def add_ablation(store: SyntheticStore, experiment: str, name: str, plan: Ablation, seed: int = 0) -> str:
    """Write an ablation: each setting is a trial with one child run per seed. Returns the study's run id."""
    return _AblationWriter(store, experiment, name, plan, random.Random(seed)).write()


@dataclass(frozen=True)
class _Setting:
    tags: Mapping[str, str]
    params: Mapping[str, Any]
    order: int


@dataclass(frozen=True)
class _AblationWriter:
    store: SyntheticStore
    experiment: str
    name: str
    plan: Ablation
    generator: random.Random

    def write(self) -> str:
        plan = self.plan
        baseline = next(iter(plan.means))
        tags = {"baseline": baseline, **({"question": plan.question} if plan.question else {})}
        study = self.store.study(self.experiment, self.name, study_type="ablation", tags=tags)
        seeds = (*plan.seeds, *plan.fresh_seeds)
        shifts = {seed: self.generator.gauss(0, plan.shared_noise) for seed in seeds}
        for order, setting in enumerate(plan.means):
            self._trial(study, setting, order, shifts)
        for setting in [baseline, plan.confirm] if plan.confirm else []:
            content = _Setting({"siclip.study": self.name, "siclip.setting": setting}, {}, 0)
            for seed in plan.fresh_seeds:
                self._seed_run("confirm", study, content, seed, self._values(setting, shifts[seed]))
        return study

    def _values(self, setting: str, shift: float) -> dict[str, float]:
        value = self.plan.means[setting] + shift + self.generator.gauss(0, self.plan.noise)
        return {METRIC: value, "test/mean_recall@1": value - 0.01, "test/beats_all_negatives": value + 0.2}

    def _trial(self, study: str, setting: str, order: int, shifts: Mapping[int, float]) -> None:
        params = {"model.name": "synthetic", "loss.pair_matching": float("PM" in setting), "loss.step": order}
        params |= dict((self.plan.params or {}).get(setting, {}))
        tags = {"siclip.study": self.name, "siclip.setting": setting, "siclip.setting_order": str(order)}
        values = {seed: self._values(setting, shifts[seed]) for seed in self.plan.seeds}
        first = next(iter(values.values()))
        means = {key: sum(each[key] for each in values.values()) / len(values) for key in first}
        trial = self.store.run(
            self.experiment,
            "trial",
            name=f"setting-{order}",
            parent=study,
            tags=tags | {"siclip.trial": f"s{order}"},
            params=params,
            metrics=means | _costs(order),
            seconds=0.001,
        )
        for seed, metrics in values.items():
            self._seed_run("seed", trial, _Setting(tags, params, order), seed, metrics)

    def _seed_run(self, kind: str, parent: str, setting: _Setting, seed: int, metrics: Mapping[str, float]) -> None:
        curves = self._curves(setting, metrics[METRIC])
        final = {key: value for key, value in metrics.items() if key not in curves}
        self.store.run(
            self.experiment,
            kind,
            name=f"{kind}-{seed}",
            parent=parent,
            tags={**setting.tags, "siclip.seed": str(seed)},
            params={**setting.params, "training.seed": seed},
            metrics=final | _costs(setting.order, self.plan.steps),
            curves=curves,
        )

    def _curves(self, setting: _Setting, last: float) -> dict[str, Points]:
        rise = curve(last, self.plan.steps, self.plan.points, self.generator)
        steps = [step for step, _ in rise]
        curves: dict[str, Points] = {METRIC: rise}
        curves["train/loss"] = [(step, 3 * math.exp(-step / 60) + 0.1 * setting.order) for step in steps]
        for tower, pair in (("image", "0-1"), ("text", "0-1"), ("text", "1-2"), ("text", "2-3")):
            level = 0.01 + 0.01 * (pair == "1-2")
            curves[f"train/divergence/{tower}/{pair}"] = [(step, level * step / self.plan.steps) for step in steps]
        if setting.params.get("loss.pair_matching"):
            for key, level in PAIR_METRICS.items():
                curves[f"train/{key}"] = [(step, level) for step in steps]
        return curves


def _costs(order: int, steps: int = 100, text: int = 39_285_352) -> dict[str, float]:
    image = 9_830_628 - 100_000 * order
    return {
        "cost/seconds": 12.0 + order,
        "cost/training_seconds": 9.0 + order,
        "cost/steps": float(steps),
        "cost/parameters_image": float(image),
        "cost/parameters_text": float(text),
        "cost/peak_memory_mib": 512.0,
        "cost/device_seconds_cuda": 9.0 + order,
        "cost/checkpoint_bytes": 8e6,
    }


def add_search(
    store: SyntheticStore,
    experiment: str,
    name: str,
    *,
    trials: int,
    points: int = 10,
    steps: int = 100,
    seed: int = 0,
) -> str:
    """Write a search with trials that ASHA pruned at two rungs, one failed trial in 40, teacher, best and control.

    The learning rate decides nearly everything, feature distillation a little, the other two parameters nothing.

    Args:
        store: The store.
        experiment: Experiment id.
        name: Name of the study.
        trials: Number of trials.
        points: Evaluations of a trial.
        steps: Optimizer steps of a completed trial.
        seed: Seed of all values.
    """
    generator = random.Random(seed)
    searched = ["training.learning_rate", "loss.feature_distillation", "model.text_sharing", "data.synthetic_share"]
    rungs = [steps // 9, steps // 3]
    tags = {"searched": json.dumps(searched), "rungs": json.dumps(rungs)}
    study = store.study(experiment, name, tags=tags, space="synthetic", trials=trials, seed=seed)
    completed: list[tuple[float, str, dict[str, Any]]] = []
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
        store.run(
            experiment,
            "trial",
            name=f"trial-{index:03d}",
            parent=study,
            state=state,
            tags=run_tags,
            params={**values, "training.seed": 0, "model.name": "synthetic", "model.image_sharing": "qk:0-0"},
            metrics=_costs(0, budget, TEXT_PARAMETERS[values["model.text_sharing"]]),
            curves={METRIC: curve(value * budget / steps, budget, points, generator)},
            seconds=1.0,
        )
        if state == "completed":
            completed.append((value, trial, values))
    if completed:
        value, trial, values = max(completed, key=lambda each: each[0])
        for kind, level in (("teacher", value + 0.1), ("best", value), ("control", value - 0.15)):
            tags = {"siclip.study": name, **({"siclip.best_trial": trial} if kind == "best" else {})}
            metrics = {"test/mean_recall@1": level, "test/image_retrieval_recall@1": level + 0.01}
            store.run(
                experiment,
                kind,
                parent=study,
                tags=tags,
                params={**values, "training.seed": 0},
                metrics=metrics | {"test/beats_all_negatives": level + 0.2} | _costs(0, steps),
                curves={METRIC: curve(level, steps, 10, generator), "train/loss": [(1, 3.0), (steps, 1.0)]},
            )
    return study


@dataclass(frozen=True)
class Scored:
    """What `add_scored_search` writes.

    Attributes:
        scores: Trial → the study's metric by seed; the first trial is the starting recipe.
        roles: Kind of run (``best``, ``control``, ``teacher``) → its mean recall on the test split.
        fresh: Trial → its mean recall on the test split by fresh seed; of the starting recipe as ``baseline``.
        images: Split → number of images, for the data summary; empty: there is none.
        items: Content of ``items.json``; None: there is none.
        command: The command that began the study.
    """

    scores: Mapping[str, Sequence[float]]
    roles: Mapping[str, float]
    fresh: Mapping[str, Sequence[float]]
    images: Mapping[str, int]
    items: Mapping[str, Any] | None = None
    command: str = "siclip-platform tune --recipe digits-student --out runs/digits --trials 6"


def add_scored_search(store: SyntheticStore, name: str, plan: Scored) -> str:
    """Write a search with given scores, in which pair matching is off, and return its run id."""
    searched = ["training.learning_rate", "loss.pair_matching", "loss.pair_head"]
    base = {"training.learning_rate": 1e-3, "loss.pair_matching": 0, "loss.pair_head": "mlp"}
    experiment = store.experiment(name)
    metric, mode = {"study.metric": METRIC}, {"study.mode": "max"}
    tags = {"siclip.study": name, "siclip.study_type": "search", "siclip.searched": json.dumps(searched)}
    tags |= {"siclip.command": plan.command, "siclip.leading_recipe": f"runs/digits/{name}/leading.yaml"}
    study = store.run(experiment, "study", name=name, tags=tags, params=metric | mode | base)
    several = any(len(values) > 1 for values in plan.scores.values())
    best = max(plan.scores, key=lambda trial: sum(plan.scores[trial]) / len(plan.scores[trial]))
    params = {trial: base | {"training.learning_rate": 1e-3 * (1 + i)} for i, trial in enumerate(plan.scores)}
    for trial, values in plan.scores.items():
        mean = sum(values) / len(values)
        own = {"siclip.study": name, "siclip.trial": trial}
        more: dict[str, Any] = {"tags": own, "params": params[trial]}
        parent = store.run(experiment, "trial", name=trial, parent=study, metrics={METRIC: mean}, **more)
        for seed, value in enumerate(values) if several else ():
            more["tags"] = own | {"siclip.seed": str(seed)}
            store.run(experiment, "seed", parent=parent, metrics={METRIC: value}, **more)
    off = {"loss.feature_distillation": 0.0, "loss.contrastive_relational": 0.0, "loss.interactive_contrastive": 0.0}
    for kind, value in plan.roles.items():
        own = {"siclip.study": name, "siclip.best_trial": best}
        values_of = params[best] | (off if kind == "control" else {})
        test = {"test/mean_recall@1": value, "cost/steps": 100.0}
        store.run(experiment, kind, parent=study, tags=own, params=values_of, metrics=test)
    for setting, values in plan.fresh.items():
        for seed, value in enumerate(values, 100):
            own = {"siclip.study": name, "siclip.best_trial": best, "siclip.seed": str(seed)}
            own |= {"siclip.setting": setting} if setting == "baseline" else {}
            store.run(experiment, "confirm", parent=study, tags=own, metrics={"test/mean_recall@1": value})
    if plan.images:
        splits = {split: {"rows": rows, "shards": 1, "bytes": 1} for split, rows in plan.images.items()}
        summary = {"name": "synthetic", "version": "1", "hash": "x", "splits": splits}
        store.client.log_text(study, json.dumps(summary), "data_summary.json")
    if plan.items is not None:
        store.client.log_text(study, json.dumps(plan.items), "items.json")
    return study


def _suggested(generator: random.Random) -> dict[str, Any]:
    return {
        "training.learning_rate": 10 ** generator.uniform(-4, -2),
        "loss.feature_distillation": 10 ** generator.uniform(2, 4),
        "model.text_sharing": generator.choice(PATTERNS),
        "data.synthetic_share": generator.choice([0.0, 0.25, 0.5, 0.75, 1.0]),
    }


def _score(values: Mapping[str, Any], generator: random.Random) -> float:
    """The metric of a trial: a parabola with its top at a learning rate of 1e-3 and a distillation weight of 1e3."""
    rate = math.log10(values["training.learning_rate"]) + 3
    feature = math.log10(values["loss.feature_distillation"]) - 3
    return max(0.001, 0.5 - 0.25 * rate**2 - 0.04 * feature**2 + generator.gauss(0, 0.005))
