"""MLflow: the driver is the only writer, through a spool on disk (`spool`, `sender`).

A study is a run. Its trials, teacher, best and control are nested under it, and a trial's seed runs under the trial.
Tags: ``siclip.kind`` (study, trial, seed, teacher, best, control, confirm, train, evaluation), ``siclip.study``,
``siclip.study_type`` (search, ablation), ``siclip.state`` (running, completed, pruned, failed, interrupted),
``siclip.trial``, ``siclip.seed``, ``siclip.rung``, ``siclip.identity``, ``siclip.reused_from``,
``siclip.recipe_hash``, ``siclip.dataset_hash``, ``siclip.teacher_hash``, ``siclip.git_commit``, ``siclip.reason``.
"""

from __future__ import annotations

from siclip_platform.tracking.store import (
    EXPERIMENT,
    check_store_exists,
    check_tracking,
    default_tracking_uri,
    git_commit,
)
from siclip_platform.tracking.sync import Synced, sync
from siclip_platform.tracking.tracker import RunKind, RunState, TrackedRun, Tracker

__all__ = [
    "EXPERIMENT",
    "RunKind",
    "RunState",
    "Synced",
    "TrackedRun",
    "Tracker",
    "check_store_exists",
    "check_tracking",
    "default_tracking_uri",
    "git_commit",
    "sync",
]
