"""``siclip-platform plan``."""

from __future__ import annotations

import json
import os
import shlex
import warnings
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siclip_platform.cli.experiments import NAME_OR_FILE

if TYPE_CHECKING:
    from siclip_platform.plan.job import Job, TeacherSource
    from siclip_platform.recipes.recipe import Recipe


class TeacherChoice(StrEnum):
    none = "none"
    online = "online"
    shared = "shared"
    stored = "stored"


SOURCES: dict[TeacherChoice, TeacherSource] = {
    TeacherChoice.none: "none",
    TeacherChoice.online: "online",
    TeacherChoice.shared: "shared trunk",
    TeacherChoice.stored: "stored",
}


class Numbers(StrEnum):
    bf16 = "bf16"
    int8 = "int8"


def plan(
    recipe: Annotated[
        str | None, typer.Option(metavar=NAME_OR_FILE, help="A recipe; default: siclip-s0-cc12m-syn.")
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10**15,
            help="Pairs of the dataset; default: of the recipe's if it is here, else what is left of CC12M.",
        ),
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(min=0.01, max=1e6, help="Passes over the dataset; default: the length of the recipe."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="Overrides the recipe's batch size; of all cards together.")
    ] = None,
    micro_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Pairs whose activations are kept at a time (gradient caching).")
    ] = None,
    teacher: Annotated[
        TeacherChoice | None,
        typer.Option(help="Where the targets of distillation come from; default: what the recipe says."),
    ] = None,
    augmentations: Annotated[int, typer.Option(min=1, help="Stored augmentations per image.")] = 10,
    captions: Annotated[int, typer.Option(min=1, help="Stored captions per image.")] = 6,
    numbers: Annotated[Numbers, typer.Option(help="Format of stored embeddings.")] = Numbers.bf16,
    trunk_cache: Annotated[bool, typer.Option(help="Store the outputs of the frozen trunk on disk.")] = False,
    sample: Annotated[Path | None, typer.Option(help="A dataset folder; its rows are measured.")] = None,
    card: Annotated[str | None, typer.Option(help="A graphics card by name; default: rtx-3090.")] = None,
    cards: Annotated[int, typer.Option(min=1, help="Number of cards.")] = 1,
    disk: Annotated[str, typer.Option(help="Disk budget, such as 1TB or 500GB.")] = "1TB",
    cores: Annotated[
        int | None, typer.Option(min=1, help="Cores that decode; default: 16, or this machine's with --calibrate.")
    ] = None,
    pipeline: Annotated[
        bool, typer.Option("--pipeline", help="Every stage, from the import to the evaluation.")
    ] = False,
    synthetic: Annotated[
        int, typer.Option("--synthetic-captions", min=1, help="Generated per image, where the recipe reads some.")
    ] = 3,
    trials: Annotated[int, typer.Option(min=0, help="Of the pipeline's search; 0: none.")] = 8,
    trial_share: Annotated[float, typer.Option(min=0, max=1, help="Steps of a trial, of the training's.")] = 0.05,
    exact: Annotated[
        bool, typer.Option("--exact", help="Count the memory of a step operation by operation, in half a minute.")
    ] = False,
    calibrate: Annotated[
        bool, typer.Option(help="Time steps and decoding on this machine for about a minute.")
    ] = False,
    seconds: Annotated[float, typer.Option(min=1, help="Duration of the calibration.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show storage, memory, speed, hours and energy of a job, and what to change so that it fits.

    Without options: the reference job, what is left of CC12M (7.74 M pairs), 32 epochs, batch 1536 on one RTX 3090
    with 1 TB of disk. Hours and memory do not depend on this machine, unless it is calibrated. The exit code is 1 if
    the job does not fit.
    """
    # Nothing here imports torch unless --exact or --calibrate, or a model that is not in the table, needs it: its
    # import alone would take most of the time.
    from siclip_platform.display import echo
    from siclip_platform.plan.cards import find_card
    from siclip_platform.plan.job import Job, teacher_source
    from siclip_platform.plan.length import job_length
    from siclip_platform.plan.pipeline import make_pipeline
    from siclip_platform.plan.plan import make_plan
    from siclip_platform.plan.reference import CARD, RECIPE
    from siclip_platform.plan.show import as_dict, pipeline_as_dict, show, show_pipeline
    from siclip_platform.plan.storage import RowBytes, measure_rows
    from siclip_platform.storage.sizes import parse_bytes

    budget = parse_bytes(disk)
    named = recipe or RECIPE
    length = job_length(_recipe(named, batch_size, micro_batch_size), named, pairs, epochs)
    chosen = length.recipe
    job = Job(
        recipe=chosen,
        pairs=length.pairs,
        pairs_source=length.source,
        epochs=length.epochs,
        teacher=SOURCES[teacher] if teacher else teacher_source(chosen),
        rows=measure_rows(sample, "train") if sample else RowBytes(),
        disk_bytes=budget,
        # A calibrated machine has no card in the table unless one is named.
        card=find_card(card or CARD) if card or not calibrate else None,
        cards=cards,
        cores=cores or (os.cpu_count() or 1 if calibrate else 16),
        augmentations=augmentations,
        captions=captions,
        numbers=numbers.value,
        trunk_cache=trunk_cache or bool(chosen.data.trunk_cache),
    )
    if calibrate:
        job = _calibrated(job, seconds)
    if exact:
        from siclip_platform.plan.exact import exact_memory

        with warnings.catch_warnings():
            # torch's, about a setting of other devices and about storages without memory, which are meant here
            warnings.simplefilter("ignore", UserWarning)
            job = replace(job, exact=exact_memory(job))
    result = make_plan(job)
    if pipeline:
        stages = make_pipeline(
            result, captions=synthetic if chosen.data.captions else 0, trials=trials, trial_share=trial_share
        )
        found, fits = pipeline_as_dict(stages), stages.fits
    else:
        found, fits = as_dict(result), result.fits
    if as_json:
        echo(json.dumps(found, indent=2))
    elif pipeline:
        show_pipeline(stages)
    else:
        show(result)
    if fits and not as_json:
        echo(f"next: siclip-platform {_next(named)}")
    if not fits:
        raise typer.Exit(1)


def _next(name: str) -> str:
    """The command after a plan of this recipe that fits."""
    from siclip_platform.recipes.load import is_shipped

    # a shipped recipe names a dataset that is not its reader's
    return f"recipe init {name} my.yaml" if is_shipped(name) else f"rehearse {shlex.quote(name)} SHARDS"


def _calibrated(job: Job, seconds: float) -> Job:
    from siclip_platform.plan.calibration import calibrate, calibration_trainer, two_sizes
    from siclip_platform.plan.decoding import decode_rate
    from siclip_platform.recipes.student import recipe_model

    recipe = job.recipe
    measured = calibrate(lambda size: calibration_trainer(recipe, size, job.teacher), two_sizes(recipe), seconds)
    rate = decode_rate(recipe_model(recipe).image.image_size)
    return replace(job, measured=measured, core_rate=rate, core_rate_is_measured=True)


def _recipe(name: str, batch_size: int | None, micro_batch_size: int | None) -> Recipe:
    from siclip_platform.recipes.load import load_recipe

    changes: dict[str, object] = {}
    if batch_size is not None:
        changes["training.batch_size"] = batch_size
    if micro_batch_size is not None:
        changes |= {"training.micro_batch_size": micro_batch_size, "training.batch_norm": "eval"}
    return load_recipe(name).updated(changes)
