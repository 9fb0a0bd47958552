"""An MLflow tracking store, read only: its runs, their histories and small artifacts.

Nothing here changes the store or MLflow's global state.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from siclip.errors import UserError
from siclip_platform.metrics import metric_name, stored_key
from siclip_platform.report.read.runs import Curve, Run

PAGE = 1000
MAX_ARTIFACT_BYTES = 4 * 2**20
_STATES = {"finished": "completed", "killed": "failed", "scheduled": "running"}


class Store:
    """``uri`` names it; ``url`` is where its pages are (None: not known), for links to runs."""

    def __init__(self, uri: str, url: str | None = None) -> None:
        """Connect.

        Raises:
            UserError: an sqlite file that does not exist (MLflow would create it; a report must not), a file that is
                no MLflow store, or a ``url`` that is not http(s).
        """
        _check_sqlite_file(uri)
        from mlflow import MlflowClient

        self.uri = uri
        if url is not None and urlsplit(url).scheme not in ("http", "https"):
            raise UserError(f"MLflow URL {url!r}: write http(s)://SERVER:PORT, where its pages are shown")
        self.url = without_password(url or uri).rstrip("/") if url or uri.startswith("http") else None
        try:
            self.client = MlflowClient(tracking_uri=uri)
            self.experiments = {item.experiment_id: item.name for item in _pages(self.client.search_experiments)}
        except Exception as error:
            raise UserError(f"tracking store {without_password(uri)} cannot be read: {_first_line(error)}") from None

    def experiment_ids(self, name: str | None) -> list[str]:
        """Of the experiment with this name, or of all.

        Raises:
            UserError: there is none of that name; the message lists those that exist.
        """
        if name is None:
            return list(self.experiments)
        found = [key for key, known in self.experiments.items() if known == name]
        if not found:
            raise UserError(
                f"no MLflow experiment {name!r} in this tracking store: it has {listed(self.experiments.values())}. "
                "Name one of them, or check the tracking URI"
            )
        return found

    def search(self, experiments: Sequence[str], filter_string: str = "") -> list[Run]:
        """Runs that match MLflow's filter, the oldest first.

        Raises:
            UserError: MLflow does not understand the filter.
        """
        if not experiments:
            return []
        from mlflow import MlflowException

        try:
            found = _pages(
                self.client.search_runs,
                experiment_ids=list(experiments),
                filter_string=filter_string,
                order_by=["attributes.start_time ASC"],
                max_results=PAGE,
            )
        except MlflowException as error:
            raise UserError(
                f"MLflow does not accept the search {filter_string!r}: {_first_line(error)}. Write for example "
                "\"tags.`siclip.question` = 'sharing'\" or \"params.`training.seed` = '1'\""
            ) from None
        runs = map(_run, found)
        return [replace(run, link=self.link(run)) for run in runs]

    def curve(self, run: Run, metric: str) -> Curve:
        """The metric's history by step; of several values at a step the last one logged."""
        history = self.client.get_metric_history(run.run_id, stored_key(metric))
        points = sorted(history, key=lambda point: (point.step, point.timestamp))
        return tuple({point.step: _value(point.value) for point in points}.items())

    def text_artifact(self, run: Run, name: str) -> str | None:
        """A small text file that the run logged; None if there is none, it is too large, or cannot be reached."""
        try:
            listed_files = {item.path: item.file_size for item in self.client.list_artifacts(run.run_id)}
            if name not in listed_files or (listed_files[name] or 0) > MAX_ARTIFACT_BYTES:
                return None
            with tempfile.TemporaryDirectory() as folder:
                return Path(self.client.download_artifacts(run.run_id, name, folder)).read_text(encoding="utf-8")
        except Exception:  # the store may name a folder of another machine
            return None

    def link(self, run: Run) -> str | None:
        """The page of a run, where the store has pages."""
        if self.url is None or not run.experiment_id:
            return None
        return f"{self.url}/#/experiments/{quote(run.experiment_id, safe='')}/runs/{quote(run.run_id, safe='')}"


def without_password(uri: str) -> str:
    """A URI without the user and password that it may hold."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def json_list(text: str | None) -> list[Any]:
    """A JSON list in a tag; empty if it is none."""
    try:
        found = json.loads(text or "[]")
    except json.JSONDecodeError:
        return []
    return found if isinstance(found, list) else []


def _run(item: Any) -> Run:
    tags = dict(item.data.tags)
    status = item.info.status.lower()
    return Run(
        run_id=item.info.run_id,
        experiment_id=item.info.experiment_id,
        name=item.info.run_name or item.info.run_id,
        kind=tags.get("siclip.kind", ""),
        state=tags.get("siclip.state") or _STATES.get(status, status),
        started=_time(item.info.start_time),
        ended=_time(item.info.end_time),
        tags=tags,
        params=dict(item.data.params),
        metrics={metric_name(key): _value(value) for key, value in item.data.metrics.items()},
    )


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def _value(stored: float) -> float:
    """MLflow's sqlite store keeps an infinity as the largest float."""
    return math.copysign(math.inf, stored) if abs(stored) >= sys.float_info.max else stored


def _pages(search: Any, **arguments: Any) -> list[Any]:
    items: list[Any] = []
    token: str | None = None
    while True:
        page = search(**arguments, page_token=token)
        items.extend(page)
        token = page.token
        if not token:
            return items


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _check_sqlite_file(tracking_uri: str) -> None:
    if tracking_uri.startswith("sqlite:///"):
        path = Path(tracking_uri.removeprefix("sqlite:///").partition("?")[0])
        if not path.is_file():
            raise UserError(f"no MLflow database at {path}: check the tracking URI, or run a study first")
