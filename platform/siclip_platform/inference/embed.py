"""Images or texts → an index, on Ray Data: one actor per device holds the model, pieces stream through."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from siclip.errors import UserError
from siclip_platform.inference.encoder import Encoder
from siclip_platform.inference.index import DESCRIPTION, PARTS, REJECTED, IndexDescription
from siclip_platform.inference.inputs import InputPart, Modality, find_pieces, read_rows
from siclip_platform.storage import AnyPath, absolute_path
from siclip_platform.storage.atomic import replacing, write_text_atomically

PIECE_ROWS = 256
REJECTED_SCHEMA = pa.schema([("id", pa.string()), ("place", pa.string()), ("reason", pa.string())])


class _Embed:
    """An actor: embeds one piece after the other and writes each as a Parquet file, whole or not at all."""

    def __init__(self, checkpoint: str, folder: str) -> None:
        self.encoder = Encoder.load(checkpoint)
        self.folder = Path(folder)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        number, piece = int(batch["number"][0]), InputPart(**json.loads(str(batch["piece"][0])))
        rows, rejected = self._embed(piece)
        table = pa.table(
            {
                "id": pa.array([row["id"] for row in rows], pa.string()),
                "place": pa.array([row["place"] for row in rows], pa.string()),
                "embedding": _vectors([row["embedding"] for row in rows], self.encoder.width),
            }
        )
        with replacing(self.folder / f"{number:06d}.parquet") as temporary:
            pq.write_table(table, temporary)
        return {
            "number": batch["number"],
            "rows": np.array([len(rows)]),
            "rejected": np.array([json.dumps(rejected)]),
        }

    def _embed(self, piece: InputPart) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
        rows, inputs, rejected = [], [], []
        for row in read_rows(piece):
            try:
                inputs.append(self._input(row))
            except UserError as error:
                rejected.append({"id": row["id"], "place": row["place"], "reason": str(error)})
            else:
                rows.append({"id": row["id"], "place": row["place"]})
        if inputs:
            encode = self.encoder.texts if piece.kind == "text" else self.encoder.images
            for row, embedding in zip(rows, encode(inputs), strict=True):
                row["embedding"] = embedding
        return rows, rejected

    def _input(self, row: dict[str, Any]) -> Any:
        if "image" in row:
            if not row["image"]:
                raise UserError(f"{row['place']} holds no bytes")
            return self.encoder.pixels(row["image"], row["place"])
        if not row["text"] or not row["text"].strip():
            raise UserError(f"{row['place']} is an empty text")
        return row["text"]


def embed(
    checkpoint: str | AnyPath,
    source: Path,
    out: Path,
    *,
    kind: Modality | None = None,
    column: str | None = None,
    actors: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> IndexDescription:
    """Embed what ``source`` holds into the new folder ``out``; needs a connected Ray.

    What cannot be read is left out and listed in ``rejected.parquet``, with its reason.

    Raises:
        UserError: the checkpoint or the source cannot be used, ``out`` exists, or nothing at all could be read.
    """
    encoder = Encoder.load(checkpoint)
    model = encoder.model.config
    pieces = find_pieces(source, kind, column, PIECE_ROWS)
    kinds = {piece.kind for piece in pieces}
    if len(kinds) > 1:
        raise UserError(f"{source} holds images and texts: choose with --kind image or --kind text")
    if out.exists():
        raise UserError(f"{out} exists and is not overwritten: remove it or choose another name")
    (out / PARTS).mkdir(parents=True)
    written, rejected = _run(checkpoint, pieces, out / PARTS, actors, progress)
    if not written:
        reason = rejected[0]["reason"] if rejected else "there is nothing in it"
        raise UserError(f"nothing of {source} could be embedded: {reason}")
    pq.write_table(pa.Table.from_pylist(rejected, REJECTED_SCHEMA), out / REJECTED)
    description = IndexDescription(
        kind=kinds.pop(), model=model.name, weights=encoder.weights, checkpoint=absolute_path(checkpoint),
        embed_dim=model.embed_dim, rows=written, rejected=len(rejected), source=str(source.resolve()),
    )  # fmt: skip
    write_text_atomically(out / DESCRIPTION, description.model_dump_json(indent=2) + "\n")
    return description


def _run(
    checkpoint: str | AnyPath,
    pieces: list[InputPart],
    folder: Path,
    actors: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[int, list[dict[str, str]]]:
    """Rows written, and the rejected ones in the order of the source."""
    import ray

    use_gpu = ray.cluster_resources().get("GPU", 0) >= 1
    items = [{"number": number, "piece": json.dumps(asdict(piece))} for number, piece in enumerate(pieces)]
    actors = min(actors, len(items))
    found = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Embed,
        fn_constructor_args=(absolute_path(checkpoint), str(folder.resolve())),
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=1 if use_gpu else 0,
    )
    written, rejected = 0, {}
    for done, row in enumerate(found.iter_rows(), 1):
        written += int(row["rows"])
        rejected[int(row["number"])] = json.loads(row["rejected"])
        if progress is not None:
            progress(done, len(items))
    return written, [item for number in sorted(rejected) for item in rejected[number]]


def _vectors(embeddings: list[Any], width: int) -> pa.FixedSizeListArray:
    flat = np.concatenate(embeddings) if embeddings else np.empty(0, np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), width)
