"""What a study's folder keeps so that it can be gone on with without being described again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from siclip.config import Config
from siclip.errors import UserError
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.storage import AnyPath, copy_file
from siclip_platform.storage.atomic import write_text_atomically

if TYPE_CHECKING:
    from siclip_platform.studies.options import Options

FILE = "study.json"
SPACE = "space.yaml"
"""Of a population: a recipe for each member, with its schedule."""


class StudyFile(Config):
    """The description of a study as it was begun; ``options``: what else the command that began it has to know.

    ``kind``: search, ablation or train. ``key``: of its MLflow run.
    """

    name: str
    kind: str = "search"
    key: str
    base: Recipe
    trials: int = Field(ge=1)
    seeds: int = Field(1, ge=1)
    concurrent: int | None = None
    search_seed: int = 0
    backend: str = "process"
    disk_budget: int | None = None
    rerun: bool = False
    register_as: str | None = None
    tracking_uri: str
    data: str | None = None
    checkpoints: str | None = None
    artifacts: str | None = None
    sampler: str | None = None
    scheduler: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def of(
        cls, options: Options, *, name: str, kind: str, key: str, base: Recipe, uri: str, more: Mapping[str, Any]
    ) -> StudyFile:
        """That of a study which is begun with these options; ``uri``: of the tracking store, without a password."""
        return cls(
            name=name, kind=kind, key=key, base=base, trials=options.trials, seeds=options.seeds,
            concurrent=options.concurrent, search_seed=options.seed, backend=options.backend,
            disk_budget=options.disk_budget, rerun=options.rerun, register_as=options.register, tracking_uri=uri,
            data=str(options.data) if options.data else None, sampler=options.sampler, scheduler=options.scheduler,
            checkpoints=str(options.checkpoints) if options.checkpoints else None, artifacts=options.artifacts,
            options=dict(more),
        )  # fmt: skip

    def check_same(self, base: Recipe, trials: int, grows: bool) -> None:
        """Whether the study can be gone on with around this recipe to so many trials; ``grows``: to more than it had.

        Raises:
            UserError: it was begun around another recipe, or it cannot grow.
        """
        if not grows and self.trials != trials:
            raise UserError(
                f"study {self.name} is a population of {self.trials}, which trains side by side: go on with as "
                f"many, not with --trials {trials}, or begin a new study"
            )
        if self.base != base:
            now, before = base.flat(), self.base.flat()
            changed = ", ".join(path for path in now if now[path] != before.get(path))
            raise UserError(f"study {self.name} was begun around another recipe ({changed}): go on with the same one")

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_text_atomically(folder / FILE, json.dumps(self.model_dump(mode="json"), indent=2) + "\n")


def fetch_study(folder: Path, checkpoints: AnyPath) -> None:
    """Take a study's description back from where its checkpoints are, for a machine that has not begun it.

    Raises:
        UserError: it is not there, or the store does not answer.
    """
    kept = checkpoints / folder.name / FILE
    if not kept.is_file():
        raise UserError(f"no study {folder.name!r} in {folder.parent}, nor at {kept}: correct the name or the place")
    folder.mkdir(parents=True, exist_ok=True)
    copy_file(kept, folder / FILE)


def read_study(folder: Path) -> StudyFile:
    """Read a study's folder.

    Raises:
        UserError: there is no study in it, or it is of another version.
    """
    path = folder / FILE
    if not path.is_file():
        beside = sorted(item.parent.name for item in folder.parent.glob(f"*/{FILE}"))
        there = f"there are {', '.join(beside)}" if beside else "there is none in this --out"
        raise UserError(
            f"no study {folder.name!r} in {folder.parent}: name it and the --out it was begun with; {there}"
        )
    try:
        return StudyFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, item['loc'])) or '(file)'}: {item['msg']}" for item in error.errors()]
        raise UserError(f"{path} does not describe a study of this version:\n" + "\n".join(lines)) from None
