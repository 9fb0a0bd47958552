"""Optuna's database waits for space on a full disk, and then has every trial once."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import optuna
import pytest
from sqlalchemy import event

from siclip_platform.search.policy.storage import WaitingStorage


def test_a_full_disk_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    storage = WaitingStorage(url)
    study = optuna.create_study(storage=storage, study_name="s", sampler=optuna.samplers.RandomSampler(seed=1))
    limit = 1  # pages; SQLite takes the present size if that is larger, and then says that the disk is full

    @event.listens_for(storage.engine, "before_cursor_execute")
    def bound(connection: object, cursor: object, *more: object) -> None:
        cursor.execute(f"PRAGMA max_page_count = {limit}")  # type: ignore[attr-defined]

    def free() -> None:
        nonlocal limit
        while "is full" not in caplog.text:
            time.sleep(0.05)
        limit = 10**6

    def objective(trial: optuna.Trial) -> float:
        trial.set_user_attr("text", "x" * 2000)
        return trial.suggest_float("x", 0, 1)

    threading.Thread(target=free, daemon=True).start()
    study.optimize(objective, n_trials=20)
    assert "is full" in caplog.text
    stored = optuna.load_study(storage=url, study_name="s").trials
    assert [trial.number for trial in stored] == list(range(20))
    assert all(trial.value == trial.params["x"] for trial in stored)
