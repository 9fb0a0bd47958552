"""Addresses of MLflow's web pages."""

from __future__ import annotations

from urllib.parse import quote, urlencode

from siclip_platform.metrics import stored_key

LOCAL = "http://127.0.0.1:5000"
"""Where ``mlflow ui`` serves a local store by default."""


def runs_page(url: str, experiment: str, study: str, metric: str, mode: str = "max") -> str:
    """The table of a study's runs, the best first. Without the type of work MLflow opens its pages for chats.

    Args:
        url: base address of the pages.
        experiment: id of the MLflow experiment.
        study: the study's name.
        metric: the metric to sort by.
        mode: ``max`` or ``min``.
    """
    # MLflow's grammar has no escape for a quote inside the other kind.
    mark = '"' if "'" in study else "'"
    query = {
        "workflowType": "machine_learning",
        "searchFilter": f"tags.`siclip.study` = {mark}{study}{mark}",
        "orderByKey": f"metrics.`{stored_key(metric)}`",
        "orderByAsc": "false" if mode != "min" else "true",
    }
    return f"{url.rstrip('/')}/#/experiments/{quote(experiment, safe='')}/runs?{urlencode(query, quote_via=quote)}"
