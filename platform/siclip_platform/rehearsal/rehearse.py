"""Run the stages in order and stop at the first that fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from siclip.errors import UserError
from siclip_platform.recipes.yaml_file import dump_yaml
from siclip_platform.rehearsal.job import Rehearsal
from siclip_platform.rehearsal.stages import Result, Stage, StageFailed, State, stages
from siclip_platform.rehearsal.training import RECIPE
from siclip_platform.rehearsal.watched import Watched
from siclip_platform.rehearsal.worker import JOB
from siclip_platform.storage.atomic import write_text_atomically


@dataclass(frozen=True)
class Failure:
    """The stage that failed.

    Attributes:
        stage: its name.
        message: why, and what to do.
        watched: its process.
    """

    stage: str
    message: str
    watched: Watched


@dataclass(frozen=True)
class Outcome:
    """A rehearsal that has ended.

    Attributes:
        job: what was rehearsed.
        done: stage → result, of those that succeeded.
        failure: of the one that did not.
        state: what the stages found out.
    """

    job: Rehearsal
    done: dict[str, Result]
    failure: Failure | None
    state: State

    @property
    def whole_seconds(self) -> float:
        """The whole job, about, on this machine; until the failure if there is one."""
        results = self.done.values()
        return sum(each.seconds if each.whole_seconds is None else each.whole_seconds for each in results)


def prepare_folder(job: Rehearsal) -> None:
    """Make the scratch folder with what the stages' processes read; an earlier rehearsal in it is removed.

    Raises:
        UserError: the folder contains something else, or cannot be made.
    """
    folder = job.folder
    if folder.exists() and any(folder.iterdir()):
        if not (folder / JOB).is_file():
            raise UserError(f"{folder} is not empty and not of a rehearsal: name another --out")
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"scratch folder {folder} cannot be made: {error.strerror}; name another --out") from None
    write_text_atomically(folder / JOB, json.dumps(job.model_dump(mode="json"), indent=2) + "\n")
    write_text_atomically(folder / RECIPE, dump_yaml(job.small_recipe().model_dump(mode="json")))


def rehearse(
    job: Rehearsal, begin: Callable[[str], None] = lambda name: None, chosen: Sequence[Stage] | None = None
) -> Outcome:
    """Rehearse a job.

    Args:
        job: with a folder from `prepare_folder`.
        begin: called with the name of each stage when it begins.
        chosen: the stages; default: all that the recipe needs.
    """
    done: dict[str, Result] = {}
    state = State(rows=job.whole_rows)
    for stage in chosen or list(stages(job)):
        begin(stage.name)
        try:
            done[stage.name] = stage.run(job, state)
        except StageFailed as error:
            return Outcome(job, done, Failure(stage.name, str(error), error.watched), state)
    return Outcome(job, done, None, state)


def clear(folder: Path) -> None:
    """Remove the scratch folder."""
    shutil.rmtree(folder)
