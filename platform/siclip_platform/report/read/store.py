"""Read-only access to an MLflow tracking store: runs, metric histories and small artifacts.

It changes neither the store nor MLflow's global state.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from siclip.errors import UserError
from siclip_platform.metrics import metric_name, stored_key
from siclip_platform.report.read.runs import Curve, Run
from siclip_platform.tracking.address import without_password
from siclip_platform.tracking.pages import runs_page
from siclip_platform.tracking.store import connect

PAGE = 1000  # results per request
MAX_ARTIFACT_BYTES = 4 * 2**20  # larger than any data summary, small enough to inline in a page
_STATES = {"finished": "completed", "killed": "failed", "scheduled": "running"}


class Store:
    """A connected store.

    Attributes:
        uri: The tracking URI, without credentials.
        url: Base URL of the store's web pages without credentials; None if it is not known.
        experiments: Experiment id → name.
    """

    def __init__(self, uri: str, url: str | None = None) -> None:
        """Connect to the store.

        Args:
            uri: The tracking URI.
            url: Base URL of MLflow's pages, for links to runs (default: ``uri``, if it is http(s)).

        Raises:
            UserError: The sqlite file does not exist, the store cannot be read, or ``url`` is not http(s).
        """
        # MLflow would create a missing sqlite file; a report must not.
        _check_sqlite_file(uri)
        self.uri = without_password(uri)
        if url is not None and urlsplit(url).scheme not in ("http", "https"):
            raise UserError(f"MLflow URL {url!r}: write http(s)://SERVER:PORT, the address of its web pages")
        self.url = without_password(url or uri).rstrip("/") if url or uri.startswith("http") else None
        try:
            self.client = connect(uri)
            self.experiments = {item.experiment_id: item.name for item in _pages(self.client.search_experiments)}
        except Exception as error:
            raise UserError(f"tracking store {without_password(uri)} cannot be read: {_first_line(error)}") from None

    def experiment_ids(self, name: str | None) -> list[str]:
        """Ids of the experiment with this name, or with None of all experiments.

        Raises:
            UserError: No experiment has this name; the message lists those that exist.
        """
        if name is None:
            return list(self.experiments)
        found = [key for key, known in self.experiments.items() if known == name]
        if not found:
            raise UserError(
                f"no MLflow experiment {name!r} in this tracking store: it has {listed(self.experiments.values())}. "
                "Choose one of them, or check the tracking URI"
            )
        return found

    def search(self, experiments: Sequence[str], filter_string: str = "") -> list[Run]:
        """Runs that match an MLflow filter, oldest first.

        Raises:
            UserError: MLflow rejects the filter.
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
                f"MLflow does not accept the search {filter_string!r}: {_first_line(error)}. Examples: "
                "\"tags.`siclip.question` = 'sharing'\" or \"params.`training.seed` = '1'\""
            ) from None
        runs = map(_run, found)
        return [replace(run, link=self.link(run)) for run in runs]

    def curve(self, run: Run, metric: str) -> Curve:
        """A metric's history in order of steps; of several values at one step the last logged."""
        history = self.client.get_metric_history(run.run_id, stored_key(metric))
        # A resumed run may log a step again; the later value counts.
        points = sorted(history, key=lambda point: (point.step, point.timestamp))
        return tuple({point.step: _value(point.value) for point in points}.items())

    def text_artifact(self, run: Run, name: str) -> str | None:
        """A text file that the run logged; None if it is absent, over `MAX_ARTIFACT_BYTES` or unreachable."""
        try:
            listed_files = {item.path: item.file_size for item in self.client.list_artifacts(run.run_id)}
            if name not in listed_files or (listed_files[name] or 0) > MAX_ARTIFACT_BYTES:
                return None
            with tempfile.TemporaryDirectory() as folder:
                return Path(self.client.download_artifacts(run.run_id, name, folder)).read_text(encoding="utf-8")
        # The store may point to a folder on another machine; a report can be written without its artifacts.
        except Exception:
            return None

    def link(self, run: Run) -> str | None:
        """URL of a run's page, or None if the store has no pages."""
        if self.url is None or not run.experiment_id:
            return None
        return f"{self.url}/#/experiments/{quote(run.experiment_id, safe='')}/runs/{quote(run.run_id, safe='')}"

    def runs_page(self, run: Run, study: str, metric: str, mode: str) -> str | None:
        """URL of the table of a study's runs, the best first; None if the store has no pages.

        Args:
            run: the study's own run.
            study: the study's name.
            metric: the metric to sort by.
            mode: ``max`` or ``min``.
        """
        return runs_page(self.url, run.experiment_id, study, metric, mode) if self.url and run.experiment_id else None


def listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def json_list(text: str | None) -> list[Any]:
    """Parse a JSON list from a tag; empty if the tag is absent or not a list."""
    try:
        found = json.loads(text or "[]")
    except json.JSONDecodeError:
        return []
    return found if isinstance(found, list) else []


# A part that is off leaves its options without effect, so that their values say nothing about the run.
OPTIONS = {"loss.pair_matching": ("loss.pair_head", "loss.negatives", "loss.pair_matching_warmup")}


def active(params: Mapping[str, str]) -> dict[str, str]:
    """The parameters of a run without the options of a part whose weight is 0."""
    off = {option for weight, options in OPTIONS.items() if _zero(params.get(weight)) for option in options}
    return {path: value for path, value in params.items() if path not in off}


def _zero(text: str | None) -> bool:
    try:
        return text is not None and float(text) == 0
    except ValueError:
        return False


def _run(item: Any) -> Run:
    tags = dict(item.data.tags)
    status = item.info.status.lower()
    return Run(
        run_id=item.info.run_id,
        experiment_id=item.info.experiment_id,
        name=item.info.run_name or item.info.run_id,
        kind=tags.get("siclip.kind", ""),
        # MLflow has no status for a pruned run, so the platform records its own.
        state=tags.get("siclip.state") or _STATES.get(status, status),
        started=_time(item.info.start_time),
        ended=_time(item.info.end_time),
        tags=tags,
        params=active(item.data.params),
        metrics={metric_name(key): _value(value) for key, value in item.data.metrics.items()},
    )


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def _value(stored: float) -> float:
    """Restore infinities: MLflow's SQL stores save them as the largest float."""
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
        path = Path(unquote(tracking_uri.removeprefix("sqlite:///").partition("?")[0]))
        if not path.is_file():
            raise UserError(f"no MLflow database at {path}: check the tracking URI, or run a study first")
