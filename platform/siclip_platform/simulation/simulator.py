"""Searches replayed on recorded curves: our searcher and Tune's schedulers, on a virtual clock, without Ray or a GPU.

The searcher is `StudySearch` and the scheduler the very object of Ray Tune that a real study gets; only the trials
are made up. Each occupies one of ``workers`` for the seconds that its stretches took when they were recorded.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import optuna
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from siclip.errors import UserError
from siclip_platform.search.policy.schedulers import make_scheduler
from siclip_platform.search.policy.searcher import StudySearch, make_searcher
from siclip_platform.simulation.curves import Landscape
from siclip_platform.spaces.document import closest
from siclip_platform.spaces.policy import SAMPLERS, SCHEDULERS, SamplerConfig, SchedulerConfig

Tell = Literal["pruned", "complete"]
TELLS: tuple[str, ...] = get_args(Tell)
REPLAYED = tuple(name for name in SCHEDULERS if name != "pbt")
"""A population's curves follow from its schedules, which no recorded curve knows."""


@dataclass(frozen=True)
class Policy:
    """A sampler with a scheduler. ``tell``: what Optuna hears of a trial that was stopped early: ``pruned`` is ours,
    ``complete``, with the score of the step at which it was stopped, is what plain `OptunaSearch` says."""

    sampler: SamplerConfig
    scheduler: SchedulerConfig
    tell: Tell = "pruned"

    @property
    def name(self) -> str:
        return f"{self.sampler.name}+{self.scheduler.name}" + ("+complete" if self.tell == "complete" else "")


def parse_policy(text: str) -> Policy:
    """``SAMPLER+SCHEDULER`` or ``SAMPLER+SCHEDULER+complete``.

    Raises:
        UserError: it is written otherwise, or there is no such sampler or scheduler.
    """
    sampler, _, rest = text.partition("+")
    scheduler, _, tell = rest.partition("+")
    for word, words, what in (
        (sampler, SAMPLERS, "sampler"), (scheduler, REPLAYED, "scheduler"), (tell or "pruned", TELLS, "tell"),
    ):  # fmt: skip
        if word not in words:
            hint = closest(word, words) or f"; choose one of {', '.join(words)}"
            raise UserError(
                f"policy {text!r}: no {what} {word!r}{hint}. Write SAMPLER+SCHEDULER, for example tpe+asha, and "
                "+complete to have stopped trials told as complete"
            )
    return Policy(
        SamplerConfig.model_validate({"name": sampler}),
        SchedulerConfig.model_validate({"name": scheduler}),
        "complete" if tell == "complete" else "pruned",
    )


class TellsComplete(StudySearch):
    """As `OptunaSearch` has it: a trial that was stopped early is complete, with the score that it had."""

    def _tell(self, trial: optuna.Trial, step: int, values: list[float], failed: bool) -> None:
        if failed or not all(map(math.isfinite, values)):
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, values, state=TrialState.COMPLETE)


@dataclass(eq=False)
class SimulatedTrial:
    """As much of a Tune trial as its schedulers look at, and where it stands."""

    trial_id: str
    config: dict[str, Any]
    scores: list[float]
    at: int = 0
    status: str = "RUNNING"
    steps: int = 0
    ended: float = math.nan


@dataclass
class Trace:
    """A simulated study: its trials in the order of their start, and the best complete score over time."""

    policy: Policy
    seed: int
    trials: list[SimulatedTrial] = field(default_factory=list)
    best: list[tuple[float, float]] = field(default_factory=list)
    trained_steps: int = 0

    @property
    def complete(self) -> int:
        return sum(1 for trial in self.trials if trial.status == "COMPLETE")

    def best_at(self, seconds: float) -> float:
        """The best score of a trial that was complete by then; NaN before the first."""
        return next((value for time, value in reversed(self.best) if time <= seconds), math.nan)


class _Controller:
    """What a scheduler may ask Tune's controller for."""

    def __init__(self, running: dict[str, SimulatedTrial]) -> None:
        self._running = running

    def get_live_trials(self) -> list[SimulatedTrial]:
        return list(self._running.values())


