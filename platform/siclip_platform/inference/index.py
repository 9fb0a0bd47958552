"""An index: embeddings of images or of texts in Parquet, with a description of their origin.

Folder: ``index.json`` (`IndexDescription`), ``embeddings/*.parquet`` (id, place, embedding) and ``rejected.parquet``
(id, place, reason); ``place`` is the location of the input, see `InputRow`. Shapes: N rows, D embed_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
from pydantic import Field, ValidationError

from siclip.config import Config
from siclip.errors import UserError
from siclip_platform.inference.encoder import Embeddings
from siclip_platform.inference.inputs import Modality

DESCRIPTION = "index.json"
PARTS = "embeddings"
REJECTED = "rejected.parquet"
LOCATION = "place"  # the column's name in existing indexes


class IndexDescription(Config):
    """The origin of an index.

    Attributes:
        kind: what was embedded.
        model: the model's name.
        weights: hash of its weights.
        checkpoint: the path or URI that it was loaded from.
        embed_dim: width of the embeddings.
        rows: number of embeddings.
        rejected: number of inputs that could not be read.
        source: the path of the inputs.
    """

    kind: Modality
    model: str
    weights: str
    checkpoint: str
    embed_dim: int = Field(ge=1)
    rows: int = Field(ge=0)
    rejected: int = Field(ge=0)
    source: str


@dataclass(frozen=True)
class Hit:
    """A row near a query.

    Attributes:
        id: of the row.
        location: of its input, see `read_image_at`.
        similarity: cosine with the query.
    """

    id: str
    location: str
    similarity: float


@dataclass(frozen=True)
class Index:
    """An opened index; ``embeddings`` is (N, D), unit length."""

    description: IndexDescription
    ids: list[str]
    locations: list[str]
    embeddings: Embeddings

    def nearest(self, query: Embeddings, count: int) -> list[Hit]:
        """The ``count`` rows nearest to a unit embedding (D,), the nearest first; ties in the order of the index."""
        similarity = self.embeddings @ query
        best = np.argsort(-similarity, kind="stable")[:count]
        return [Hit(self.ids[i], self.locations[i], float(similarity[i])) for i in best]


def open_index(folder: Path) -> Index:
    """Read an index that `siclip-platform embed` wrote.

    Raises:
        UserError: it is not an index, or an incomplete one.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise UserError(
            f"{folder} is not an index: it has no {DESCRIPTION}, which is written last. "
            "Create one with: siclip-platform embed"
        )
    try:
        description = IndexDescription.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path} does not describe an index: {error.errors()[0]['msg']}; embed again") from None
    try:
        table = pads.dataset(folder / PARTS, format="parquet").to_table()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"the embeddings of {folder} cannot be read: {error}; embed again") from None
    if table.num_rows != description.rows:
        raise UserError(
            f"{folder} has {table.num_rows} embeddings, but {DESCRIPTION} lists {description.rows}: embed again"
        )
    flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    embeddings = flat.reshape(table.num_rows, description.embed_dim).astype(np.float32, copy=False)
    return Index(description, table["id"].to_pylist(), table[LOCATION].to_pylist(), embeddings)
