"""The table of a rehearsal, and what it means for the whole job."""

from __future__ import annotations

import shlex

from rich.table import Table

from siclip_platform.display import Terminal
from siclip_platform.recipes.student import recipe_model
from siclip_platform.rehearsal.job import CPU_BATCH, Rehearsal
from siclip_platform.rehearsal.preparation import embedded_by
from siclip_platform.rehearsal.rehearse import Failure, Outcome
from siclip_platform.rehearsal.stages import Result
from siclip_platform.report.draw.values import byte_size

GIB = 2**30
MINUTE, HOUR, DAY = 60, 3600, 86400


def duration(seconds: float) -> str:
    """A time in one or two units that a person would use."""
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR:
        return f"{seconds / MINUTE:.0f} min"
    if seconds < 2 * DAY:
        return f"{seconds / HOUR:.1f} h"
    return f"{seconds / DAY:.1f} days"


def table(outcome: Outcome) -> Table:
    """Stage, time and memory here, and the time and the disk space of the whole job."""
    found = Table(box=None, pad_edge=False)
    for name in ("stage", "here", "memory", "GPU", "whole job", "disk"):
        found.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    found.add_column("", overflow="fold")
    for name, result in outcome.done.items():
        found.add_row(name, *_cells(result), result.note)
    failure = outcome.failure
    if failure:
        watched = failure.watched
        found.add_row(failure.stage, duration(watched.seconds), _gib(watched.memory_bytes), "", "", "", "FAILED")
    return found


def _cells(result: Result) -> tuple[str, ...]:
    whole = "as here" if result.whole_seconds is None else duration(result.whole_seconds)
    disk = byte_size(result.whole_bytes) if result.whole_bytes else ""
    return duration(result.seconds), _gib(result.memory_bytes), _gib(result.gpu_bytes), whole, disk


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count else ""


def show(outcome: Outcome, console: Terminal) -> None:
    """Print the table, the failure if there is one, and the next commands."""
    console.print(table(outcome))
    console.print("")
    for line in [*_failure(outcome, outcome.failure)] if outcome.failure else _next(outcome):
        console.print(line, soft_wrap=True)


def _failure(outcome: Outcome, failure: Failure) -> list[str]:
    when = f"after about {duration(outcome.whole_seconds)}" if outcome.done else "at its start"
    return [
        f"{failure.stage} failed; in the whole job it would have failed {when}:",
        f"  {failure.message}",
        f"What it printed: {failure.watched.log}",
    ]


def _next(outcome: Outcome) -> list[str]:
    job = outcome.job
    seconds = duration(outcome.whole_seconds)
    lines = [
        f"The whole job, {outcome.state.rows:,} pairs, takes about {seconds} on this machine and "
        f"{byte_size(outcome.state.bytes)} of disk beside its source."
    ]
    if not job.on_gpu and job.recipe.training.batch_size > CPU_BATCH:
        plan = shlex.join(["siclip-platform", "plan", "--recipe", job.named, "--pairs", str(outcome.state.rows)])
        lines.append(
            f"There is no GPU here: the training had batch {job.batch_size} instead of "
            f"{job.recipe.training.batch_size}. For the memory and hours of a card: {plan} --pipeline --card NAME"
        )
    search = shlex.join(["siclip-platform", "tune", "--recipe", job.named, *_changes(job)])
    return [
        *lines,
        "Every stage works. The whole job:",
        *(f"  {line}" for line in commands(outcome)),
        f"Before the training, settings can be searched on a part of the data: {search} --set data.limit=N",
        f"next: {commands(outcome)[0]}",
    ]


def commands(outcome: Outcome) -> list[str]:
    """The commands of the whole job, in order, with what was rehearsed."""
    job = outcome.job
    recipe, data = job.recipe, job.recipe.data
    lines = [["data", "import", *job.sources, data.path, *job.import_options]]
    for name in data.captions:
        if name == job.beside:
            continue
        if job.given_captions:
            lines.append(["data", "captions", data.path, "--name", name, *job.given_captions])
            continue
        captioner = ["--model", job.captioner, "--pretrained", job.pretrained, "--per-image", str(job.per_image)]
        lines.append(["data", "caption", data.path, "--name", name, *captioner])
    if data.teacher_embeddings and data.teacher_embeddings != job.beside:
        crops = [
            "--augmentations",
            str(job.augmentations),
            "--image-size",
            str(recipe_model(recipe).image.image_size),
        ]
        texts = [word for name in data.captions for word in ("--captions", name)]
        teacher = ["--teacher", embedded_by(recipe)]
        lines.append(["data", "embed", data.path, "--name", data.teacher_embeddings, *teacher, *crops, *texts])
    lines.append(["train", "--recipe", job.named, *_changes(job)])
    return [shlex.join(["siclip-platform", *words]) for words in lines]


def _changes(job: Rehearsal) -> list[str]:
    return [word for change in job.changes for word in ("--set", change)]
