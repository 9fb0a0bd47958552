"""What every command takes that imports a source: the options, and what follows from them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from siclip.errors import UserError
from siclip_platform.cli.data.precision import NumbersChoice

if TYPE_CHECKING:
    from siclip_platform.datasets.importing.ingest import Imported
    from siclip_platform.datasets.importing.parts import ImportConfig
    from siclip_platform.datasets.importing.sources.find import ImportSource
    from siclip_platform.display import Display


class LayoutChoice(StrEnum):
    """Values of ``--layout``."""

    webdataset = "webdataset"
    datacompdr = "datacompdr"
    parquet = "parquet"
    list = "list"
    folder = "folder"
    arrow = "arrow"


class ShareChoice(StrEnum):
    """Values of ``--share-by``."""

    image = "image"
    caption = "caption"


@dataclass(frozen=True)
class ImportOptions:
    """The options; each field is one, with its help."""

    layout: Annotated[LayoutChoice | None, typer.Option(help="Default: by the names of the files.")] = None
    split: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=GLOB]",
            help="NAME=GLOB: split of the files that match; NAME: split of rows whose source names none "
            "(default: train); repeatable.",
        ),
    ] = None
    keep_splits: Annotated[
        bool, typer.Option(help="Keep the splits that files, folders and the column `split` name.")
    ] = True
    validation_share: Annotated[
        float, typer.Option(help="Share of the samples that go to validation, drawn by image.")
    ] = 0.0
    test_share: Annotated[float, typer.Option(help="Share of the samples that go to test, drawn by image.")] = 0.0
    share_by: Annotated[
        ShareChoice, typer.Option(help="Draw by image, or keep samples with a common caption together.")
    ] = ShareChoice.image
    size: Annotated[int, typer.Option(min=16, help="Maximum shorter side of a stored image.")] = 256
    quality: Annotated[int, typer.Option(min=1, max=100, help="JPEG quality.")] = 90
    min_side: Annotated[int, typer.Option(min=1, help="Images with a shorter side are rejected.")] = 32
    max_pixels: Annotated[int, typer.Option(min=1, help="Images with more are not decoded.")] = 89_478_485
    drop_duplicates: Annotated[bool, typer.Option(help="Keep only the first of images with the same bytes.")] = False
    near_duplicates: Annotated[
        int | None,
        typer.Option(
            min=0, max=8, help="Keep only the first of images whose pHash differs in at most this many bits."
        ),
    ] = None
    max_bad_share: Annotated[float, typer.Option(min=0, max=1, help="Stop above this share of bad rows.")] = 0.01
    image_column: Annotated[str | None, typer.Option(help="Column with the bytes or the path of the image.")] = None
    caption_column: Annotated[list[str] | None, typer.Option(help="Column with captions; repeatable.")] = None
    id_column: Annotated[str | None, typer.Option(help="Column with the id.")] = None
    category_column: Annotated[str | None, typer.Option(help="Column with the category.")] = None
    split_column: Annotated[str | None, typer.Option(help="Column with the split; default: `split`.")] = None
    allow_outside: Annotated[
        list[str] | None, typer.Option(help="Folder outside the source that rows may name files of; repeatable.")
    ] = None
    allow_download: Annotated[
        list[str] | None, typer.Option(help="Host that rows may name addresses of; repeatable.")
    ] = None
    prefix_ids: Annotated[bool, typer.Option(help="Prefix ids with the file's name, if files repeat ids.")] = False
    shard_rows: Annotated[int, typer.Option(min=1, help="Maximum rows per shard.")] = 10_000
    row_group_rows: Annotated[int, typer.Option(min=1, help="Rows per row group.")] = 250
    embedded_by: Annotated[
        list[str] | None,
        typer.Option(
            help="DataCompDR: a teacher whose embeddings the shards have, open_clip:NAME:TAG or a checkpoint; "
            "repeatable, in their order; default: the two of DataCompDR."
        ),
    ] = None
    beside_name: Annotated[
        str, typer.Option(help="DataCompDR: name of the caption set and of the embedding set.")
    ] = "datacompdr"
    numbers: Annotated[NumbersChoice, typer.Option(help="DataCompDR: number format of the embeddings on disk.")] = (
        NumbersChoice.bf16
    )

    def find(self, sources: Sequence[str]) -> tuple[ImportSource, ImportConfig]:
        """Find the sources and check the options against them, before anything is read.

        Raises:
            UserError: there is nothing to import, an option is invalid, or nothing tells a split.
        """
        from siclip_platform.datasets.derived.actors import parse_settings
        from siclip_platform.datasets.importing.parts import ImportConfig
        from siclip_platform.datasets.importing.sources.access import Access
        from siclip_platform.datasets.importing.sources.columns import ColumnNames
        from siclip_platform.datasets.importing.sources.find import find_sources, tells_splits
        from siclip_platform.datasets.importing.sources.patterns import SplitPatterns

        splits = SplitPatterns(self.split or ())
        images = {name: getattr(self, name) for name in ("size", "quality", "min_side", "max_pixels")}
        same = ("validation_share", "test_share", "prefix_ids", "drop_duplicates", "near_duplicates")
        values = {name: getattr(self, name) for name in (*same, "shard_rows", "row_group_rows")}
        values |= {"images": images, "share_by": self.share_by.value, "split": splits.default or "train"}
        config = parse_settings(ImportConfig, values)
        columns = ColumnNames(
            image=self.image_column,
            caption=tuple(self.caption_column or ()),
            id=self.id_column,
            category=self.category_column,
            split=self.split_column,
        )
        found = find_sources(
            sources,
            self.layout.value if self.layout else None,
            columns,
            self.shard_rows,
            access=Access.allowing(self.allow_outside or [], self.allow_download or []),
            keep_splits=self.keep_splits,
            splits=splits,
        )
        if found.layout == "datacompdr" or (self.layout is None and found.layout == "webdataset"):
            found, config = self._with_beside(found, config)
        if self.embedded_by and config.beside is None:
            raise UserError(f"--embedded-by, but {found.root} has no embeddings of DataCompDR: leave it out")
        if not (self.split or config.shares) and self.keep_splits and not tells_splits(found):
            raise UserError(
                f"{found.root} names no splits, and a training needs the splits train and validation: draw one with "
                "--validation-share 0.01 (and --test-share), tell files apart with --split NAME=GLOB, or put all "
                "rows into one split with --split train"
            )
        return found, config

    def _with_beside(self, found: ImportSource, config: ImportConfig) -> tuple[ImportSource, ImportConfig]:
        """Read what DataCompDR's shards have besides, if these are some."""
        from siclip_platform.datasets.importing.beside import beside_config
        from siclip_platform.datasets.importing.sources.find import as_reinforced, first_reinforcement
        from siclip_platform.datasets.sidecar import sidecar_folder

        first = first_reinforcement(found)
        if first is None:
            if self.layout is None:
                return found, config
            raise UserError(
                f"the first sample of {found.parts[0].name or found.root} has no .paug.json with an .npz or .pth.gz, "
                "so it is not of DataCompDR: name another --layout"
            )
        sidecar_folder(Path(), "captions", self.beside_name)
        beside = beside_config(*first, self.beside_name, self.embedded_by or (), self.numbers.value)
        return as_reinforced(found), config.model_copy(update={"beside": beside})


