"""``siclip-platform data embed``: teacher embeddings beside a dataset."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from siclip_platform.cli.data.group import app
from siclip_platform.cli.data.precision import Precision


class NumbersChoice(StrEnum):
    bf16 = "bf16"
    int8 = "int8"


@app.command()
def embed(
    dataset: Annotated[Path, typer.Argument(help="The dataset's folder; it is not written to.")],
    name: Annotated[str, typer.Option(help="Of the embeddings: they go to DATASET/embeddings/NAME.")],
    teacher: Annotated[str, typer.Option(help="A checkpoint or open_clip:NAME:TAG.")],
    augmentations: Annotated[int, typer.Option(min=1, help="Crops of each image.")] = 1,
    crop_scale: Annotated[float, typer.Option(help="Least share of the area in a crop; 1: the middle square.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Of the crops.")] = 0,
    image_size: Annotated[
        int | None, typer.Option(help="The student's, if not the teacher's own: the teacher resizes from it.")
    ] = None,
    numbers: Annotated[NumbersChoice, typer.Option()] = NumbersChoice.bf16,
    captions: Annotated[list[str] | None, typer.Option(help="Captions beside the dataset; repeatable.")] = None,
    disk_budget: Annotated[str | None, typer.Option(help="Refuse to take more, for example 500GB.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="Repeatable; default: all.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images or texts that the teacher gets together.")] = 256,
    precision: Annotated[Precision, typer.Option()] = Precision.fp32,
    actors: Annotated[int, typer.Option(min=0, help="Copies of the teacher; 0: one for each GPU, or one.")] = 0,
    address: Annotated[str | None, typer.Option(help="A Ray cluster; default: one of our own.")] = None,
    verbose: Annotated[bool, typer.Option(help="Show what Ray says.")] = False,
) -> None:
    """Write a teacher's embeddings beside a dataset. Started again after a stop, it goes on."""
    from siclip_platform.cluster.connect import Needs, ray_cluster
    from siclip_platform.datasets.derived.actors import actor_pool, parse_settings
    from siclip_platform.datasets.derived.embeddings.config import EmbedConfig
    from siclip_platform.datasets.derived.embeddings.embed import embed_dataset, plan_embedding
    from siclip_platform.display import Display
    from siclip_platform.studies.options import parse_bytes

    config = parse_settings(
        EmbedConfig,
        {
            "teacher": teacher,
            "augmentations": augmentations,
            "crop_scale": crop_scale,
            "seed": seed,
            "image_size": image_size,
            "numbers": numbers.value,
            "captions": captions or [],
            "batch_size": batch_size,
            "precision": precision.value,
        },
    )
    budget = parse_bytes(disk_budget) if disk_budget else None
    plan = plan_embedding(dataset, name, config, split or ())
    display = Display()
    for part, size in plan.bytes.items():
        display.say(f"{part:>16}  {size / 1e9:12.6f} GB")
    display.say(f"{'in all':>16}  {sum(plan.bytes.values()) / 1e9:12.6f} GB")
    plan.check(budget)
    cluster = ray_cluster(Needs(concurrent=0, worker_cpus=0), address, verbose)
    with cluster, display.live(), display.task("embeddings") as task:
        made = embed_dataset(plan, pool=actor_pool(actors), progress=task.progress)
    display.say(
        f"{made.sidecar.folder}: {made.counts['images']:,} images × {augmentations}, {made.counts['captions']:,} "
        f"captions; teacher {plan.layout.teacher}, key {plan.layout.key}; manifest {made.sidecar.hash}"
    )
