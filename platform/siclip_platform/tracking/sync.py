"""Send the records that could not be sent while a study ran, or that the store has lost since."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from siclip.errors import UserError
from siclip_platform.tracking.reconcile import reconcile
from siclip_platform.tracking.sender import Sender
from siclip_platform.tracking.spool import FILE, Spool
from siclip_platform.tracking.store import EXPERIMENT, check_tracking, open_store


@dataclass(frozen=True)
class Synced:
    """The outcome of one spool.

    Attributes:
        folder: the spool's folder.
        waited: records that were not in the store before.
        waiting: records that have still not been sent.
        problems: records that MLflow refuses, each with the reason.
    """

    folder: Path
    waited: int
    waiting: int
    problems: list[str]

    @property
    def sent(self) -> int:
        return self.waited - self.waiting - len(self.problems)


def sync(folder: Path, tracking_uri: str | None = None, timeout_seconds: float | None = 300) -> list[Synced]:
    """Send every spool in a folder and its subfolders.

    Args:
        folder: a study's folder, or one above it.
        tracking_uri: another URI of the same store; default: the one that the spool was written for.
        timeout_seconds: limit for each spool; None waits until everything is sent.

    Raises:
        UserError: there is no spool, its store does not answer, or a process still writes to it.
    """
    spools = sorted(folder.rglob(FILE)) if folder.is_dir() else []
    if not spools:
        raise UserError(f"no {FILE} in {folder} or below it: name a study's folder, or the --out of its run")
    return [_sync(path.parent, tracking_uri, timeout_seconds) for path in spools]


def _sync(folder: Path, tracking_uri: str | None, timeout_seconds: float | None) -> Synced:
    spool = Spool(folder)
    try:
        uri = tracking_uri or spool.meta("uri")
        if uri is None:
            return Synced(folder, spool.waiting(), spool.waiting(), spool.problems())
        check_tracking(uri)
        experiment, artifacts = spool.meta("experiment") or EXPERIMENT, spool.meta("artifacts") or None
        client, experiment_id = open_store(uri, experiment, artifacts)
        spool.retry_refused()
        reconcile(spool, client, experiment_id)
        waited = spool.waiting()
        sender = Sender(spool, uri, experiment, artifacts, client)
        sender.found(client, experiment_id)
        sender.start()
        waiting = sender.flush(timeout_seconds)
        sender.stop()
        return Synced(folder, waited, waiting, spool.problems())
    finally:
        spool.close()
