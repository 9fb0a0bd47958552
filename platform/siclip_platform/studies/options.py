"""What a search is asked to do, and where it writes."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siclip.errors import UserError
from siclip.models.registry import model_config
from siclip.models.sharing import parse_pattern
from siclip_platform.cluster.resources import Backend
from siclip_platform.storage import AnyPath

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Options:
    """Where a search reads and writes, and how much it does. Paths may be relative to the working folder.

    ``concurrent``: trainings at the same time, None for as many as fit. ``seeds``: trainings of each setting.
    ``rerun``: train also what the MLflow store has finished. ``register``: the best model's name in MLflow's
    registry. ``disk_budget``: bytes that a study's checkpoints may take. ``resume``: the study to go on with.
    ``space``: what is searched, a name in search_spaces/ or a file; ``sampler`` and ``scheduler`` come before its
    own. ``workers``: processes of a training under Ray Train, each with a share of the batch. ``checkpoints``: where
    those under Ray Train go and finished ones are copied to, None for ``out``. ``artifacts``: the URI where MLflow
    keeps a new experiment's files, None for ``out`` or what the server says.
    """

    out: Path
    data: AnyPath | None = None
    teacher: AnyPath | None = None
    tracking_uri: str | None = None
    address: str | None = None
    trials: int = 8
    concurrent: int | None = None
    seed: int = 0
    verbose: bool = False
    seeds: int = 1
    backend: Backend = "process"
    rerun: bool = False
    register: str | None = None
    disk_budget: int | None = None
    resume: str | None = None
    space: str = "wikd"
    sampler: str | None = None
    scheduler: str | None = None
    workers: int = 1
    checkpoints: AnyPath | None = None
    artifacts: str | None = None

    @property
    def dataset_folder(self) -> AnyPath:
        """``data``, or where the embedded default is built."""
        return (self.data or self.built_folder).resolve()

    @property
    def built_folder(self) -> Path:
        """Where the embedded default is built."""
        return self.out / "digit-scenes"

    @property
    def trainings(self) -> int:
        """Trainings under Ray Train at the same time: on a cluster that we join one, if nothing else is asked for."""
        return self.concurrent or (1 if self.joins else 2)

    @property
    def joins(self) -> bool:
        """Whether a cluster is joined that others have started."""
        return bool(self.address or os.environ.get("RAY_ADDRESS"))


def parse_bytes(text: str) -> int:
    """``20GB`` → bytes; units of 1000.

    Raises:
        UserError: it is not a number and a unit.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]B)\s*", text, re.IGNORECASE)
    if not found:
        raise UserError(f"{text!r} is not a size: write a number and KB, MB, GB or TB, for example 20GB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def command_line(arguments: Sequence[str]) -> str:
    """The command that began this process, for the report; without the tracking URI, which may hold a password."""
    program = Path(arguments[0])
    start = ["python", f"jobs/{program.name}"] if program.parent.name in ("jobs", "_jobs") else ["siclip-platform"]
    kept: list[str] = []
    rest = iter(arguments[1:])
    for argument in rest:
        if argument == "--tracking-uri":
            next(rest, None)
        elif not argument.startswith("--tracking-uri="):
            kept.append(argument)
    return shlex.join([*start, *kept])


def unused_name(name: str, taken: Collection[str], out: Path) -> str:
    """``name``, or with the lowest number behind it that is not ``taken`` and that the folder does not have yet."""
    number, candidate = 1, name
    while candidate in taken or (out / candidate).exists():
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def check_sharing(recipe_model: str) -> Any:
    """For `load_space`: what is wrong with a value of a sharing pattern for this model, else None."""
    config = model_config(recipe_model)
    blocks = {"model.image_sharing": config.image.layers[-1], "model.text_sharing": config.text.layers}

    def check(path: str, value: Any) -> str | None:
        if path in blocks and isinstance(value, str):
            try:
                parse_pattern(value, blocks[path])
            except UserError as error:
                return str(error)
        return None

    return check


def default_out() -> Path:
    """Where outputs go if no place is named: ``runs/`` here, or ``siclip-runs/`` at home inside a Ray job.

    A job submitted with a working dir runs in a copy that Ray deletes, so nothing may be left there.
    """
    here = Path.cwd()
    if "_ray_pkg_" in str(here):
        return Path.home() / "siclip-runs" / "tune_wikd"
    return here / "runs" / "tune_wikd"


WORKER_CPUS = 1.0
