"""Which recipes a study's teacher, best and control were trained with: another one is another training."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from siclip_platform.recipes.recipe import Recipe
from siclip_platform.storage.atomic import write_text_atomically

FILE = "trained.json"


class Trained:
    """``folder/trained.json``: for each name the recipes that it stood for, the newest last. Threads may share it.

    Each has a stem, by which its files and runs are called: the name for the first, else with the recipe's hash.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._lock = threading.Lock()

    def stem(self, name: str, recipe: Recipe) -> str:
        """From now on the name stands for this recipe."""
        with self._lock:
            names = self._read()
            known = names.setdefault(name, {})
            stem = known.pop(recipe.hash, f"{name}-{recipe.hash}" if known else name)
            known[recipe.hash] = stem
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomically(self.path, json.dumps(names, indent=2) + "\n")
        return stem

    def superseded(self, name: str) -> list[str]:
        """Stems that the name stood for before."""
        return list(self._read().get(name, {}).values())[:-1]

    def _read(self) -> dict[str, dict[str, str]]:
        if not self.path.is_file():
            return {}
        names: dict[str, dict[str, str]] = json.loads(self.path.read_text())
        return names
