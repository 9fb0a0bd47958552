"""Optuna's storage in a file, on a disk that may be full for a moment."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import optuna

from siclip_platform.storage.full_disk import when_there_is_space


def _waiting(name: str) -> Callable[..., Any]:
    write = getattr(optuna.storages.RDBStorage, name)

    @functools.wraps(write)
    def method(self: Any, *args: Any, **named: Any) -> Any:
        # Each of these methods is one transaction, so nothing was written when it raises.
        return when_there_is_space(lambda: write(self, *args, **named), self.url)

    return method


class WaitingStorage(optuna.storages.RDBStorage):
    """An `optuna.storages.RDBStorage` that waits while its disk is full."""

    create_new_trial = _waiting("create_new_trial")
    set_study_user_attr = _waiting("set_study_user_attr")
    set_study_system_attr = _waiting("set_study_system_attr")
    set_trial_param = _waiting("set_trial_param")
    set_trial_state_values = _waiting("set_trial_state_values")
    set_trial_intermediate_value = _waiting("set_trial_intermediate_value")
    set_trial_user_attr = _waiting("set_trial_user_attr")
    set_trial_system_attr = _waiting("set_trial_system_attr")
