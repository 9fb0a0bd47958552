"""Searches replayed on recorded curves: our searcher and Tune's schedulers, on a virtual clock, without Ray or a GPU.

The searcher and the scheduler are the objects that a real study uses; only the trials are simulated. Each occupies
one of the workers for as long as the recorded trials took from one evaluation to the next.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from siclip.errors import UserError
from siclip_platform.recipes.problems import closest
from siclip_platform.search.policy.schedulers import make_scheduler
from siclip_platform.search.policy.searcher import StoppedState, make_searcher
from siclip_platform.simulation.curves import Landscape
from siclip_platform.spaces.policy import SAMPLERS, SCHEDULERS, SamplerConfig, SchedulerConfig

STOPPED_STATES: tuple[str, ...] = get_args(StoppedState)
REPLAYED = tuple(name for name in SCHEDULERS if name != "pbt")
"""The schedulers that can be replayed: a population's curves depend on its schedules, which were not recorded."""


@dataclass(frozen=True)
class Policy:
    """A sampler with a scheduler.

    Attributes:
        stopped: the state that Optuna gets for a trial that was stopped early: ``pruned``, as in our studies, or
            ``complete`` with the score at which it was stopped, as Ray Tune's `OptunaSearch` does.
    """

    sampler: SamplerConfig
    scheduler: SchedulerConfig
    stopped: StoppedState = "pruned"

    @property
    def name(self) -> str:
        return f"{self.sampler.name}+{self.scheduler.name}" + ("+complete" if self.stopped == "complete" else "")


def parse_policy(text: str) -> Policy:
    """Read ``SAMPLER+SCHEDULER`` or ``SAMPLER+SCHEDULER+complete``.

    Raises:
        UserError: it has another form, or there is no such sampler or scheduler.
    """
    sampler, _, rest = text.partition("+")
    scheduler, _, stopped = rest.partition("+")
    parts = (
        ("sampler", sampler, SAMPLERS),
        ("scheduler", scheduler, REPLAYED),
        ("state of stopped trials", stopped or "pruned", STOPPED_STATES),
    )
    for what, word, words in parts:
        if word not in words:
            hint = closest(word, words) or f"; choose one of {', '.join(words)}"
            raise UserError(
                f"policy {text!r}: no {what} {word!r}{hint}. Write SAMPLER+SCHEDULER, for example tpe+asha, and add "
                "+complete to report stopped trials as complete"
            )
    return Policy(
        SamplerConfig.model_validate({"name": sampler}),
        SchedulerConfig.model_validate({"name": scheduler}),
        "complete" if stopped == "complete" else "pruned",
    )


@dataclass(eq=False)
class SimulatedTrial:
    """The parts of a Tune trial that schedulers read, and the trial's progress.

    Attributes:
        scores: its score at each milestone.
        reported: milestones that it has reported.
        steps: the last of them, in steps.
        ended: virtual seconds at which it ended; NaN while it runs.
    """

    trial_id: str
    config: dict[str, Any]
    scores: list[float]
    reported: int = 0
    status: str = "RUNNING"
    steps: int = 0
    ended: float = math.nan


@dataclass
class Trace:
    """A simulated study.

    Attributes:
        trials: in the order of their start.
        best: (virtual seconds, score) of each complete trial that was better than all before it.
        trained_steps: of all trials together.
    """

    policy: Policy
    seed: int
    trials: list[SimulatedTrial] = field(default_factory=list)
    best: list[tuple[float, float]] = field(default_factory=list)
    trained_steps: int = 0

    @property
    def complete(self) -> int:
        """How many trials reached the last step."""
        return sum(1 for trial in self.trials if trial.status == "COMPLETE")

    def best_at(self, seconds: float) -> float:
        """The best score among the trials that were complete at a time; NaN before the first."""
        return next((value for time, value in reversed(self.best) if time <= seconds), math.nan)


class _Controller:
    """The part of Tune's controller that schedulers call."""

    def __init__(self, running: dict[str, SimulatedTrial]) -> None:
        self._running = running

    def get_live_trials(self) -> list[SimulatedTrial]:
        return list(self._running.values())


