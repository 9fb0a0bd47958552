"""The searcher of an ablation: its settings in their order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher


class SettingsSearch(Searcher):
    """Ray Tune's searcher for an ablation: ``trial-000`` gets the first setting, ``trial-001`` the second, …"""

    def __init__(self, settings: list[dict[str, Any]], metric: str, mode: str) -> None:
        super().__init__(metric=metric, mode=mode)
        self.settings = settings

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        number = int(trial_id.rpartition("-")[2])
        return dict(self.settings[number]) if number < len(self.settings) else str(Searcher.FINISHED)

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        pass  # what was found does not change what comes next

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text(json.dumps(self.settings))

    def restore(self, checkpoint_path: str) -> None:
        self.settings = json.loads(Path(checkpoint_path).read_text())
