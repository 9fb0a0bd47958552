"""Which files and runs in a study's folder belong to which recipe."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from siclip_platform.recipes.recipe import Recipe
from siclip_platform.storage.atomic import write_text_atomically

FILE = "trained.json"


class Names:
    """``folder/trained.json``: the recipes that each name was used for, the newest last. Threads may share it.

    A recipe has a stem, which names its files and runs: the name for the first recipe, else with the recipe's hash.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._lock = threading.Lock()

    def stem(self, name: str, recipe: Recipe) -> str:
        """The recipe's stem; the name now stands for this recipe."""
        with self._lock:
            names = self._read()
            known = names.setdefault(name, {})
            stem = known.pop(recipe.hash, f"{name}-{recipe.hash}" if known else name)
            known[recipe.hash] = stem
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomically(self.path, json.dumps(names, indent=2) + "\n")
        return stem

    def known(self, recipe: Recipe) -> str | None:
        """The stem of a recipe that some name stood for; None if there was none."""
        return next((stems[recipe.hash] for stems in self._read().values() if recipe.hash in stems), None)

    def superseded(self, name: str) -> list[str]:
        """Stems of the recipes that the name stood for before."""
        return list(self._read().get(name, {}).values())[:-1]

    def _read(self) -> dict[str, dict[str, str]]:
        if not self.path.is_file():
            return {}
        names: dict[str, dict[str, str]] = json.loads(self.path.read_text())
        return names
