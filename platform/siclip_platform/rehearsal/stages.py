"""The stages of a job in their order, each run in processes of its own."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from siclip.errors import UserError
from siclip_platform.rehearsal import training
from siclip_platform.rehearsal.job import Rehearsal
from siclip_platform.rehearsal.preparation import Measured
from siclip_platform.rehearsal.watched import Watched, watch
from siclip_platform.rehearsal.worker import measured_file

WORKER = ("-m", "siclip_platform.rehearsal.worker")


@dataclass(frozen=True)
class Result:
    """A stage that was rehearsed.

    Attributes:
        seconds: that it took here, with the start of its processes.
        memory_bytes: see `Watched`.
        gpu_bytes: peak of the GPU memory that torch reserved; 0: none, or not known.
        whole_seconds: the whole job's, about, on this machine; None: as here.
        whole_bytes: that the whole job's stage adds to the dataset, about.
        note: for people.
    """

    seconds: float
    memory_bytes: int
    gpu_bytes: int = 0
    whole_seconds: float | None = None
    whole_bytes: int = 0
    note: str = ""


class StageFailed(Exception):
    """A stage ended with an error; the message is the stage's own."""

    def __init__(self, message: str, watched: Watched) -> None:
        super().__init__(message)
        self.watched = watched


@dataclass
class State:
    """What a stage leaves for those after it.

    Attributes:
        rows: of the whole dataset, about; before the import those of the sources.
        bytes: of the whole dataset and of what is stored beside it so far, about.
        saved: step of the checkpoint that the killed training left.
        killed: when it was killed, in seconds since 1970.
    """

    rows: int
    bytes: int = 0
    saved: int = 0
    killed: float = 0


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: for people.
        run: rehearses it.

    ``run`` raises `StageFailed`.
    """

    name: str
    run: Callable[[Rehearsal, State], Result] = field(repr=False)


def stages(job: Rehearsal) -> Iterator[Stage]:
    """The stages that the recipe needs."""
    data = job.recipe.data
    yield Stage("recipe and teacher", partial(_prepare, ("recipe",)))
    yield Stage("import", partial(_prepare, ("import",)))
    for name in data.captions:
        if name == job.beside:
            continue
        run = partial(_given_captions, name) if job.given_captions else partial(_prepare, ("captions", name))
        yield Stage(f"captions {name}", run)
    if data.teacher_embeddings and data.teacher_embeddings != job.beside:
        name = data.teacher_embeddings
        yield Stage(f"embeddings {name}", partial(_prepare, ("embeddings", name)))
    yield Stage("training, killed", _train)
    yield Stage("training, resumed", _resume)
    yield Stage("evaluation", _evaluate)
    yield Stage("export", _export)
    yield Stage("report", _report)


def _prepare(words: tuple[str, ...], job: Rehearsal, state: State) -> Result:
    before = stored_bytes(job.dataset)
    watched = watch((*WORKER, str(job.folder), *words), job.folder / f"{'-'.join(words)}.log")
    _check(watched)
    found = Measured.model_validate_json(measured_file(job.folder, *words).read_bytes())
    whole = None
    if found.rows_per_second:
        whole = state.rows / found.rows_per_second / found.workers
    if found.kept:
        state.rows = round(state.rows * found.kept / found.rows)
    grown = stored_bytes(job.dataset) - before
    added = round(grown * state.rows / (found.kept or found.rows)) if grown else 0
    state.bytes += added
    check_disk(job, state, watched)
    return Result(watched.seconds, watched.memory_bytes, found.gpu_bytes, whole, added, found.note)


def check_disk(job: Rehearsal, state: State, watched: Watched) -> None:
    """Check that the whole dataset, and what is stored beside it so far, fits on its disk.

    Raises:
        StageFailed: it does not.
    """
    data = job.recipe.data.path
    free = free_bytes(data)
    if free is not None and state.bytes > free:
        text = (
            f"the whole job stores about {state.bytes / 1e9:,.0f} GB in {data}, whose disk has {free / 1e9:,.0f} GB "
            "for it: name another data.path, or store less (--size, --quality, fewer --augmentations)"
        )
        raise StageFailed(text, watched)


def stored_bytes(folder: Path) -> int:
    """Of the files in a folder, 0 if there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*.parquet"))


def free_bytes(data: str) -> int | None:
    """What the disk of a dataset's folder has left, with what is in the folder already; None for a URI."""
    if "://" in data:
        return None
    folder = Path(data).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free + stored_bytes(folder)


def _given_captions(name: str, job: Rehearsal, state: State) -> Result:
    # the files are read as a whole, whatever the dataset has of them
    words = ("data", "captions", str(job.dataset), "--name", name, *job.given_captions)
    return _command(job, f"captions-{name}", *words)


def _train(job: Rehearsal, state: State) -> Result:
    watched = training.train_and_kill(job)
    if not watched.killed:
        _check(watched)
        raise StageFailed(f"the {job.steps} steps ended before they could be interrupted: raise --steps", watched)
    state.saved, state.killed = training.saved_step(job), time.time()
    return Result(watched.seconds, watched.memory_bytes, note=f"killed after the checkpoint of step {state.saved}")


def _resume(job: Rehearsal, state: State) -> Result:
    watched = training.resume(job)
    _check(watched)
    try:
        speed, gpu_bytes = training.check_resumed(job, state.saved, state.killed)
    except UserError as error:
        raise StageFailed(str(error), watched) from None
    samples = job.recipe.training.steps * job.recipe.training.batch_size
    note = f"went on at step {state.saved + 1}; {speed:,.0f} pairs/s at batch {job.batch_size}"
    return Result(watched.seconds, watched.memory_bytes, gpu_bytes, samples / speed, note=note)


def _evaluate(job: Rehearsal, state: State) -> Result:
    words = ("evaluate", str(training.checkpoint(job)), "--data", str(job.dataset), "--split", "validation")
    return _command(job, "evaluate", *words)


def _export(job: Rehearsal, state: State) -> Result:
    words = ("model", "export", str(training.checkpoint(job)), str(job.folder / "onnx"), "--format", "onnx")
    return _command(job, "export", *words)


def _report(job: Rehearsal, state: State) -> Result:
    return _command(job, "report", "report", "--out", str(job.folder / training.OUT))


def _command(job: Rehearsal, name: str, *words: str) -> Result:
    watched = watch((*training.COMMAND, *words), job.folder / f"{name}.log")
    _check(watched)
    return Result(watched.seconds, watched.memory_bytes)


def _check(watched: Watched) -> None:
    if watched.code:
        raise StageFailed(watched.message, watched)
