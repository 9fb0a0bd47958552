"""The artifact ``data_summary.json`` of a run, from which a report shows the data without access to it.

`summarize_dataset` computes it from a dataset, and with a checkpoint from what the model retrieves. A run logs it
(`TrackedRun.artifact`), and a report on any machine reads it from the tracking store.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError, field_validator

from siclip.config import Config

if TYPE_CHECKING:
    from siclip_platform.datasets.manifest import Dataset

NAME = "data_summary.json"
LEDGER = "ledger.parquet"
THUMBNAIL = 128
MAX_CAPTION = 400
POOL = 256
TOP = 3
# A summary may come from anyone's run: only images may reach the HTML report.
_IMAGE = re.compile(r"data:image/(?:jpeg|png);base64,[A-Za-z0-9+/]+={0,2}")


class SplitSummary(Config):
    """Sizes of one split, and statistics of the captions of its first `POOL` rows.

    Attributes:
        rows: number of rows.
        shards: number of shards.
        bytes: size of the shards.
        captions_per_image: mean.
        words_mean: words per caption.
        distinct_share: share of distinct captions.
        sources: captions by source.
    """

    rows: int = Field(ge=0)
    shards: int = Field(ge=0)
    bytes: int = Field(ge=0)
    captions_per_image: float | None = None
    words_mean: float | None = None
    distinct_share: float | None = None
    sources: dict[str, int] = Field(default_factory=dict)


class RetrievedCaption(Config):
    """A caption that a model found; ``right``: it is one of the image's own."""

    caption: str
    right: bool


class ExampleSummary(Config):
    """An example image.

    Attributes:
        image: data URI of a small JPEG.
        captions: its own.
        retrieved: the captions that a model found nearest.
    """

    image: str
    captions: tuple[str, ...]
    retrieved: tuple[RetrievedCaption, ...] = ()

    @field_validator("image")
    @classmethod
    def _only_an_image(cls, image: str) -> str:
        if not _IMAGE.fullmatch(image):
            raise ValueError("must be a data URI of a JPEG or PNG")
        return image


class DataSummary(Config):
    """Summary of a dataset.

    Attributes:
        name: of the dataset.
        version: of the code that built it.
        hash: of its manifest.
        recipe: of its manifest.
        splits: sizes and captions.
        rejected: reason → rows that the import rejected.
        examples: images with captions.
        pool: number of captions searched for ``retrieved``; 0 without a model.
    """

    name: str
    version: str
    hash: str
    recipe: dict[str, Any] = Field(default_factory=dict)
    splits: dict[str, SplitSummary] = Field(default_factory=dict)
    rejected: dict[str, int] = Field(default_factory=dict)
    examples: tuple[ExampleSummary, ...] = ()
    pool: int = 0


def read_summary(text: str | None) -> DataSummary | str | None:
    """Parse a summary; None without text, a sentence for the report if it cannot be read."""
    if not text:
        return None
    try:
        return DataSummary.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "(file)"
        return f"The run's {NAME} cannot be read: {field}: {first['msg']}."


