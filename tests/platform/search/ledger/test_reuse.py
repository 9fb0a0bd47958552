"""Finished trainings of an MLflow store are reused, and a store that does not answer stops no study."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest

from siclip_platform.search.ledger import reuse
from siclip_platform.search.ledger.reuse import Reuse
from tests.support import study_parts as parts

DOWN = mlflow.MlflowException("API request failed: connection refused")
VALUES = {"training.weight_decay": 0.2}


class Down:
    """A tracker whose server is down from the call of that name on."""

    def __init__(self, first: str) -> None:
        self.first = first
        self.client = self

    def _check(self, name: str) -> None:
        if name == self.first:
            raise DOWN

    @property
    def experiment_id(self) -> str:
        self._check("experiment_id")
        return "1"

    def search_runs(self, experiments: list[str], **query: Any) -> Any:
        self._check("search_runs")
        assert experiments == ["1"]
        tags = {"siclip.identity": "same"}
        page: Any = type("Page", (list,), {"token": None})
        return page([SimpleNamespace(data=SimpleNamespace(tags=tags), info=SimpleNamespace(run_id="r"))])

    def get_run(self, run_id: str) -> Any:
        self._check("get_run")
        metrics = {"validation/mean_recall_at_1": 0.5}
        return SimpleNamespace(data=SimpleNamespace(metrics=metrics))

    def get_metric_history(self, run_id: str, key: str) -> Any:
        self._check("get_metric_history")
        return [SimpleNamespace(step=parts.STEPS, value=0.5)]


@pytest.mark.parametrize("first", ["experiment_id", "search_runs", "get_run", "get_metric_history", "none"])
def test_a_store_that_does_not_answer_is_told_and_nothing_of_it_reused(
    first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reuse, "identity", lambda recipe: "same")
    tracker: Any = Down(first)
    found = Reuse(parts.plan(tmp_path, tmp_path, [0.2]), tracker, SimpleNamespace(key="s")).find(VALUES, 0)  # type: ignore[arg-type]
    if first == "none":
        assert found is not None and found.run_id == "r" and not caplog.text
    else:
        assert found is None and "connection refused" in caplog.text
