"""Everything that uses private members or undocumented settings of Ray, each until Ray has a public way.

All were seen in Ray 2.60. ``tests/platform/cluster/test_ray_patches.py`` fails when one is no longer needed.
Importing this module does not import Ray.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

SECRETS = frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"})
WORKER_COUNT_WARNING = "worker processes have been started on node"
LOST_WORKER_WARNINGS = (
    "A worker died or was killed while executing a task",
    "Workers (tasks / actors) killed due to memory pressure",
)
LOST_NODE_WARNINGS = (
    "has been marked dead because",
    "Raylet is terminated",  # with the last lines of its log
)
QUIET = {
    # Ray Data configures its loggers again at each execution: a level that is set on a logger does not last.
    # Waits for a log level in ray.data.DataContext.
    "RAY_DATA_LOG_LEVEL": "ERROR",
    # The autoscaler prints its events past the loggers. Waits for an argument of ray.init.
    "RAY_SCHEDULER_EVENTS": "0",
}
"""Variables that no page of Ray's documentation lists."""


def silence_through_environment() -> None:
    """Set `QUIET` before Ray is imported; a variable that is already set keeps its value."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def hide_worker_count_warning() -> None:
    """Drop the warnings that many worker processes run and that one or a node was lost; a second call has no effect.

    Trials with fractional CPUs start many workers on purpose, and a loss is told in a sentence where it matters. Ray
    prints these past its loggers, also with ``log_to_driver=False``. Waits for an argument of ray.init or a logger.
    """
    from ray._private import worker

    shown = worker.print_to_stdstream
    if getattr(shown, "hides_worker_count", False):
        return

    def show(data: dict[str, Any], *args: Any, **options: Any) -> None:
        hidden = (WORKER_COUNT_WARNING, *LOST_WORKER_WARNINGS, *LOST_NODE_WARNINGS)
        if not any(warning in line for line in data["lines"] for warning in hidden):
            shown(data, *args, **options)

    show.hides_worker_count = True  # type: ignore[attr-defined]
    worker.print_to_stdstream = show


def keep_sigterm_handler() -> None:
    """Stop ray.init from replacing this process's handler of SIGTERM, for the rest of this process.

    Ray's own handlers end the process in the middle of its work, with threads that abort it. Waits for an argument of
    ray.init.
    """
    from ray._private import utils

    utils.set_sigterm_handler = lambda handler: None


def forget_trial(scheduler: Any, trial: Any) -> Any:
    """Remove a trial's results from ASHA, Hyperband or the median rule; returns its bracket if there are brackets.

    A trial that is run on after its process was lost reports its results again. Waits for a public way to do this.
    """
    from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule

    if isinstance(scheduler, MedianStoppingRule):
        scheduler._results.pop(trial, None)
    if not isinstance(scheduler, AsyncHyperBandScheduler):
        return None
    bracket = scheduler._trial_info.pop(trial.trial_id, None)
    for _, recorded in bracket._rungs if bracket else ():
        recorded.pop(trial.trial_id, None)
    return bracket


def put_in_bracket(scheduler: Any, trial: Any, bracket: Any) -> None:
    """Give a trial the bracket of a forgotten one. Waits for a public way to choose a trial's bracket."""
    scheduler._trial_info[trial.trial_id] = bracket


def keep_secrets_from_metadata() -> None:
    """Stop Tune from passing `SECRETS` to the processes of trials, for the rest of this process.

    Tune writes them into the runtime environment of each trial's actor, which everyone who reaches the cluster can
    read. Waits for an option of tune.Tuner.
    """
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE = set(class_cache.ENV_VARS_TO_PROPAGATE) - SECRETS


@dataclass(frozen=True)
class Controller:
    """The handle of the actor that controls a run of Ray Train."""

    actor: Any


def reporting_controller(queue: Any) -> Any:
    """A callback for ray.train.RunConfig that puts the run's `Controller` into a queue when the run starts.

    Killing that actor ends the run with all its processes. Waits for a way to stop a run from another thread than
    the one that called ``fit``: Ray Train handles SIGINT only if that was the main thread.
    """
    import ray
    from ray.train.v2._internal.execution.callback import ControllerCallback

    class ReportingController(ControllerCallback):
        def after_controller_start(self, train_run_context: Any) -> None:
            queue.put(Controller(ray.get_runtime_context().current_actor))

    return ReportingController()
