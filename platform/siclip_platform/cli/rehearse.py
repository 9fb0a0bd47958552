"""``siclip-platform rehearse``."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated

import typer

from siclip.errors import UserError
from siclip_platform.cli.data.import_options import ImportOptions, separate, takes_import_options
from siclip_platform.cli.experiments import SetOption, absolute, set_values

OUT = Path("runs/rehearsal")
SHARE = 0.01
"""Drawn for validation where neither the source nor an option tells a split: an import would ask for it."""


@takes_import_options
def rehearse(
    recipe: Annotated[str, typer.Argument(help="The recipe of the whole job: a file, or a shipped one's name.")],
    sources: Annotated[
        list[str], typer.Argument(help="What the job will import: files, folders or patterns.", metavar="SOURCE")
    ],
    options: ImportOptions,
    rows: Annotated[int, typer.Option(min=20, max=100_000, help="Pairs of the source that are taken.")] = 300,
    steps: Annotated[int, typer.Option(min=4, max=10_000, help="Steps of the training, which is killed once.")] = 12,
    changes: SetOption = None,
    captioner: Annotated[str | None, typer.Option(help="As --model of data caption.")] = None,
    pretrained: Annotated[str | None, typer.Option(help="The captioner's tag or checkpoint.")] = None,
    per_image: Annotated[int, typer.Option(min=1, help="Synthetic captions per image.")] = 3,
    given_captions: Annotated[
        str, typer.Option(help="Options of `data captions`, in quotes, if the captions come from files.")
    ] = "",
    augmentations: Annotated[int, typer.Option(min=1, help="Crops per image that the teacher embeds.")] = 10,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the scratch folder.")] = False,
    out: Annotated[Path, typer.Option(help="The scratch folder; removed unless --keep or a stage fails.")] = OUT,
) -> None:
    """Take a few hundred pairs of a source through every stage of a job, and stop at the first that fails.

    Import, captions and embeddings if the recipe reads them, training, a kill, the resumption, evaluation, export
    and report, on this machine. Prints time and memory of each, and what it means for the whole job. The exit code
    is 1 if a stage fails. On a GPU the training has the recipe's batch size. The options of `data import` apply.
    """
    from siclip_platform.datasets.derived.captions.config import COCA, TAG
    from siclip_platform.datasets.epochs import with_steps
    from siclip_platform.display import Display, Terminal
    from siclip_platform.recipes.load import load_recipe
    from siclip_platform.rehearsal.job import Rehearsal
    from siclip_platform.rehearsal.rehearse import clear, prepare_folder
    from siclip_platform.rehearsal.rehearse import rehearse as run
    from siclip_platform.rehearsal.sample import count_rows, sample_of, small_import
    from siclip_platform.rehearsal.show import show

    whole = absolute(load_recipe(recipe).updated(set_values(changes)))
    if given_captions and not whole.data.captions:
        raise UserError("--given-captions, but the recipe reads no captions: add --set data.captions=[NAME]")
    words, options = separate(sources, options)
    for word in words:
        _refuse_dataset(word, recipe)
    options = _with_splits(options, words)
    found, importing = options.find(words)
    sample, count = sample_of(found, rows), count_rows(found)
    job = Rehearsal(
        # of a dataset that does not exist yet
        recipe=with_steps(whole, min(count, whole.data.limit or count)),
        named=recipe,
        changes=tuple(changes or ()),
        sources=tuple(words),
        import_options=tuple(_words(options)),
        sample=sample,
        importing=small_import(importing, sample),
        whole_rows=count,
        folder=out.absolute(),
        steps=steps,
        on_gpu=_has_gpu(),
        max_bad_share=options.max_bad_share,
        captioner=captioner or COCA,
        pretrained=pretrained or TAG,
        per_image=per_image,
        given_captions=tuple(shlex.split(given_captions)),
        augmentations=augmentations,
    )
    prepare_folder(job)
    display = Display()
    outcome = run(job, begin=lambda name: display.say(f"{name} …"))
    show(outcome, Terminal(width=110))
    if outcome.failure:
        raise typer.Exit(1)
    if keep:
        display.say(f"kept: {job.folder}")
    else:
        clear(job.folder)


def _refuse_dataset(source: str, recipe: str) -> None:
    """Refuse what is imported already.

    Raises:
        UserError: says how the rest of the job is tried on it.
    """
    from siclip_platform.datasets.manifest import MANIFEST, read_manifest
    from siclip_platform.storage import as_path

    folder = as_path(source)
    if not isinstance(folder, Path) or not (folder / MANIFEST).is_file():
        return
    try:
        read_manifest(folder)
    except UserError:  # a file of this name that another program wrote
        return
    trial = ["train", "--recipe", recipe, "--data", source, "--set", "training.steps=100", "--out", "runs/trial"]
    raise UserError(
        f"{source} is an imported dataset, and a rehearsal begins with the import: name the files that it was "
        f"imported from, or try the training on it: siclip-platform {shlex.join(trial)}"
    )


def _with_splits(options: ImportOptions, sources: list[str]) -> ImportOptions:
    """The options, with a share for validation if neither they nor the source tell any split."""
    from siclip_platform.datasets.importing.sources.find import tells_splits

    if options.split or options.validation_share or options.test_share or not options.keep_splits:
        return options
    drawn = replace(options, validation_share=SHARE)
    found, _ = drawn.find(sources)
    return options if tells_splits(found) else drawn


def _words(options: ImportOptions) -> list[str]:
    """The options that differ from their defaults, as words of a command line."""
    words: list[str] = []
    for field in fields(ImportOptions):
        value, name = getattr(options, field.name), "--" + field.name.replace("_", "-")
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(name if value else name.replace("--", "--no-", 1))
        else:
            words += [word for each in (value if isinstance(value, list) else [value]) for word in (name, str(each))]
    return words


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
