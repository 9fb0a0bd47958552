"""``siclip-platform data embed``: teacher embeddings beside a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from siclip_platform.cli.data.group import app
from siclip_platform.cli.data.precision import NumbersChoice, Precision


@app.command()
def embed(
    dataset: Annotated[Path, typer.Argument(help="Folder of the dataset; its own files are not changed.")],
    name: Annotated[str, typer.Option(help="Name of the embeddings; written to DATASET/embeddings/NAME.")],
    teacher: Annotated[str, typer.Option(help="A checkpoint or open_clip:NAME:TAG.")],
    augmentations: Annotated[int, typer.Option(min=1, help="Crops per image.")] = 1,
    crop_scale: Annotated[
        float, typer.Option(help="Minimum share of the area in a crop; 1: the centre square.")
    ] = 0.9,
    seed: Annotated[int, typer.Option(help="Seed of the crops.")] = 0,
    image_size: Annotated[
        int | None,
        typer.Option(help="The student's image size, from which the teacher resizes; default: the teacher's."),
    ] = None,
    numbers: Annotated[NumbersChoice, typer.Option(help="Number format on disk.")] = NumbersChoice.bf16,
    captions: Annotated[
        list[str] | None, typer.Option(help="Captions beside the dataset to embed too; repeatable.")
    ] = None,
    disk_budget: Annotated[str | None, typer.Option(help="Refuse to write more, for example 500GB.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="Split to embed; repeatable; default: all.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images or texts per call of the teacher.")] = 256,
    precision: Annotated[Precision, typer.Option()] = Precision.fp32,
    actors: Annotated[int, typer.Option(min=0, help="Copies of the teacher; 0: one per GPU, or one.")] = 0,
    address: Annotated[str | None, typer.Option(help="Address of a Ray cluster; default: start one.")] = None,
    verbose: Annotated[bool, typer.Option(help="Show Ray's output.")] = False,
) -> None:
    """Write a teacher's embeddings beside a dataset. A stopped command resumes when it is repeated."""
    from siclip_platform.cluster.connect import Needs, ray_cluster
    from siclip_platform.datasets.derived.actors import actor_pool, parse_settings
    from siclip_platform.datasets.derived.embeddings.config import EmbedConfig
    from siclip_platform.datasets.derived.embeddings.embed import embed_dataset, plan_embedding
    from siclip_platform.display import Display
    from siclip_platform.storage.sizes import parse_bytes

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
    display.say(f"{'total':>16}  {sum(plan.bytes.values()) / 1e9:12.6f} GB")
    # After the table, so that a refusal comes with the sizes of all parts.
    plan.check(budget)
    cluster = ray_cluster(Needs(concurrent=0, worker_cpus=0), address, verbose)
    with cluster, display.live(), display.task("embeddings") as task:
        built = embed_dataset(plan, pool=actor_pool(actors), progress=task.progress)
    display.say(
        f"{built.sidecar.folder}: {built.counts['images']:,} images × {augmentations}, {built.counts['captions']:,} "
        f"captions; teacher {plan.layout.teacher}, key {plan.layout.key}; manifest {built.sidecar.hash}"
    )
    display.say(f"to train on them: --set data.teacher_embeddings={name}")
