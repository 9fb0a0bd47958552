"""No cloud key of the driver becomes part of what Ray writes down about a trial's process."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from ray.tune.execution.class_cache import _ActorClassCache

from siclip_platform.search.secrets import SECRETS, keep_secrets_from_metadata


def test_tune_passes_no_key_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "remote", lambda **options: asked.append(options) or (lambda trainable: trainable))
    for name in SECRETS:
        monkeypatch.setenv(name, f"hidden {name}")
    monkeypatch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")
    _ActorClassCache().get(object)
    assert any("hidden" in value for value in asked[0]["runtime_env"]["env_vars"].values())  # why this is needed
    keep_secrets_from_metadata()
    _ActorClassCache().get(object)
    passed_on = asked[1]["runtime_env"]["env_vars"]
    assert not SECRETS & set(passed_on)
    assert passed_on["RAY_CHDIR_TO_TRIAL_DIR"] == "0"