def separate(words: Sequence[str], options: ImportOptions) -> tuple[list[str], ImportOptions]:
    """Take the ``NAME=GLOB`` out of a command's words, which may follow the first of them after ``--split``.

    Args:
        words: the arguments of the command that are not options.
        options: as parsed.
    """
    from dataclasses import replace

    from siclip_platform.datasets.importing.sources.patterns import SPLIT_PATTERN

    if not any(SPLIT_PATTERN.fullmatch(word) for word in options.split or ()):
        return list(words), options
    splits = [word for word in words if SPLIT_PATTERN.fullmatch(word) and not Path(word).exists()]
    rest = [word for word in words if word not in splits]
    return rest, replace(options, split=[*(options.split or ()), *splits])


def show_imported(display: Display, done: Imported, config: ImportConfig) -> None:
    """Print the counts of an import."""
    from siclip_platform.display import printable

    dataset = done.dataset
    rows = ", ".join(f"{dataset.rows(part):,} {part}" for part in dataset.split_names)
    display.say(
        f"{done.read:,} rows read, {sum(done.rejected.values()):,} of them in {dataset.folder / 'ledger.parquet'}"
    )
    if done.merged:
        display.say(f"{done.merged:,} rows are further captions of the image of another row")
    for split, share in config.shares.items():
        if split not in dataset.split_names:
            display.say(f"no sample was drawn for {split}: raise --{split}-share {share:g}")
    for reason, count in done.rejected.items():
        display.say(f"  {printable(reason)}: {count:,}")
    display.say(f"{dataset.folder}: {rows or 'no rows'}; manifest {dataset.hash}")
    if config.beside is not None:
        name = config.beside.name
        display.say(
            f"captions and embeddings {name!r} beside it, of {' and '.join(config.beside.teachers)}; to train on "
            f"them: --set data.captions=[{name}] --set data.teacher_embeddings={name}"
        )


def takes_import_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each field of `ImportOptions`, in place of its parameter ``options``."""
    names = [field.name for field in fields(ImportOptions)]
    types = get_type_hints(ImportOptions, include_extras=True)
    options = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=getattr(ImportOptions, name), annotation=types[name]
        )
        for name in names
    ]
    own = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name == "options":
            parameters += options
        else:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(kind=kind, annotation=own[parameter.name]))

    def run(**values: Any) -> None:
        given = {name: values.pop(name) for name in names}
        command(options=ImportOptions(**given), **values)

    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
    # typer reads both.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
