"""Each patch of Ray changes what it claims to change, and the installed Ray still needs it."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import mmap
import re
import signal
import subprocess
import sys
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private import worker
from ray.tune.execution import class_cache

from siclip_platform.cluster import ray_patches
from siclip_platform.cluster.ray_patches import LOST_NODE_WARNINGS, LOST_WORKER_WARNINGS, QUIET, WORKER_COUNT_WARNING

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL")


def test_importing_the_patches_does_not_import_ray() -> None:
    code = "import sys, siclip_platform.cluster.ray_patches; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def fresh(module: ModuleType) -> ModuleType:
    """A second copy of a module as it is installed: the imported one may have been patched by other tests."""
    spec = importlib.util.spec_from_file_location(f"{module.__name__}_installed", str(module.__file__))
    assert spec is not None and spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


def test_ray_data_resets_the_level_of_its_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.data._internal import logging as data_logging

    logger = logging.getLogger("ray.data")
    before, handlers = logger.level, logger.handlers[:]
    config = {"loggers": {"ray.data": {"level": "DEBUG"}}}
    try:
        monkeypatch.delenv("RAY_DATA_LOG_LEVEL", raising=False)
        logger.setLevel(logging.ERROR)
        data_logging._configure_loggers(config, {})
        assert logger.level == logging.DEBUG  # why it is needed
        ray_patches.silence_through_environment()
        data_logging._configure_loggers(config, {})
        assert logger.level == logging.ERROR
    finally:
        logger.setLevel(before)
        logger.handlers[:] = handlers


def test_ray_prints_the_events_of_the_autoscaler(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import ray_constants

    lines = [f"{ray_constants.LOG_PREFIX_EVENT_SUMMARY}cannot be scheduled"]

    def printed() -> list[str]:
        monkeypatch.setattr(worker, "ray_constants", fresh(ray_constants))
        return list(worker.filter_autoscaler_events(lines))

    monkeypatch.setattr("ray.autoscaler.v2.utils.is_autoscaler_v2", lambda: False)
    monkeypatch.delenv("RAY_SCHEDULER_EVENTS", raising=False)
    assert "cannot be scheduled" in printed()  # why it is needed
    ray_patches.silence_through_environment()
    assert printed() == []


def test_variables_that_are_set_keep_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in QUIET:
        monkeypatch.setenv(name, "mine")
    ray_patches.silence_through_environment()
    assert {os.environ[name] for name in QUIET} == {"mine"}


def test_the_raylet_still_has_the_warning_about_workers() -> None:
    """It comes from Ray's C++ part: no setting of Python's loggers reaches it."""
    raylet = Path(str(ray.__file__)).parent / "core/src/ray/raylet/raylet"
    with raylet.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for warning in (WORKER_COUNT_WARNING, *LOST_WORKER_WARNINGS):
            assert content.find(warning.encode()) > 0


def test_ray_still_has_the_warnings_about_nodes() -> None:
    folder = Path(str(ray.__file__)).parent
    for file, warning in zip(
        ("core/src/ray/gcs/gcs_server", "_private/process_watcher.py"), LOST_NODE_WARNINGS, strict=True
    ):
        with (
            (folder / file).open("rb") as open_file,
            mmap.mmap(open_file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            assert content.find(warning.encode()) > 0


def test_only_the_warning_about_workers_is_hidden(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # `ray_cluster` may have patched this process already: begin with Ray's own function.
    monkeypatch.setattr(worker, "print_to_stdstream", fresh(worker).print_to_stdstream)
    warning = f"WARNING: 9 PYTHON {WORKER_COUNT_WARNING}: 0123 with address: 127.0.0.1"

    def printed(line: str) -> str:
        worker.print_to_stdstream({"lines": [line], "pid": "raylet", "is_err": False}, ignore_prefix=False)
        return capsys.readouterr().out

    assert WORKER_COUNT_WARNING in printed(warning)  # why it is needed
    ray_patches.hide_worker_count_warning()
    assert printed(warning.replace("9", "8")) == ""
    assert not any(printed(f"{lost} and more") for lost in (*LOST_WORKER_WARNINGS, *LOST_NODE_WARNINGS))
    assert "another message" in printed("another message")
    patched = worker.print_to_stdstream
    ray_patches.hide_worker_count_warning()
    assert worker.print_to_stdstream is patched


@pytest.fixture
def as_installed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Tune's module as it is installed, in the place of the imported one."""
    module = fresh(class_cache)
    monkeypatch.setattr("ray.tune.execution.class_cache", module)
    return module


def passed_on(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment variables of a trial's actor."""
    requests: list[dict[str, Any]] = []
    with monkeypatch.context() as patch:
        patch.setattr(ray, "remote", lambda **options: requests.append(options) or (lambda trainable: trainable))
        module._ActorClassCache().get(object)
    variables: dict[str, str] = requests[0]["runtime_env"]["env_vars"]
    return variables


def test_tune_passes_no_key_on(as_installed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    names = set(as_installed.ENV_VARS_TO_PROPAGATE)
    keys = {name for name in names if SECRET.search(name)}
    for name in names:
        monkeypatch.setenv(name, f"value of {name}")
    assert keys <= set(passed_on(as_installed, monkeypatch)) and keys  # why it is needed
    ray_patches.keep_secrets_from_metadata()
    assert {n: v for n, v in passed_on(as_installed, monkeypatch).items() if n in names} == {
        name: f"value of {name}" for name in names - keys
    }


def test_ray_init_leaves_the_handler_of_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import utils

    assert "set_sigterm_handler(sigterm_handler)" in inspect.getsource(worker.init)  # why it is needed
    monkeypatch.setattr(utils, "set_sigterm_handler", utils.set_sigterm_handler)  # so that it is put back
    ray_patches.keep_sigterm_handler()
    before = signal.getsignal(signal.SIGTERM)
    utils.set_sigterm_handler(lambda *of_signal: None)
    assert signal.getsignal(signal.SIGTERM) is before


def test_ray_train_stops_a_run_only_from_the_main_thread() -> None:
    """Why the handle is needed: no public method stops a run, and SIGINT reaches the main thread only."""
    from ray.train.torch import TorchTrainer

    assert not {"abort", "cancel", "stop"} & set(dir(TorchTrainer))
    assert "is threading.main_thread()" in inspect.getsource(TorchTrainer._initialize_and_run_controller)


def test_the_controller_of_a_run_reports_its_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train import RunConfig

    queue: SimpleQueue[Any] = SimpleQueue()
    callback = ray_patches.reporting_controller(queue)
    assert RunConfig(callbacks=[callback]).callbacks == [callback]
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(current_actor="handle"))
    callback.after_controller_start(train_run_context=None)
    assert queue.get_nowait() == ray_patches.Controller("handle")
