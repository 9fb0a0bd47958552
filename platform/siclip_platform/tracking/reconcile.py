"""A spool and its store after one of them was lost: each gets from the other what it lacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from siclip_platform.tracking.sender import PARENT_TAG, SPOOL_KEY
from siclip_platform.tracking.spool import Op, Spool

OPEN = ("RUNNING", "SCHEDULED")
BATCH = 1000
"""Metrics in one event: MLflow's limit for one request."""


@dataclass(frozen=True)
class Reconciled:
    """What was done.

    Attributes:
        adopted: runs that the store had and the spool did not.
        sent_again: runs that the spool has and the store has lost.
    """

    adopted: int = 0
    sent_again: int = 0


def reconcile(spool: Spool, client: Any, experiment: str, study: str | None = None) -> Reconciled:
    """Send again the runs that the store has lost, and adopt those of a study that the spool does not know.

    Args:
        spool: may be empty, on a machine that has not begun the study or after the file was lost.
        client: an ``MlflowClient`` of a store that answers.
        experiment: the id of the experiment.
        study: the key of a study whose runs are adopted; None adopts none.
    """
    # Before the search: the sender may create a run in between.
    known = spool.run_ids()
    heads = {key.partition("/")[0] for key in known} | ({study} if study else set())
    stored = [run for head in sorted(heads) for run in _runs_of(client, experiment, head)]
    ids = {run.info.run_id for run in stored}
    lost = [key for key, run_id in known.items() if run_id not in ids]
    spool.send_again(lost)
    keys = {run.info.run_id: run.data.tags[SPOOL_KEY] for run in stored}
    new: dict[str, Any] = {}
    for run in stored:
        key = keys[run.info.run_id]
        mine = study is not None and (key == study or key.startswith(f"{study}/"))
        if mine and not spool.knows(key) and run.info.lifecycle_stage == "active":
            new.setdefault(key, run)
    for key, run in new.items():
        spool.adopt(key, run.info.run_id, *_events(client, run, keys))
    return Reconciled(len(new), len(lost))


def _runs_of(client: Any, experiment: str, head: str) -> Iterable[Any]:
    """The runs whose keys begin with ``head``, the oldest first; deleted ones too, which are not to be made again."""
    from mlflow.entities import ViewType

    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment],
            f"tags.`{SPOOL_KEY}` LIKE '{head}%'",
            run_view_type=ViewType.ALL,
            order_by=["attributes.start_time ASC", "run_id"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def _events(client: Any, run: Any, keys: Mapping[str, str]) -> list[tuple[Op, dict[str, Any]]]:
    """The events that lead to a run as the store has it, without its files."""
    tags = {name: value for name, value in run.data.tags.items() if name.startswith("siclip.") and name != SPOOL_KEY}
    create = {
        "name": run.info.run_name,
        "time": run.info.start_time,
        "parent": keys.get(run.data.tags.get(PARENT_TAG, "")),
        "tags": tags,
    }
    events: list[tuple[Op, dict[str, Any]]] = [
        ("create", create),
        ("params", {"params": list(run.data.params.items())}),
    ]
    points = [
        (point.key, point.value, point.timestamp, point.step)
        for name in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, name)
    ]
    events += [("metrics", {"metrics": points[first : first + BATCH]}) for first in range(0, len(points), BATCH)]
    if run.info.status not in OPEN:
        state = tags.get("siclip.state", "")
        events.append(("end", {"status": run.info.status, "time": run.info.end_time, "state": state}))
    return events
