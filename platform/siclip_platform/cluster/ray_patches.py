"""What we change in Ray through its private members, each until Ray has a public way."""

from __future__ import annotations

from typing import Any

SECRETS = frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"})


def hide_worker_count_warning() -> None:
    """Drop the one warning that Ray prints past its loggers: that more worker processes run than it expected.

    With fractional CPUs that is meant. Ray has no public switch for it.
    """
    from ray._private import worker

    shown = worker.print_to_stdstream

    def show(data: dict[str, Any], *args: Any, **options: Any) -> None:
        if not any("worker processes have been started on node" in line for line in data["lines"]):
            shown(data, *args, **options)

    worker.print_to_stdstream = show


def keep_secrets_from_metadata() -> None:
    """From here on Tune passes none of `SECRETS` on. Ray has no public switch for it."""
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE = set(class_cache.ENV_VARS_TO_PROPAGATE) - SECRETS
