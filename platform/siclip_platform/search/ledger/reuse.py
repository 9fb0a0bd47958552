"""Finished trainings that a trial need not repeat: those of its study, and the completed ones in the MLflow store."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from siclip_platform.metrics import metric_name, stored_key
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.search.ledger.journal import Entry
from siclip_platform.search.study import StudyPlan
from siclip_platform.tracking import TrackedRun, Tracker
from siclip_platform.training.identity import identity

log = logging.getLogger(__name__)
PAGE = 1000


@dataclass(frozen=True)
class Known:
    """A finished training: its MLflow run, and its milestones as a trial replays them."""

    run_id: str
    milestones: list[dict[str, Any]]


class Reuse:
    """Finds finished trainings: by recipe in this study, by identity in the MLflow store.

    With ``rerun`` the store is not searched. If the store does not answer, the training is repeated.
    """

    def __init__(self, plan: StudyPlan, tracker: Tracker, study: TrackedRun, rerun: bool = False) -> None:
        self.plan = plan
        self.tracker = tracker
        self.study = study
        self.rerun = rerun
        self._to_index: list[Entry] = []
        self._entries: dict[str, Entry] = {}
        self._runs: dict[str, str] | None = None
        self._milestones: dict[str, list[dict[str, Any]]] = {}

    def add(self, entries: Iterable[Entry]) -> None:
        """Make trials of this study available to later ones with the same setting, if they are completed."""
        self._to_index.extend(entry for entry in entries if entry.state == "completed")

    def find(self, values: Mapping[str, Any], seed: int) -> Known | None:
        """The finished training of a setting with a seed, if there is one."""
        return self._in_study(values, seed) or self._in_store(self.plan.recipe(values, seed))

    def _in_study(self, values: Mapping[str, Any], seed: int) -> Known | None:
        # Indexed when first needed: a population never asks.
        while self._to_index:
            entry = self._to_index.pop()
            key = self._key(entry.values)
            first = self._entries.get(key, entry)
            self._entries[key] = min(entry, first, key=lambda each: each.number)
        found = self._entries.get(self._key(values))
        if found is None:
            return None
        below = f"/seed-{seed}" if self.plan.seeds > 1 else ""
        milestones = [
            {"step": step, "metrics": seeds[str(seed)]} for step, _, seeds in found.results if str(seed) in seeds
        ]
        return Known(self.tracker.spool.run_id(f"{self.study.key}/{found.name}{below}") or "", milestones)

    def _key(self, values: Mapping[str, Any]) -> str:
        """Equal for two settings that differ at most in the seed, which a seed run replaces."""
        return self.plan.recipe(values, self.plan.seed_numbers[0]).model_dump_json()

    def _in_store(self, recipe: Recipe) -> Known | None:
        if self.rerun:
            return None
        if self._runs is None:
            self._runs = self._completed()
        run_id = self._runs.get(identity(recipe))
        if run_id is None:
            return None
        try:
            milestones = self._read(run_id)
        except Exception as error:  # as in `_completed`
            log.warning("run %s of the store cannot be read, so it is not reused: %s", run_id, error)
            return None
        whole = bool(milestones) and milestones[-1]["step"] == recipe.training.steps
        return Known(run_id, milestones) if whole else None

    def _completed(self) -> dict[str, str]:
        """Identity → run id; of several runs the oldest, which is the one that was trained."""
        query: dict[str, Any] = {
            "filter_string": "tags.`siclip.state` = 'completed' and tags.`siclip.identity` LIKE '_%'",
            "max_results": PAGE,
            "order_by": ["attributes.start_time ASC"],
        }
        found: dict[str, str] = {}
        token: str | None = None
        try:
            experiments = [self.tracker.experiment_id]
            while True:
                page = self.tracker.client.search_runs(experiments, **query, page_token=token)
                for run in page:
                    # A run that reused another one has its milestones but not what was logged between them.
                    if "siclip.reused_from" not in run.data.tags:
                        found.setdefault(run.data.tags["siclip.identity"], run.info.run_id)
                token = page.token
                if not token:
                    return found
        except Exception as error:  # stores raise many types: requests', SQLAlchemy's, MLflow's
            log.warning("the store cannot be searched for finished trainings, so none is reused: %s", error)
            return {}

    def _read(self, run_id: str) -> list[dict[str, Any]]:
        if run_id not in self._milestones:
            client = self.tracker.client
            steps: dict[int, dict[str, float]] = {}
            run = client.get_run(run_id)
            for key in run.data.metrics:
                if key.startswith(("validation/", "eval/", "cost/")):
                    for point in client.get_metric_history(run_id, key):
                        steps.setdefault(point.step, {})[metric_name(key)] = point.value
            metric = metric_name(stored_key(self.plan.metric))
            self._milestones[run_id] = [
                {"step": step, "metrics": steps[step]} for step in sorted(steps) if metric in steps[step]
            ]
        return self._milestones[run_id]