class Simulation:
    """One study on a virtual clock. ``budget``: seconds after which no trial is begun and none reports."""

    def __init__(
        self, landscape: Landscape, policy: Policy, *, workers: int, budget: float, seed: int, planned: int
    ) -> None:
        self.landscape = landscape
        self.policy = policy
        self.workers = workers
        self.budget = budget
        self.seconds = landscape.curves.stretch_seconds
        self.milestones = landscape.curves.milestones
        self.trace = Trace(policy, seed)
        steps = landscape.curves.steps
        self.searcher = make_searcher(
            landscape.space, seed=seed, num_trials=planned, max_steps=steps, study_name="simulated",
            sampler=policy.sampler,
        )  # fmt: skip
        if policy.tell == "complete":
            self.searcher.__class__ = TellsComplete
        self.scheduler = make_scheduler(policy.scheduler, landscape.space, steps=steps, seed=seed)
        self.running: dict[str, SimulatedTrial] = {}
        self.controller: Any = _Controller(self.running)
        self._events: list[tuple[float, int, SimulatedTrial]] = []
        self._count = 0
        self._order = 0

    def run(self) -> Trace:
        for _ in range(self.workers):
            self._begin(0.0)
        while self._events:
            now, _, trial = heapq.heappop(self._events)
            if now > self.budget * (1 + 1e-9):
                break
            self._report(now, trial)
        return self.trace

    def _begin(self, now: float) -> None:
        name = f"trial-{self._count:03d}"
        values = self.searcher.suggest(name)
        if values is None or values == Searcher.FINISHED:
            return
        assert isinstance(values, dict)
        self._count += 1
        trial = SimulatedTrial(name, values, self.landscape.scores(values))
        self.running[name] = trial
        self.trace.trials.append(trial)
        self.scheduler.on_trial_add(self.controller, trial)
        self._next(now, trial)

    def _next(self, now: float, trial: SimulatedTrial) -> None:
        self._order += 1  # events of the same moment come in the order in which they were planned
        heapq.heappush(self._events, (now + self.seconds[trial.at], self._order, trial))

    def _report(self, now: float, trial: SimulatedTrial) -> None:
        score, step = trial.scores[trial.at], self.milestones[trial.at]
        self.trace.trained_steps += step - trial.steps
        trial.steps = step
        trial.at += 1
        result = {"step": step, "training_iteration": trial.at, self.landscape.space.metric: score}
        last = trial.at == len(self.milestones)
        decision = self.scheduler.on_trial_result(self.controller, trial, result)
        if not last and decision == TrialScheduler.CONTINUE:
            self.searcher.on_trial_result(trial.trial_id, result)
            self._next(now, trial)
            return
        self.scheduler.on_trial_complete(self.controller, trial, result)
        self.searcher.on_trial_complete(trial.trial_id, result)
        trial.status, trial.ended = ("COMPLETE" if last else "PRUNED"), now
        del self.running[trial.trial_id]
        if last:
            self._keep_best(now, score)
        self._begin(now)

    def _keep_best(self, now: float, score: float) -> None:
        sign = 1 if self.landscape.space.mode == "max" else -1
        if not self.trace.best or sign * score > sign * self.trace.best[-1][1]:
            self.trace.best.append((now, score))


def simulate(
    landscape: Landscape, policies: Sequence[Policy], *, workers: int, trials: int, repetitions: int
) -> dict[str, list[Trace]]:
    """Each policy's traces, one for each seed from 0, in the time in which ``workers`` train ``trials`` whole."""
    budget = budget_seconds(landscape, workers, trials)
    return {
        policy.name: [
            Simulation(landscape, policy, workers=workers, budget=budget, seed=seed, planned=trials).run()
            for seed in range(repetitions)
        ]
        for policy in policies
    }


def budget_seconds(landscape: Landscape, workers: int, trials: int) -> float:
    """Virtual seconds in which so many workers train so many settings to their last step."""
    return math.ceil(trials / workers) * sum(landscape.curves.stretch_seconds)