class Simulation:
    """One study on a virtual clock; `run` it once."""

    def __init__(
        self, landscape: Landscape, policy: Policy, *, workers: int, budget: float, seed: int, planned: int
    ) -> None:
        """Create the searcher and the scheduler.

        Args:
            landscape: gives each setting its scores.
            policy: the sampler and the scheduler.
            workers: trials that run at the same time.
            budget: virtual seconds after which no trial starts or reports.
            seed: of the search.
            planned: number of trials that the searcher expects.
        """
        self.landscape = landscape
        self.policy = policy
        self.workers = workers
        self.budget = budget
        self.seconds = landscape.curves.stretch_seconds
        self.milestones = landscape.curves.milestones
        self.trace = Trace(policy, seed)
        steps = landscape.curves.steps
        self.searcher = make_searcher(
            landscape.space,
            seed=seed,
            num_trials=planned,
            max_steps=steps,
            study_name="simulated",
            sampler=policy.sampler,
            stopped=policy.stopped,
        )
        self.scheduler = make_scheduler(policy.scheduler, landscape.space, steps=steps, seed=seed)
        self.running: dict[str, SimulatedTrial] = {}
        self.controller: Any = _Controller(self.running)
        self._events: list[tuple[float, int, SimulatedTrial]] = []
        self._started = 0
        self._planned_events = 0

    def run(self) -> Trace:
        for _ in range(self.workers):
            self._start_trial(0.0)
        while self._events:
            now, _, trial = heapq.heappop(self._events)
            # Sums of seconds are rounded, and the last reports of a budget come exactly at its end.
            if now > self.budget * (1 + 1e-9):
                break
            self._report(now, trial)
        return self.trace

    def _start_trial(self, now: float) -> None:
        name = f"trial-{self._started:03d}"
        values = self.searcher.suggest(name)
        if values is None or values == Searcher.FINISHED:
            return
        assert isinstance(values, dict)
        self._started += 1
        trial = SimulatedTrial(name, values, self.landscape.scores(values))
        self.running[name] = trial
        self.trace.trials.append(trial)
        self.scheduler.on_trial_add(self.controller, trial)
        self._plan_report(now, trial)

    def _plan_report(self, now: float, trial: SimulatedTrial) -> None:
        self._planned_events += 1  # events at the same time happen in the order in which they were planned
        heapq.heappush(self._events, (now + self.seconds[trial.reported], self._planned_events, trial))

    def _report(self, now: float, trial: SimulatedTrial) -> None:
        score, step = trial.scores[trial.reported], self.milestones[trial.reported]
        self.trace.trained_steps += step - trial.steps
        trial.steps = step
        trial.reported += 1
        result = {"step": step, "training_iteration": trial.reported, self.landscape.space.metric: score}
        is_last = trial.reported == len(self.milestones)
        decision = self.scheduler.on_trial_result(self.controller, trial, result)
        if not is_last and decision == TrialScheduler.CONTINUE:
            self.searcher.on_trial_result(trial.trial_id, result)
            self._plan_report(now, trial)
            return
        self.scheduler.on_trial_complete(self.controller, trial, result)
        self.searcher.on_trial_complete(trial.trial_id, result)
        trial.status, trial.ended = ("COMPLETE" if is_last else "PRUNED"), now
        del self.running[trial.trial_id]
        if is_last:
            self._update_best(now, score)
        self._start_trial(now)

    def _update_best(self, now: float, score: float) -> None:
        if not self.trace.best or score > self.trace.best[-1][1]:
            self.trace.best.append((now, score))


def simulate(
    landscape: Landscape, policies: Sequence[Policy], *, workers: int, trials: int, repetitions: int
) -> dict[str, list[Trace]]:
    """Replay every policy for the time in which ``workers`` train ``trials`` settings to the last step.

    Returns:
        Each policy's name with its traces, one per seed from 0 to ``repetitions`` - 1.
    """
    budget = budget_seconds(landscape, workers, trials)
    return {
        policy.name: [
            Simulation(landscape, policy, workers=workers, budget=budget, seed=seed, planned=trials).run()
            for seed in range(repetitions)
        ]
        for policy in policies
    }


def budget_seconds(landscape: Landscape, workers: int, trials: int) -> float:
    """Virtual seconds in which ``workers`` train ``trials`` settings to the last step."""
    return math.ceil(trials / workers) * sum(landscape.curves.stretch_seconds)
