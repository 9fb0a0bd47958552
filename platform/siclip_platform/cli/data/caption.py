"""``siclip-platform data caption``: synthetic captions beside a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from siclip_platform.cli.data.group import app
from siclip_platform.cli.data.precision import Precision


@app.command()
def caption(
    dataset: Annotated[Path, typer.Argument(help="The dataset's folder; it is not written to.")],
    name: Annotated[str, typer.Option(help="Of the captions: they go to DATASET/captions/NAME.")],
    model: Annotated[str, typer.Option(help="A CoCa of open_clip, or a JSON file with a config.")] = "coca_ViT-L-14",
    pretrained: Annotated[
        str, typer.Option(help="A tag of open_clip or a checkpoint.")
    ] = "mscoco_finetuned_laion2B-s13B-b90k",
    per_image: Annotated[int, typer.Option(min=1, help="Captions generated for each image.")] = 3,
    top_p: Annotated[float, typer.Option(help="Share of the probability that is drawn from.")] = 0.9,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 1.0,
    min_tokens: Annotated[int, typer.Option()] = 4,
    max_tokens: Annotated[int, typer.Option()] = 30,
    seed: Annotated[int, typer.Option()] = 0,
    cut_at_stop: Annotated[bool, typer.Option(help="Keep what stands before the first full stop.")] = True,
    lower_case: Annotated[bool, typer.Option()] = False,
    min_words: Annotated[int, typer.Option(help="Leave out shorter captions.")] = 3,
    max_words: Annotated[int, typer.Option(help="Leave out longer captions; 0: none.")] = 0,
    without: Annotated[list[str] | None, typer.Option(help="Leave out captions with this; repeatable.")] = None,
    near_equal: Annotated[float, typer.Option(help="difflib ratio over words from which two are one; 0: off.")] = 0.9,
    min_similarity: Annotated[
        float | None, typer.Option(help="Leave out captions with a lower cosine to the image.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Whose cosine: a checkpoint or open_clip:NAME:TAG.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="Repeatable; default: all.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images captioned together.")] = 64,
    precision: Annotated[Precision, typer.Option()] = Precision.fp32,
    actors: Annotated[int, typer.Option(min=0, help="Copies of the model; 0: one for each GPU, or one.")] = 0,
    address: Annotated[str | None, typer.Option(help="A Ray cluster; default: one of our own.")] = None,
    verbose: Annotated[bool, typer.Option(help="Show what Ray says.")] = False,
) -> None:
    """Write synthetic captions beside a dataset. Started again after a stop, it goes on."""
    from siclip.errors import UserError
    from siclip_platform.cluster.connect import Needs, ray_cluster
    from siclip_platform.datasets.derived.actors import actor_pool, parse_settings
    from siclip_platform.datasets.derived.captions.caption import caption_dataset
    from siclip_platform.datasets.derived.captions.config import CaptionConfig
    from siclip_platform.display import Display

    if (min_similarity is None) != (teacher is None):
        raise UserError("--min-similarity and --teacher go together: the teacher's cosine is what is compared")
    sampling = {"top_p": top_p, "temperature": temperature, "min_tokens": min_tokens, "max_tokens": max_tokens}
    rules = {"cut_at_stop": cut_at_stop, "lower_case": lower_case, "min_words": min_words, "max_words": max_words}
    config = parse_settings(
        CaptionConfig,
        {
            "model": model,
            "pretrained": pretrained,
            "per_image": per_image,
            "batch_size": batch_size,
            "precision": precision.value,
            "sampling": sampling | {"seed": seed},
            "rules": rules | {"without": without or [], "near_equal": near_equal},
            "similarity": {"teacher": teacher, "min_similarity": min_similarity} if teacher else None,
        },
    )
    display = Display()
    cluster = ray_cluster(Needs(concurrent=0, worker_cpus=0), address, verbose)
    with cluster, display.live(), display.task("captions") as task:
        made = caption_dataset(
            dataset, name, config, splits=split or (), pool=actor_pool(actors), progress=task.progress
        )
    counts = made.counts
    display.say(
        f"{made.sidecar.folder}: {counts['kept']:,} captions of {counts['images']:,} images "
        f"({counts['generated']:,} generated; left out: {counts['unusable']:,} by a rule, {counts['near_equal']:,} "
        f"near-equal, {counts['dissimilar']:,} dissimilar; {counts['images_without']:,} images without one); "
        f"manifest {made.sidecar.hash}"
    )
