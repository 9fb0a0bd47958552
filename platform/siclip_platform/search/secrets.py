"""Ray Tune copies cloud keys from the driver's environment into its actors' runtime environments.

Those are written into the nodes' logs and shown with the job. Keys belong into the environment that a node is started
in, where its workers find them without that.
"""

from __future__ import annotations

from ray.tune.execution import class_cache

SECRETS = frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"})


def keep_secrets_from_metadata() -> None:
    """From here on Tune passes none of `SECRETS` on. Ray has no public switch for it."""
    class_cache.ENV_VARS_TO_PROPAGATE = set(class_cache.ENV_VARS_TO_PROPAGATE) - SECRETS
