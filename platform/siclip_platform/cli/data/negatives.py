"""``siclip-platform data negatives``: false captions beside a dataset."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siclip_platform.cli.data.group import app

if TYPE_CHECKING:
    from siclip_platform.datasets.derived.stage import Pool


@app.command()
def negatives(
    dataset: Annotated[Path, typer.Argument(help="Folder of the dataset; its own files are not changed.")],
    name: Annotated[str, typer.Option(help="Name of the false captions; written to DATASET/negatives/NAME.")],
    per_caption: Annotated[int, typer.Option(help="False captions of each true one, as far as it allows.")] = 4,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="What may change: swap_nouns, swap_attributes, colour, number, size, direction, antonym, noun; "
            "repeatable; default: all."
        ),
    ] = None,
    captions: Annotated[
        list[str] | None, typer.Option(help="Captions beside the dataset to falsify too; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    split: Annotated[list[str] | None, typer.Option(help="Split to read; repeatable; default: all.")] = None,
    address: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster whose CPUs share the work; default: this process.")
    ] = None,
    verbose: Annotated[bool, typer.Option(help="Show Ray's output.")] = False,
) -> None:
    """Write false captions of a dataset's captions beside it: near misses that differ in one exchange. A stopped
    command resumes when it is repeated."""
    from siclip.data.negatives import KINDS
    from siclip_platform.cluster.connect import Needs, ray_cluster
    from siclip_platform.datasets.derived.actors import parse_settings
    from siclip_platform.datasets.derived.negatives.build import NegativesConfig, negatives_of_dataset
    from siclip_platform.datasets.derived.stage import Pool
    from siclip_platform.display import Display

    config = parse_settings(
        NegativesConfig, {"per_caption": per_caption, "kinds": tuple(kind or KINDS), "seed": seed}
    )
    display = Display()
    cluster = ray_cluster(Needs(concurrent=0, worker_cpus=0), address, verbose) if address else nullcontext()
    with cluster, display.live(), display.task("false captions") as task:
        pool = _processes() if address else Pool(here=True)
        built = negatives_of_dataset(
            dataset,
            name,
            config,
            captions=captions or (),
            splits=split or (),
            pool=pool,
            progress=task.progress,
        )
    counts = built.counts
    each = "; ".join(f"{one} {counts[one]:,}" for one in config.kinds)
    display.say(
        f"{built.sidecar.folder}: {sum(counts[one] for one in config.kinds):,} false captions of "
        f"{counts['captions']:,} true ones, {counts['without']:,} without one; {each}; manifest {built.sidecar.hash}"
    )
    display.say(f"to train on them: --set data.negatives={name}")


def _processes() -> Pool:
    """One process per CPU of the connected cluster, each with a copy of the dataset's vocabulary."""
    import ray

    from siclip_platform.datasets.derived.stage import Pool

    return Pool(actors=max(1, int(ray.cluster_resources().get("CPU", 1))))
