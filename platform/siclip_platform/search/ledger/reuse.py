"""Trainings that are known already: those of this study, and the completed ones in the MLflow store."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from siclip_platform.metrics import metric_name, stored_key
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.search.ledger.journal import Journal
from siclip_platform.search.study import StudyPlan
from siclip_platform.tracking import TrackedRun, Tracker
from siclip_platform.training.identity import identity

log = logging.getLogger(__name__)
PAGE = 1000


@dataclass(frozen=True)
class Known:
    """A finished training: where it is recorded, and its milestones as a trial replays them."""

    run_id: str
    milestones: list[dict[str, Any]]


class Reuse:
    """Finds finished trainings by identity; ``rerun`` finds none of the store, and the study's own all the same.

    A store that does not answer has none: the training is then done.
    """

    def __init__(self, plan: StudyPlan, tracker: Tracker, study: TrackedRun, rerun: bool = False) -> None:
        self.plan = plan
        self.tracker = tracker
        self.study = study
        self.rerun = rerun
        self._runs: dict[str, str] | None = None
        self._milestones: dict[str, list[dict[str, Any]]] = {}

    def find(self, journal: Journal, values: Mapping[str, Any], seed: int) -> Known | None:
        """The finished training of a setting with a seed, if there is one."""
        recipe = self.plan.recipe(values, seed)
        return self._in_study(journal, recipe, seed) or self._in_store(recipe)

    def _in_study(self, journal: Journal, recipe: Recipe, seed: int) -> Known | None:
        for entry in journal.finished():
            if entry.state == "completed" and self.plan.recipe(entry.values, seed) == recipe:
                below = f"/seed-{seed}" if self.plan.seeds > 1 else ""
                milestones = [
                    {"step": step, "metrics": seeds[str(seed)]}
                    for step, _, seeds in entry.results
                    if str(seed) in seeds
                ]
                return Known(self.tracker.spool.run_id(f"{self.study.key}/{entry.name}{below}") or "", milestones)
        return None

    def _in_store(self, recipe: Recipe) -> Known | None:
        if self.rerun:
            return None
        if self._runs is None:
            self._runs = self._completed()
        run_id = self._runs.get(identity(recipe))
        if run_id is None:
            return None
        milestones = self._read(run_id)
        whole = bool(milestones) and milestones[-1]["step"] == recipe.training.steps
        return Known(run_id, milestones) if whole else None

    def _completed(self) -> dict[str, str]:
        """Identity → run id; of several the oldest, which is the one that was trained."""
        wanted = "tags.`siclip.state` = 'completed' and tags.`siclip.identity` LIKE '_%'"
        found: dict[str, str] = {}
        token: str | None = None
        try:
            while True:
                page = self.tracker.client.search_runs(
                    [self.tracker.experiment_id], wanted, max_results=PAGE, page_token=token,
                    order_by=["attributes.start_time ASC"],
                )  # fmt: skip
                for run in page:
                    if "siclip.reused_from" not in run.data.tags:
                        found.setdefault(run.data.tags["siclip.identity"], run.info.run_id)
                token = page.token
                if not token:
                    return found
        except Exception as error:  # whatever keeps the store from answering
            log.warning("earlier trainings cannot be looked up, so none is taken over: %s", error)
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
