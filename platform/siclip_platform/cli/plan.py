"""``siclip-platform plan``."""

from __future__ import annotations

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siclip_platform.cli.experiments import NAME_OR_FILE

if TYPE_CHECKING:
    from siclip_platform.plan.calibration import TeacherSource
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
    pairs: Annotated[int, typer.Option(min=1, max=10**15, help="Pairs of the dataset.")] = 12_000_000,
    epochs: Annotated[
        float | None, typer.Option(min=0.01, max=1e6, help="Passes over the dataset; default: the recipe's, else 32.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="Overrides the recipe's batch size; of all cards together.")
    ] = None,
    micro_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Pairs whose activations are kept at a time (gradient caching).")
    ] = None,
    teacher: Annotated[
        TeacherChoice, typer.Option(help="Where the targets of distillation come from.")
    ] = TeacherChoice.shared,
    augmentations: Annotated[int, typer.Option(min=1, help="Stored augmentations per image.")] = 10,
    captions: Annotated[int, typer.Option(min=1, help="Stored captions per image.")] = 6,
    numbers: Annotated[Numbers, typer.Option(help="Format of stored embeddings.")] = Numbers.bf16,
    trunk_cache: Annotated[bool, typer.Option(help="Store the outputs of the frozen trunk on disk.")] = False,
    sample: Annotated[Path | None, typer.Option(help="A dataset folder; its rows are measured.")] = None,
    card: Annotated[str | None, typer.Option(help="A graphics card by name; default: rtx-3090.")] = None,
    cards: Annotated[int, typer.Option(min=1, help="Number of cards.")] = 1,
    disk: Annotated[str, typer.Option(help="Disk budget, such as 1TB or 500GB.")] = "1TB",
    cores: Annotated[int | None, typer.Option(min=1, help="Cores that decode; default: this machine's.")] = None,
    calibrate: Annotated[bool, typer.Option(help="Time real steps on this machine for about a minute.")] = False,
    seconds: Annotated[float, typer.Option(min=1, help="Duration of the calibration.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show storage, memory, speed, hours and energy of a job, and what to change so that it fits.

    Without options: the reference job, 12 M pairs, 32 epochs, batch 1536 on one RTX 3090 with 1 TB of disk.
    The exit code is 1 if the job does not fit.
    """
    from siclip.models.clip import Clip
    from siclip_platform.display import echo
    from siclip_platform.plan import Job, make_plan
    from siclip_platform.plan.calibration import calibrate as time_steps
    from siclip_platform.plan.calibration import calibration_trainer, two_sizes
    from siclip_platform.plan.cards import find_card
    from siclip_platform.plan.decoding import decode_rate
    from siclip_platform.plan.show import as_dict, show
    from siclip_platform.plan.storage import RowBytes, measure_rows
    from siclip_platform.datasets.epochs import with_steps
    from siclip_platform.studies.options import parse_bytes
    from siclip_platform.training.build import recipe_model

    budget = parse_bytes(disk)
    chosen = _recipe(recipe, batch_size, micro_batch_size)
    passes = epochs or chosen.training.epochs or 32
    chosen = with_steps(chosen.updated({"training.epochs": passes}) if chosen.training.epochs else chosen, pairs)
    # A calibrated machine has no card in the table unless one is named.
    found = find_card(card or "rtx-3090") if card or not calibrate else None
    rows = measure_rows(sample, "train") if sample else RowBytes()
    model = Clip(recipe_model(chosen))
    source = SOURCES[teacher]
    measured = None
    if calibrate:
        measured = time_steps(lambda size: calibration_trainer(chosen, size, source), two_sizes(chosen), seconds)
    job = Job(
        recipe=chosen,
        pairs=pairs,
        epochs=passes,
        teacher=source,
        rows=rows,
        disk_bytes=budget,
        card=found,
        measured=measured,
        cards=cards,
        decode_rate=decode_rate(model.config.image.image_size) * (cores or os.cpu_count() or 1),
        augmentations=augmentations,
        captions=captions,
        numbers=numbers.value,
        trunk_cache=trunk_cache,
    )
    result = make_plan(job, model)
    if as_json:
        echo(json.dumps(as_dict(result), indent=2))
    else:
        show(result)
    if not result.fits:
        raise typer.Exit(1)


def _recipe(name: str | None, batch_size: int | None, micro_batch_size: int | None) -> Recipe:
    from siclip_platform.plan.reference import RECIPE
    from siclip_platform.recipes.load import load_recipe

    changes: dict[str, object] = {}
    if batch_size is not None:
        changes["training.batch_size"] = batch_size
    if micro_batch_size is not None:
        changes |= {"training.micro_batch_size": micro_batch_size, "training.batch_norm": "eval"}
    return load_recipe(name or RECIPE).updated(changes)
