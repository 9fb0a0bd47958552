"""Names of studies in a store: each is taken once, also by studies that begin together in different folders."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

KIND, STUDY = "siclip.kind", "siclip.study"
CLAIM, CLAIMANT = "siclip.claim", "siclip.claimant"
CLAIM_SECONDS = 3600
"""How long a claim counts: by then the study has its own run, or never began."""


def names_in(client: Any, experiment: str) -> set[str]:
    """Names of the studies in the experiment with this id, with those that are claimed."""
    studies = {run.data.tags.get(STUDY, "") for run in _search(client, experiment, f"tags.`{KIND}` = 'study'", False)}
    return studies | {name for name, _ in _claims(client, experiment)}


def claim_name(client: Any, experiment: str, name: str) -> bool:
    """Claim the name of a new study, whose own run begins later.

    Of those who claim a name together at most one gets it; if nobody does, wait for a random time and try again.

    Args:
        client: an ``MlflowClient``.
        experiment: the id of the experiment.
        name: a name that was not in `names_in`.
    """
    mine = uuid.uuid4().hex
    tags = {KIND: "claim", CLAIM: name, CLAIMANT: mine}
    run = client.create_run(experiment, run_name=name, tags=tags)
    # Read after the own claim was written: of two who claim together at least one sees the other.
    alone = all(claimant == mine for claimed, claimant in _claims(client, experiment) if claimed == name)
    if not alone:
        client.set_tag(run.info.run_id, CLAIM, "")
    # A deleted run is still found by its tag, but MLflow's pages and our reports do not show it.
    client.delete_run(run.info.run_id)
    return alone


def _claims(client: Any, experiment: str) -> list[tuple[str, str]]:
    since = int((time.time() - CLAIM_SECONDS) * 1000)
    query = f"tags.`{KIND}` = 'claim' AND attributes.start_time > {since}"
    found = _search(client, experiment, query, True)
    return [(run.data.tags[CLAIM], run.data.tags[CLAIMANT]) for run in found if run.data.tags.get(CLAIM)]


def _search(client: Any, experiment: str, query: str, deleted: bool) -> Iterator[Any]:
    from mlflow.entities import ViewType

    view, token = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY, None
    while True:
        page = client.search_runs([experiment], query, run_view_type=view, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
