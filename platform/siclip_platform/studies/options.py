"""What a study is asked to do: one model for the command line, the jobs and the study's file."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer

from siclip.config import Config
from siclip.errors import UserError
from siclip.models.registry import base_of, model_config
from siclip.models.sharing import parse_pattern
from siclip_platform.cluster.resources import Backend
from siclip_platform.storage import AnyPath, absolute_model, as_path
from siclip_platform.storage.sizes import parse_bytes

WORKER_CPUS = 1.0


def _absolute(value: Any) -> Any:
    # Absolute because workers and a later --resume run in other working folders.
    return None if value is None else as_path(value).resolve()


def _absolute_model(value: Any) -> Any:
    return None if value is None else absolute_model(value)


def _artifact_uri(value: Any) -> Any:
    path = _absolute(value or None)
    return path.as_uri() if isinstance(path, Path) else path and str(path)


def _size(value: Any) -> Any:
    return parse_bytes(value) if isinstance(value, str) else value


AbsolutePath = Annotated[
    AnyPath | None, BeforeValidator(_absolute), PlainSerializer(lambda path: path and str(path), when_used="json")
]


class Options(Config):
    """What a study is asked to do, and where it reads and writes. Paths are made absolute.

    Attributes:
        out: folder for everything that is written. Not stored in the study's file, like the next three.
        resume: name of the study to resume.
        address: the Ray cluster to join.
        verbose: show Ray's messages.
        name: name of a study that is not a search or an ablation, which are named by their files.
        data: the dataset; None: digit scenes in ``out``, built if missing.
        teacher: the teacher's checkpoint, or ``open_clip:NAME:TAG``; None: none, or one that is trained.
        tracking_uri: the MLflow store; None: sqlite in ``out``. The study's file stores it without a password.
        trials: number of trials in total.
        seeds: trainings per setting.
        seed: seed of the search, and of the shipped recipes where none is given.
        concurrent: trainings at the same time; None: as many as fit.
        workers: processes of one training under Ray Train; each takes a share of every batch.
        backend: how trials run.
        rerun: train again what the MLflow store has already.
        confirm: fresh seeds for the final comparison; 0: no comparison.
        register_as: name of the best model in MLflow's registry.
        disk_budget: bytes available to the study's checkpoints; text such as ``20GB`` is converted.
        space: name or file of the search space.
        sampler: overrides the space's.
        scheduler: overrides the space's.
        ablation: name or file of the ablation.
        settings: names of the ablation's settings that are trained, with the baseline; empty: all.
        checkpoints: where Ray Train writes checkpoints and finished models are copied to; None: in ``out``.
        artifacts: URI where MLflow stores the files of a new experiment; None: in ``out``, or the server's choice.
    """

    out: Annotated[Path, BeforeValidator(_absolute)] = Field(exclude=True)
    resume: str | None = Field(None, exclude=True)
    address: str | None = Field(None, exclude=True)
    verbose: bool = Field(False, exclude=True)
    name: str = "train"
    data: AbsolutePath = None
    teacher: Annotated[str | None, BeforeValidator(_absolute_model)] = None
    tracking_uri: str | None = None
    trials: int = Field(8, ge=1, le=1_000_000)
    seeds: int = Field(1, ge=1, le=1000)
    seed: int = Field(0, ge=0, lt=2**32)
    concurrent: int | None = Field(None, ge=1, le=10_000)
    workers: int = Field(1, ge=1, le=10_000)
    backend: Backend = "process"
    rerun: bool = False
    confirm: int = Field(0, ge=0, le=1000)
    register_as: str | None = None
    disk_budget: Annotated[int | None, BeforeValidator(_size)] = None
    space: str = "wikd"
    sampler: str | None = None
    scheduler: str | None = None
    ablation: str | None = None
    settings: tuple[str, ...] = ()
    checkpoints: AbsolutePath = None
    artifacts: Annotated[str | None, BeforeValidator(_artifact_uri)] = None

    @property
    def dataset_folder(self) -> AnyPath:
        """``data``, or where the digit scenes are built."""
        return self.data or self.built_folder

    @property
    def built_folder(self) -> Path:
        """Where the digit scenes are built."""
        return self.out / "digit-scenes"

    @property
    def trainings(self) -> int:
        """Trainings under Ray Train at the same time; the default is one on a cluster that others started."""
        return self.concurrent or (1 if self.joins else 2)

    @property
    def joins(self) -> bool:
        """Whether Ray joins a running cluster instead of starting its own."""
        return bool(self.address or os.environ.get("RAY_ADDRESS"))


def check_study_name(name: str, option: str = "the study's name") -> None:
    """Check a study's name, which becomes a folder in the output folder.

    Args:
        name: from the command line, or of a space or an ablation.
        option: what gave the name, for the message.

    Raises:
        UserError: a folder of this name would be elsewhere, hidden, or cannot be created.
    """
    if not re.fullmatch(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]{0,99}", name):
        raise UserError(
            f"{option} {name!r} cannot name a folder in --out: write 1 to 100 characters without / and \\, the first "
            "not a dot"
        )


def unused_name(name: str, taken: Collection[str], out: Path) -> str:
    """``name``, with the lowest number appended for which it is neither ``taken`` nor a folder in ``out``."""
    number, candidate = 1, name
    while candidate in taken or (out / candidate).exists():
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def check_sharing(recipe_model: str) -> Any:
    """A ``check_value`` for `load_space`: why a sharing pattern does not fit this model, or None."""
    config = model_config(recipe_model)
    blocks = {"model.image_sharing": config.image.layers[-1], "model.text_sharing": config.text.layers}

    # The default space has patterns of four blocks.
    shipped = base_of(recipe_model).startswith("mobileclip2-")
    other = "; --space wikd_siclip2 and sharing_patterns_siclip2 have patterns for this model" if shipped else ""

    def check(path: str, value: Any) -> str | None:
        if path in blocks and isinstance(value, str):
            try:
                parse_pattern(value, blocks[path])
            except UserError as error:
                return f"{error}{other}"
        return None

    return check


def default_out(job: str) -> Path:
    """Where a job writes by default: ``runs/JOB`` here, or ``~/siclip-runs/JOB`` inside a Ray job.

    A job submitted with a working directory runs in a copy that Ray deletes, so nothing may be left there.
    """
    here = Path.cwd()
    if "_ray_pkg_" in str(here):
        return Path.home() / "siclip-runs" / job
    return here / "runs" / job
