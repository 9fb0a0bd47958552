"""No cloud key of the driver becomes part of what Ray writes down about a trial's process."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType
from typing import Any

import pytest
import ray
from ray.tune.execution import class_cache

from siclip_platform.cluster import ray_patches

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL")


@pytest.fixture
def as_installed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Ray's module anew, and ours at work on it: the one that is imported may have been changed by a search."""
    spec = importlib.util.spec_from_file_location("class_cache_as_installed", class_cache.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr("ray.tune.execution.class_cache", module)
    return module


def passed_on(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What a trial's actor is asked for with."""
    asked: list[dict[str, Any]] = []
    with monkeypatch.context() as patch:
        patch.setattr(ray, "remote", lambda **options: asked.append(options) or (lambda trainable: trainable))
        module._ActorClassCache().get(object)
    variables: dict[str, str] = asked[0]["runtime_env"]["env_vars"]
    return variables


def test_tune_passes_no_key_on(as_installed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    names = set(as_installed.ENV_VARS_TO_PROPAGATE)
    keys = {name for name in names if SECRET.search(name)}
    for name in names:
        monkeypatch.setenv(name, f"value of {name}")
    assert keys <= set(passed_on(as_installed, monkeypatch)) and keys  # why this is needed
    ray_patches.keep_secrets_from_metadata()
    assert {n: v for n, v in passed_on(as_installed, monkeypatch).items() if n in names} == {
        name: f"value of {name}" for name in names - keys
    }
