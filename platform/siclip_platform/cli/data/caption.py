"""``siclip-platform data caption``: synthetic captions beside a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from siclip_platform.cli.data.group import app
from siclip_platform.cli.data.precision import CaptionPrecision


@app.command()
def caption(
    dataset: Annotated[Path, typer.Argument(help="Folder of the dataset; its own files are not changed.")],
    name: Annotated[str, typer.Option(help="Name of the captions; written to DATASET/captions/NAME.")],
    model: Annotated[
        str, typer.Option(help="A CoCa of open_clip, a JSON file with its config, or transformers:FOLDER_OR_NAME.")
    ] = "coca_ViT-L-14",
    pretrained: Annotated[
        str, typer.Option(help="A pretrained tag of open_clip, or a checkpoint.")
    ] = "mscoco_finetuned_laion2B-s13B-b90k",
    prompt: Annotated[str, typer.Option(help="What a model of transformers is told.")] = "",
    per_image: Annotated[int, typer.Option(min=1, help="Captions generated per image.")] = 3,
    top_p: Annotated[float, typer.Option(help="Draw from the tokens with this share of the probability.")] = 0.9,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 1.0,
    min_tokens: Annotated[int, typer.Option()] = 4,
    max_tokens: Annotated[int, typer.Option()] = 30,
    seed: Annotated[int, typer.Option()] = 0,
    cut_at_stop: Annotated[bool, typer.Option(help="Keep the text before the first full stop.")] = True,
    lower_case: Annotated[bool, typer.Option()] = False,
    min_words: Annotated[int, typer.Option(help="Drop captions with fewer words.")] = 3,
    max_words: Annotated[int, typer.Option(help="Drop captions with more words; 0: no limit.")] = 0,
    without: Annotated[list[str] | None, typer.Option(help="Drop captions with this text; repeatable.")] = None,
    near_equal: Annotated[float, typer.Option(help="Drop captions with this difflib ratio; 0: off.")] = 0.9,
    min_similarity: Annotated[
        float | None, typer.Option(help="Drop captions with a lower cosine to the image.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="For the cosine: a checkpoint or open_clip:NAME:TAG.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="Split to caption; repeatable; default: all.")] = None,
    batch_size: Annotated[
        int, typer.Option(min=0, help="Images captioned together; 0: on a GPU what fits, on the CPU a fixed number.")
    ] = 0,
    precision: Annotated[
        CaptionPrecision, typer.Option(help="auto: bf16 on a GPU, fp32 on the CPU.")
    ] = CaptionPrecision.auto,
    actors: Annotated[int, typer.Option(min=0, help="Copies of the model; 0: one per GPU, or one.")] = 0,
    address: Annotated[str | None, typer.Option(help="Address of a Ray cluster; default: start one.")] = None,
    verbose: Annotated[bool, typer.Option(help="Show Ray's output.")] = False,
) -> None:
    """Write synthetic captions beside a dataset. A stopped command resumes when it is repeated."""
    from siclip.errors import UserError
    from siclip_platform.cli.data.diagnosis import degenerate
    from siclip_platform.cluster.connect import Needs, ray_cluster
    from siclip_platform.datasets.derived.actors import actor_pool, parse_settings
    from siclip_platform.datasets.derived.captions.caption import caption_dataset
    from siclip_platform.datasets.derived.captions.config import CaptionConfig
    from siclip_platform.display import Display, printable

    if (min_similarity is None) != (teacher is None):
        raise UserError(
            "--min-similarity and --teacher go together: give both, the minimum and the teacher that measures it"
        )
    sampling = {"top_p": top_p, "temperature": temperature, "min_tokens": min_tokens, "max_tokens": max_tokens}
    rules = {"cut_at_stop": cut_at_stop, "lower_case": lower_case, "min_words": min_words, "max_words": max_words}
    config = parse_settings(
        CaptionConfig,
        {
            "model": model,
            "pretrained": pretrained,
            "prompt": prompt,
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
        built = caption_dataset(
            dataset, name, config, splits=split or (), pool=actor_pool(actors), progress=task.progress
        )
    counts = built.counts
    display.say(
        f"{built.sidecar.folder}: {counts['kept']:,} captions of {counts['images']:,} images "
        f"({counts['generated']:,} generated; dropped: {counts['unusable']:,} by a rule, {counts['near_equal']:,} "
        f"near-equal, {counts['dissimilar']:,} dissimilar; {counts['images_without']:,} images without one); "
        f"manifest {built.sidecar.hash}"
    )
    display.say(f"to train on them: --set data.captions=[{name}]")
    for line in degenerate(built.sidecar, dataset):
        display.say(printable(line))
