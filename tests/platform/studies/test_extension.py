"""A training at a constant rate is resumed with more steps, or refused before anything starts."""

from __future__ import annotations

import importlib.abc
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from siclip.errors import UserError
from siclip_platform.cli.studies import _recipe_differences
from siclip_platform.recipes.digits import digits_student
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.studies.extension import extended
from siclip_platform.studies.names import Names
from siclip_platform.studies.options import Options
from siclip_platform.studies.starting_point import StartingPoint
from siclip_platform.studies.study_file import StudyFile
from siclip_platform.training.ray_train import SavedState, saved_state

CONSTANT = {"training.schedule": "constant", "training.warmup_share": 0.1}


class Runs:
    """Stands for what Ray Train has kept of a study's runs: run → steps done."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}

    def __call__(self, name: str, storage: Any) -> SavedState | None:
        return SavedState(self.done[name], f"state of {name}") if name in self.done else None


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    runs = Runs()
    monkeypatch.setattr("siclip_platform.training.ray_train.saved_state", runs)
    return runs


def study(out: Path, base: Recipe) -> StudyFile:
    Names(out / "train").stem("train", base)
    return StudyFile(name="train", kind="train", key="k", base=base, options=Options(out=out))


def test_more_steps_and_a_cool_down_begin_with_the_newest_state_that_fits(tmp_path: Path, runs: Runs) -> None:
    base = digits_student(tmp_path, steps=100).updated(CONSTANT)
    begun = study(tmp_path, base)
    runs.done["train"] = 100
    assert extended(begun, base) is begun
    cooled = extended(begun, base.updated({"training.steps": 130, "training.schedule": "constant_cooldown"}))
    assert (cooled.base.training.steps, cooled.base.training.warmup, cooled.earlier) == (130, 10, (base,))
    # The cool-down has lowered the rate, so a longer run leaves from the state before it.
    stem = Names(cooled.folder).stem("train", cooled.base)
    runs.done[stem] = 130
    longer = extended(cooled, cooled.base.updated({"training.steps": 200}))
    assert longer.earlier == (base, cooled.base) and longer.base.training.warmup == 10
    del runs.done["train"]
    with pytest.raises(UserError, match=rf"{stem} has done 130 steps, 105 of which are the same"):
        extended(cooled, cooled.base.updated({"training.steps": 200}))


def test_what_needs_its_length_is_refused(tmp_path: Path, runs: Runs) -> None:
    runs.done["train"] = 100
    annealed = {"loss.pair_matching": 0.5, "loss.negatives": "annealed"}
    base = digits_student(tmp_path, steps=100).updated({**CONSTANT, **annealed})
    with pytest.raises(UserError, match=r"loss\.negatives annealed follows the share of the steps that are done"):
        extended(study(tmp_path, base), base.updated({"training.steps": 130}))
    short = digits_student(tmp_path, steps=100).updated(CONSTANT)
    with pytest.raises(UserError, match="has done 100 steps, 80 of which are the same"):
        extended(study(tmp_path / "other", short), short.updated({"training.steps": 80}))


def test_only_the_length_may_change_and_only_at_a_constant_rate(tmp_path: Path, digits: Path) -> None:
    constant, cosine = (
        study(tmp_path / name, digits_student(digits).updated(changes))
        for name, changes in (("constant", CONSTANT), ("cosine", {}))
    )
    more = {"changes": ["training.epochs=30", "training.learning_rate=0.1"]}
    assert [each.option for each in _recipe_differences(constant, more)] == ["training.learning_rate"]
    assert {each.option for each in _recipe_differences(cosine, more)} == {
        "training.steps",
        "training.learning_rate",
    }


def test_a_run_that_never_was_has_no_state(tmp_path: Path) -> None:
    assert saved_state("train", tmp_path) is None
    (tmp_path / "train").mkdir()
    assert saved_state("train", tmp_path) is None


def test_a_study_begins_with_steps(digits: Path, tmp_path: Path) -> None:
    recipe = digits_student(digits).updated({"training.epochs": 4, "training.batch_size": 32})
    start = StartingPoint.new(Options(out=tmp_path, data=digits), recipe)
    assert (start.base.training.steps, start.base.training.epochs) == (30, 0)


def test_ray_is_imported_with_its_settings(tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray reads RAY_AUTH_MODE when it is imported, and a saved state is read before a cluster is joined."""
    monkeypatch.setenv("RAY_AUTH_MODE", "none yet")
    monkeypatch.delenv("RAY_AUTH_MODE")
    imported: dict[str, str | None] = {}

    class Recorder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
        """Stands for Ray's packages."""

        def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
            return ModuleSpec(name, self, is_package=True) if name in ("ray", "ray.train") else None

        def exec_module(self, module: ModuleType) -> None:
            imported[module.__name__] = os.environ.get("RAY_AUTH_MODE")

    for name in ("ray", "ray.train"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))  # so that it is put back
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Recorder(), *sys.meta_path])
    runs.done["train"] = 100
    base = digits_student(tmp_path, steps=100).updated(CONSTANT)
    extended(study(tmp_path, base), base.updated({"training.steps": 130}))
    assert imported == {"ray": "token", "ray.train": "token"}
