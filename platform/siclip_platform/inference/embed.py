"""Embed images or texts into an index, with actors of Ray Data that load the model once, or in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from siclip.errors import UserError
from siclip.models.finite import NotFinite
from siclip_platform.datasets.derived.actors import one_thread
from siclip_platform.inference.encoder import Encoder
from siclip_platform.inference.index import DESCRIPTION, LOCATION, PARTS, REJECTED, IndexDescription
from siclip_platform.inference.inputs import InputPart, InputRow, Modality, find_parts, read_rows
from siclip_platform.storage import AnyPath, absolute_path
from siclip_platform.storage.atomic import replacing, write_text_atomically

PART_ROWS = 256
REJECTED_SCHEMA = pa.schema([("id", pa.string()), (LOCATION, pa.string()), ("reason", pa.string())])


class _Embed:
    """Embeds parts, one by one, and writes each as a Parquet file atomically."""

    def __init__(self, encoder: Encoder, folder: Path) -> None:
        self.encoder = encoder
        self.folder = folder

    def __call__(self, index: int, part: InputPart) -> tuple[int, list[dict[str, str]]]:
        """Write a part and return the number of its rows, and the rejected ones.

        Raises:
            NotFinite: an embedding is not finite.
        """
        rows, inputs, rejected = self._read(part)
        encode = self.encoder.texts if part.kind == "text" else self.encoder.images
        embeddings = encode(inputs) if inputs else np.empty((0, self.encoder.width), np.float32)
        flat = pa.array(embeddings.reshape(-1), pa.float32())
        table = pa.table(
            {
                "id": pa.array([row.id for row in rows], pa.string()),
                LOCATION: pa.array([row.location for row in rows], pa.string()),
                "embedding": pa.FixedSizeListArray.from_arrays(flat, self.encoder.width),
            }
        )
        with replacing(self.folder / f"{index:06d}.parquet") as temporary:
            pq.write_table(table, temporary)
        return len(rows), rejected

    def _read(self, part: InputPart) -> tuple[list[InputRow], list[Any], list[dict[str, str]]]:
        """The usable rows of a part, their inputs for the encoder, and the rejected rows with their reasons."""
        rows, inputs, rejected = [], [], []
        for row in read_rows(part):
            try:
                inputs.append(self._input(row, part.kind))
            except UserError as error:
                rejected.append({"id": row.id, LOCATION: row.location, "reason": str(error)})
            else:
                rows.append(row)
        return rows, inputs, rejected

    def _input(self, row: InputRow, kind: Modality) -> Any:
        if kind == "image":
            if not row.value:
                raise UserError(f"{row.location} is empty")
            return self.encoder.pixels(row.value, row.location)
        if not row.value or not row.value.strip():
            raise UserError(f"{row.location} is an empty text")
        return row.value


class _Actor:
    """An actor of Ray Data: maps a row with a part to a row with its counts."""

    def __init__(self, checkpoint: str, folder: str) -> None:
        self.embed = _Embed(Encoder.load(checkpoint), Path(folder))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        index, part = int(batch["index"][0]), InputPart(**json.loads(str(batch["part"][0])))
        rows, rejected, refused = 0, list[dict[str, str]](), ""
        try:
            rows, rejected = self.embed(index, part)
        except NotFinite as error:
            # as a value: Ray would put its traceback before the message of an exception
            refused = str(error)
        return {
            "index": batch["index"],
            "rows": np.array([rows]),
            "rejected": np.array([json.dumps(rejected)]),
            "refused": np.array([refused]),
        }


def embed(
    checkpoint: str | AnyPath,
    source: Path,
    out: Path,
    *,
    kind: Modality | None = None,
    column: str | None = None,
    actors: int = 1,
    here: bool = False,
    progress: Callable[[int, int, int], None] | None = None,
) -> IndexDescription:
    """Embed a source and write an index; requires a connected Ray unless it runs ``here``, with the same result.

    Rows that cannot be read are skipped and listed in ``rejected.parquet`` with the reason.

    Args:
        checkpoint: the model.
        source: a folder of images, a text file, or Parquet.
        out: a new folder for the index.
        kind: what to embed; None if the source has only one of the two.
        column: the Parquet column; None for the first known name.
        actors: copies of the model that work at a time.
        here: embed in this process, with one copy of the model.
        progress: called with (parts done, all parts, rows embedded).

    Raises:
        UserError: the checkpoint or the source cannot be used, ``out`` exists, or no row could be read. Nothing is
            left of ``out`` then.
    """
    encoder = Encoder.load(checkpoint)
    model = encoder.model.config
    parts = find_parts(source, kind, column, PART_ROWS)
    kinds = {part.kind for part in parts}
    if len(kinds) > 1:
        raise UserError(f"{source} contains images and texts: choose with --kind image or --kind text")
    if out.exists():
        raise UserError(f"{out} exists and is not overwritten: remove it or choose another name")
    (out / PARTS).mkdir(parents=True)
    try:
        if here:
            found = _run_here(encoder, parts, out / PARTS)
        else:
            found = _run_on_ray(checkpoint, parts, out / PARTS, actors)
        written, rejected = _collect(found, len(parts), progress)
        if not written:
            reason = rejected[0]["reason"] if rejected else "it is empty"
            raise UserError(f"no row of {source} could be embedded: {reason}")
    except UserError:
        # a folder without a description could neither be searched nor be named again
        shutil.rmtree(out)
        raise
    pq.write_table(pa.Table.from_pylist(rejected, REJECTED_SCHEMA), out / REJECTED)
    description = IndexDescription(
        kind=kinds.pop(),
        model=model.name,
        weights=encoder.weights,
        checkpoint=absolute_path(checkpoint),
        embed_dim=model.embed_dim,
        rows=written,
        rejected=len(rejected),
        source=str(source.resolve()),
    )
    # Written last: a folder without it is not an index.
    write_text_atomically(out / DESCRIPTION, description.model_dump_json(indent=2) + "\n")
    return description


_Done = tuple[int, int, list[dict[str, str]]]
"""A finished part: its index, the number of its rows, and the rejected ones."""


def _collect(
    found: Iterator[_Done], total: int, progress: Callable[[int, int, int], None] | None
) -> tuple[int, list[dict[str, str]]]:
    """The number of rows written, and the rejected rows in the order of the source."""
    written, rejected = 0, {}
    for done, (index, rows, refused) in enumerate(found, 1):
        written += rows
        rejected[index] = refused
        if progress is not None:
            progress(done, total, written)
    return written, [item for index in sorted(rejected) for item in rejected[index]]


def _run_here(encoder: Encoder, parts: list[InputPart], folder: Path) -> Iterator[_Done]:
    run = _Embed(encoder, folder)
    # As in an actor, which has one CPU.
    with one_thread():
        for index, part in enumerate(parts):
            yield (index, *run(index, part))


def _run_on_ray(checkpoint: str | AnyPath, parts: list[InputPart], folder: Path, actors: int) -> Iterator[_Done]:
    """Yield the parts in the order in which they finish."""
    import ray

    use_gpu = ray.cluster_resources().get("GPU", 0) >= 1
    items = [{"index": index, "part": json.dumps(asdict(part))} for index, part in enumerate(parts)]
    done = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Actor,
        fn_constructor_args=(absolute_path(checkpoint), str(folder.resolve())),
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(items))),
        num_cpus=1,
        num_gpus=1 if use_gpu else 0,
    )
    for row in done.iter_rows():
        if row["refused"]:
            raise NotFinite(row["refused"])
        yield int(row["index"]), int(row["rows"]), json.loads(row["rejected"])