def write_summary(summary: DataSummary, folder: Path) -> Path:
    """Write ``folder/data_summary.json``, which a run logs, and return its path."""
    path = folder / NAME
    path.write_text(json.dumps(summary.model_dump(mode="json"), ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def summarize_dataset(
    dataset: Dataset,
    *,
    checkpoint: Path | None = None,
    split: str = "test",
    examples: int = 6,
    rejected: Mapping[str, int] | None = None,
) -> DataSummary:
    """Summarize a dataset; reads at most the first shard of each split.

    Args:
        dataset: to summarize.
        checkpoint: a model. Each example then has the `TOP` captions that the model finds nearest among the first
            captions of the split's first `POOL` rows. Up to half of the examples are images whose own caption is not
            the nearest.
        split: of the examples.
        examples: their number.
        rejected: reason → rows; default: from the ledger beside the dataset.

    Raises:
        UserError: there is no such split, or the checkpoint cannot be read.
    """
    rows = _rows(dataset, split)
    order = _retrieve(rows, checkpoint) if checkpoint and rows else None
    chosen = _choose(order, len(rows), examples)
    return DataSummary(
        name=dataset.manifest.name,
        version=dataset.manifest.version,
        hash=dataset.hash,
        recipe=dataset.manifest.recipe,
        splits={name: _split(dataset, name) for name in dataset.split_names},
        rejected=dict(_rejected(dataset) if rejected is None else rejected),
        examples=tuple(_example(rows, index, order[index] if order else ()) for index in chosen),
        pool=len(rows) if order else 0,
    )


def _rejected(dataset: Dataset) -> dict[str, int]:
    """Count the rows of the ledger beside an imported dataset by reason."""
    from siclip_platform.datasets.parquet import read_table

    path = dataset.folder / LEDGER
    if not path.is_file():
        return {}
    return dict(Counter(read_table(path, ["reason"])["reason"].to_pylist()))


def _rows(dataset: Dataset, split: str) -> list[dict[str, Any]]:
    from siclip_platform.datasets.parquet import parquet_file

    shards = dataset.shards(split)
    if not shards:
        return []
    with parquet_file(shards[0]) as file:
        batches = file.iter_batches(batch_size=POOL, columns=["image", "captions"])
        return next((batch.to_pylist() for batch in batches), [])


def _split(dataset: Dataset, split: str) -> SplitSummary:
    entries, rows = dataset.entries(split), _rows(dataset, split)
    captions = [caption for row in rows for caption in row["captions"]]
    texts = [caption["text"] for caption in captions]
    return SplitSummary(
        rows=dataset.rows(split),
        shards=len(entries),
        bytes=sum(entry.bytes for entry in entries),
        captions_per_image=len(captions) / len(rows) if rows else None,
        words_mean=sum(len(text.split()) for text in texts) / len(texts) if texts else None,
        distinct_share=len(set(texts)) / len(texts) if texts else None,
        sources=dict(Counter(str(caption.get("source")) for caption in captions)),
    )


def _choose(order: Sequence[Sequence[int]] | None, rows: int, examples: int) -> list[int]:
    """Choose rows evenly; with a model half of them from those whose own caption is not the nearest."""
    if order is None:
        return sorted({index * rows // max(1, examples) for index in range(min(examples, rows))})
    wrong = [index for index in range(rows) if order[index][0] != index]
    right = [index for index in range(rows) if order[index][0] == index]
    # If there are too few right images, wrong ones fill their places.
    half = wrong[: max(examples // 2, examples - len(right))]
    return [*right[: examples - len(half)], *half]


def _retrieve(rows: Sequence[Mapping[str, Any]], checkpoint: Path) -> list[list[int]]:
    """Return for each row the rows whose first captions are nearest to its image, by the model."""
    import torch

    from siclip.checkpoints.formats import load_model
    from siclip.data.batch import to_float_images
    from siclip.data.images import decode_image
    from siclip.data.transforms import fit_image
    from siclip.models.finite import unit
    from siclip.models.freezing import eval_mode
    from siclip.tokenizer import tokenize

    model = load_model(checkpoint)
    size = model.config.image.image_size
    images = torch.stack(
        [
            torch.from_numpy(fit_image(decode_image(row["image"], f"row {index}"), size))
            for index, row in enumerate(rows)
        ]
    )
    tokens = tokenize([row["captions"][0]["text"] for row in rows], model.config.text.context_length)
    with torch.no_grad(), eval_mode(model):
        image = torch.cat(
            [model.encode_image(to_float_images(part), normalize=True) for part in torch.split(images, 64)]
        )
        text = torch.cat([model.encode_text(part, normalize=True) for part in torch.split(tokens, 64)])
    image, text = unit(image, str(checkpoint)), unit(text, str(checkpoint))
    return [found.tolist() for found in (image @ text.T).topk(min(TOP, len(rows)), dim=1).indices]


def _example(rows: Sequence[Mapping[str, Any]], index: int, nearest: Sequence[int]) -> ExampleSummary:
    own = tuple(caption["text"][:MAX_CAPTION] for caption in rows[index]["captions"])
    found = [rows[other]["captions"][0]["text"][:MAX_CAPTION] for other in nearest]
    retrieved = tuple(RetrievedCaption(caption=text, right=text in own) for text in found)
    return ExampleSummary(image=_thumbnail(rows[index]["image"], f"row {index}"), captions=own, retrieved=retrieved)


def _thumbnail(encoded: bytes, where: str) -> str:
    from PIL import Image

    from siclip.data.images import decode_image

    small = Image.fromarray(decode_image(encoded, where))
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
