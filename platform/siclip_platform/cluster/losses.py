"""Failures of processes and machines, told from failures of the work that they did, and told in a sentence."""

from __future__ import annotations

MEMORY = "its process was killed because the machine was short of memory"
MACHINE = "the machine that it ran on was lost"
PROCESS = "its process died (it was killed, or crashed outside Python)"
START = "its process ended before it started to train"
OBJECT = "data that another process held was lost with that process"
_REPORTS = {
    "low on memory": MEMORY,  # OutOfMemoryError
    "raylet died": MACHINE,  # LocalRayletDiedError
    "worker died": PROCESS,  # WorkerCrashedError
    "Failed to retrieve object": OBJECT,  # ObjectLostError
}


class ProcessLost(RuntimeError):
    """Work ended because processes or machines were lost; the message is a sentence."""


def loss(error: BaseException | None) -> str | None:
    """What was lost, in a sentence without Ray's own account of it; None if the work itself failed."""
    from ray import exceptions as ray

    if isinstance(error, ray.RayTaskError):
        error = error.cause
    if isinstance(error, ProcessLost):
        return str(error)
    if isinstance(error, ray.OutOfMemoryError) or (_is_death(error) and "low on memory" in str(error)):
        return MEMORY
    if isinstance(error, ray.NodeDiedError | ray.LocalRayletDiedError) or (_is_death(error) and _of_node(error)):
        return MACHINE
    if isinstance(error, ray.ObjectLostError):
        return OBJECT
    return PROCESS if _is_death(error) else None


def loss_in(report: str) -> str | None:
    """As `loss`, from the text of an error: Ray Tune keeps the errors themselves only of tasks and of actors."""
    for told, what in _REPORTS.items():
        if told in report:
            return what
    return None


def training_loss(error: BaseException) -> str | None:
    """`loss` for what Ray Train raises: None unless every worker that failed was lost."""
    failures = getattr(error, "worker_failures", None)
    causes = list(failures.values()) if failures else [getattr(error, "controller_failure", error)]
    found = [loss(cause) for cause in causes]
    return found[0] if all(found) else None


def _is_death(error: BaseException | None) -> bool:
    from ray import exceptions as ray

    if isinstance(error, ray.RayActorError):
        return not error.actor_init_failed  # its own code raised
    return isinstance(error, ray.WorkerCrashedError)


def _of_node(error: BaseException | None) -> bool:
    text = str(error).lower()
    return getattr(error, "preempted", False) or "node has died" in text or "node was terminated" in text
