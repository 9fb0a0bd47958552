"""The dataset as a run logged it: sizes, rejected rows, captions, and examples with the model's retrievals."""

from __future__ import annotations

import json

from siclip_platform.datasets.tools.summary import NAME, DataSummary, read_summary
from siclip_platform.report.draw.blocks import Block, Code, Example, Gallery, Notes, Retrieval, Section, Text
from siclip_platform.report.draw.values import Cell, Table, byte_size, count_cell, plural
from siclip_platform.report.read.runs import Study

MAX_RECIPE = 4000  # characters; a manifest's recipe is free-form and may be long


def data(study: Study) -> Section:
    """The dataset's hash, and its summary if a run logged one."""
    found = read_summary(study.data)
    hashes = sorted({tag for run in (study.run, *study.runs) if (tag := run.tag("dataset_hash"))})
    named = f"Dataset hash: {', '.join(hashes)}." if hashes else "No run records the hash of its dataset."
    # read_summary returns a sentence if the file is there but cannot be read.
    if found is None:
        missing = f"No run of this study logged {NAME}, so sizes, captions and examples are not shown."
        return Section("data", "Data", [Text(named), Notes([missing])])
    if isinstance(found, str):
        return Section("data", "Data", [Text(named), Notes([found])])
    blocks: list[Block] = [Text(f"{found.name} {found.version}, hash {found.hash}. {_agrees(found, hashes)}")]
    blocks += [_splits(found), _rejected(found)]
    if found.recipe:
        recipe = json.dumps(found.recipe, indent=1, ensure_ascii=False)
        blocks += [Text("The manifest's recipe:", soft=True), Code(recipe[:MAX_RECIPE])]
    return Section("data", "Data", [*blocks, *_examples(found)])


def _agrees(found: DataSummary, hashes: list[str]) -> str:
    if not hashes or found.hash in hashes:
        return "" if len(hashes) < 2 else f"Runs used {plural(len(hashes), 'dataset')}: {', '.join(hashes)}."
    return f"The runs record another hash ({', '.join(hashes)}): the summary describes different data."


def _splits(found: DataSummary) -> Table:
    rows = []
    for name, split in found.splits.items():
        sources = ", ".join(f"{count:,} {source}" for source, count in split.sources.items())
        rows.append(
            [
                Cell(name, name),
                count_cell(split.rows),
                count_cell(split.shards),
                Cell(byte_size(split.bytes), split.bytes),
                _figure(split.captions_per_image, ".1f"),
                _figure(split.words_mean, ".1f"),
                _figure(split.distinct_share, ".1%"),
                Cell(sources or "—"),
            ]
        )
    columns = [
        "split",
        "rows",
        "shards",
        "size",
        "captions per image",
        "words per caption",
        "distinct captions",
        "sources",
    ]
    return Table(
        key="splits",
        title="Splits",
        columns=columns,
        rows=rows,
        numeric=[False, *[True] * 6, False],
        note="Caption statistics are from the first rows of each split.",
    )


def _figure(value: float | None, form: str) -> Cell:
    return Cell("—") if value is None else Cell(f"{value:{form}}", value)


def _rejected(found: DataSummary) -> Block:
    if not found.rejected:
        return Text("No rejected rows are recorded.")
    rows = sorted(found.rejected.items(), key=lambda item: -item[1])
    return Table(
        key="rejected",
        title="Rows rejected by the import",
        columns=["reason", "rows"],
        rows=[[Cell(reason, reason), count_cell(count)] for reason, count in rows],
        numeric=[False, True],
    )


def _examples(found: DataSummary) -> list[Block]:
    if not found.examples:
        return [Text("No example images were logged.")]
    text = "Examples with their captions."
    if found.pool:
        text += (
            f" Below each are the captions that the model ranks nearest to the image, out of {found.pool:,}: "
            "✓ is one of the image's own captions, ✗ one of another image."
        )
    shown = [
        Example(each.image, each.captions, [Retrieval(one.caption, one.right) for one in each.retrieved])
        for each in found.examples
    ]
    return [Text(text), Gallery(shown)]
