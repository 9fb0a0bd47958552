"""Captions and embeddings that a source brings with its images: written beside the shards, row by row with them.

Shapes: N rows of a row group, K augmentations, O operations of each, C captions of a row, D the teachers' widths.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from siclip.config import Config
from siclip.data.augment import OPERATIONS
from siclip.data.images import read_header
from siclip.errors import UserError
from siclip_platform.datasets.importing.sources.reinforced import IMAGE_PIXELS, Reinforcement, shape_of
from siclip_platform.datasets.importing.sources.sample import Caption, Reason, Rejection
from siclip_platform.datasets.manifest import ShardEntry
from siclip_platform.datasets.sidecar import CAPTIONS_SCHEMA, SidecarKind, SidecarWriter

if TYPE_CHECKING:
    # Its module imports torch, which a task of an import that has no embeddings does not need.
    from siclip_platform.datasets.derived.embeddings.layout import EmbeddingLayout

TEACHERS = ("open_clip:ViT-L-14:openai", "open_clip:ViT-L-14:datacomp_xl_s13b_b90k")
"""Of DataCompDR-12M and -1B, in this order, with logit scale 100: training/configs of apple/ml-mobileclip."""
Numbers = Literal["bf16", "int8"]
"""As in `siclip.data.quantize`."""
KINDS: tuple[SidecarKind, ...] = ("captions", "embeddings")
ASPECT_TOLERANCE = 0.02
"""How much the sides of an image may be scaled apart: rounding to whole pixels, not a cut or a border."""


class BesideConfig(Config):
    """The sets that a source brings with its images.

    Attributes:
        name: of the caption set and of the embedding set.
        teachers: names of the teachers whose embeddings stand side by side.
        widths: of each teacher's embeddings.
        logit_scale: of the teachers.
        augmentations: K of each image.
        operations: O, the most of an augmentation.
        numbers: number format on disk.
    """

    name: str
    teachers: tuple[str, ...]
    widths: tuple[int, ...]
    logit_scale: float = Field(100.0, gt=0)
    augmentations: int = Field(ge=1)
    operations: int = Field(ge=0)
    numbers: Numbers = "bf16"

    @property
    def width(self) -> int:
        return sum(self.widths)

    def layout(self, captions_hash: str = "") -> EmbeddingLayout:
        """Return the layout of the embedding set; its boxes are in pixels of the stored images."""
        from siclip_platform.datasets.derived.embeddings.layout import EmbeddingLayout, UsedCaptions

        teacher = " + ".join(self.teachers)
        inputs = f"crop, RandAugment at {IMAGE_PIXELS}; imported"
        return EmbeddingLayout(
            teacher=teacher,
            key=hashlib.sha256(f"{teacher}|{inputs}".encode()).hexdigest()[:16],
            widths=(self.width, self.width),
            logit_scale=self.logit_scale,
            numbers=self.numbers,
            augmentations=self.augmentations,
            image_size=(IMAGE_PIXELS, IMAGE_PIXELS),
            captions=(UsedCaptions(name=self.name, hash=captions_hash),),
        )

    @property
    def schemas(self) -> dict[SidecarKind, pa.Schema]:
        from siclip_platform.datasets.derived.embeddings.layout import with_operations

        schema = self.layout().schema
        embeddings = with_operations(schema, self.augmentations, self.operations) if self.operations else schema
        return {"captions": CAPTIONS_SCHEMA, "embeddings": embeddings}


def beside_config(
    file: str, first: Mapping[str, bytes], name: str, teachers: Sequence[str], numbers: Numbers
) -> BesideConfig:
    """Return the config of the sets, from the first sample of a source.

    Args:
        file: with the sample.
        first: extension → content of the sample's files.
        name: of the sets.
        teachers: whose embeddings stand side by side; none: `TEACHERS`.
        numbers: number format on disk.

    Raises:
        UserError: the sample is damaged, or its embeddings have another width than the teachers.
    """
    names = tuple(teachers) or TEACHERS
    widths = tuple(map(_teacher_width, names))
    try:
        shape = shape_of(first)
    except Rejection as rejected:
        raise UserError(
            f"the first sample of {file} has no embeddings that can be read: {rejected.detail}. Repair the file, or "
            "import images and captions alone with --layout webdataset"
        ) from None
    for what, width in (("image", shape.image_width), ("text", shape.text_width)):
        if width != sum(widths):
            sizes = " + ".join(f"{width} ({name})" for name, width in zip(names, widths, strict=True))
            raise UserError(
                f"{file}: its {what} embeddings have width {width}, and the teachers named {sizes}: name those that "
                "computed them with --embedded-by, in the order in which they stand"
            )
    return BesideConfig(
        name=name,
        teachers=names,
        widths=widths,
        augmentations=shape.augmentations,
        # Two is RandAugment's default: the first sample may have been left as it was.
        operations=max(shape.operations, 2),
        numbers=numbers,
    )


def _teacher_width(name: str) -> int:
    """Return the width of a teacher's embeddings; weights of open_clip are not loaded."""
    from siclip.open_clip_models import OPEN_CLIP
    from siclip_platform.datasets.derived.embeddings.teacher import load_teacher

    if not name.startswith(OPEN_CLIP):
        image, text = load_teacher(name).widths
        if image != text:
            raise UserError(f"the teacher {name} has embeddings of widths {image} and {text}: name another")
        return image
    import open_clip

    model = name.removeprefix(OPEN_CLIP).partition(":")[0]
    config = open_clip.get_model_config(model)
    if config is None:
        raise UserError(f"the teacher {name}: open_clip knows no model {model!r}; write open_clip:NAME:TAG")
    return int(config["embed_dim"])


@dataclass(frozen=True)
class BesideRow:
    """What is written beside a row: captions, boxes (K, 4) in pixels of the stored image, operations and magnitudes
    (K·O), unit embeddings (K, D) and (C, D)."""

    captions: tuple[Caption, ...]
    boxes: npt.NDArray[np.int32]
    operations: list[int]
    magnitudes: list[float]
    image: npt.NDArray[np.float32]
    text: npt.NDArray[np.float32]


def beside_row(found: Reinforcement, image: bytes, height: int, width: int, config: BesideConfig) -> BesideRow:
    """Fit what a source has of an image to the image as it is stored.

    Args:
        found: as the source has it.
        image: as the source has it.
        height, width: of the stored image.
        config: of the sets.

    Raises:
        Rejection: the embeddings are not those of the config, or the crops not of this image.
    """
    for what, vectors in (("image_emb", found.image), ("text_emb", found.text)):
        if vectors.shape[1] != config.width:
            raise Rejection(
                Reason.DAMAGED_ROW, f"{what} has width {vectors.shape[1]}, and {_teachers(config)} {config.width}"
            )
    if len(found.boxes) != config.augmentations:
        detail = f"there are {len(found.boxes)} augmentations, and {config.augmentations} of the first sample"
        raise Rejection(Reason.DAMAGED_ROW, detail)
    if any(len(each) > config.operations for each in found.operations):
        raise Rejection(Reason.DAMAGED_ROW, f"an augmentation has more than {config.operations} operations")
    empty = ("Identity", 0.0)
    done = [
        operation for each in found.operations for operation in (*each, *(empty,) * (config.operations - len(each)))
    ]
    return BesideRow(
        captions=found.captions,
        boxes=_stored_boxes(found, image, height, width),
        operations=[OPERATIONS.index(name) for name, _ in done],
        magnitudes=[value for _, value in done],
        image=_unit(found.image, config.widths),
        text=_unit(found.text, config.widths),
    )


def _teachers(config: BesideConfig) -> str:
    return f"{' and '.join(config.teachers)} {'have' if len(config.teachers) > 1 else 'has'}"


def _stored_boxes(found: Reinforcement, image: bytes, height: int, width: int) -> npt.NDArray[np.int32]:
    """Return the boxes in pixels of the stored image, each rounded to whole pixels.

    Raises:
        Rejection: the crops were not drawn on this image.
    """
    header = read_header(image)
    if header.orientation != 1:
        detail = "its crops were drawn on the picture before it is turned upright as its file states"
        raise Rejection(Reason.DAMAGED_ROW, detail)
    rows, columns = found.original or (header.height, header.width)
    down, right = height / rows, width / columns
    if abs(down / right - 1) > ASPECT_TOLERANCE:
        raise Rejection(
            Reason.DAMAGED_ROW,
            f"the picture has another shape than its original of {columns} × {rows} pixels, on which its crops were "
            "drawn: it was cut or padded",
        )
    top, left, high, wide = found.boxes.T
    if (top + high).max() > rows or (left + wide).max() > columns:
        raise Rejection(
            Reason.DAMAGED_ROW,
            f"a crop is outside the picture of {columns} × {rows} pixels, so its crops were drawn on another: import "
            "the originals, or state original_width and original_height in the .json",
        )
    edges = np.stack([top * down, left * right, (top + high) * down, (left + wide) * right], axis=1)
    first = np.minimum(np.rint(edges[:, :2]), [height - 1, width - 1])
    last = np.clip(np.rint(edges[:, 2:]), first + 1, [height, width])
    return np.concatenate([first, last - first], axis=1).astype(np.int32)


def _unit(vectors: npt.NDArray[np.float32], widths: Sequence[int]) -> npt.NDArray[np.float32]:
    """Return unit vectors; their cosine is the mean of the teachers', as in `siclip.teachers.TeacherEnsemble`."""
    parts = np.split(vectors, np.cumsum(widths)[:-1], axis=1)
    lengths = [np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in parts]
    joined = np.concatenate([part / length for part, length in zip(parts, lengths, strict=True)], axis=1)
    result: npt.NDArray[np.float32] = (joined / len(widths) ** 0.5).astype(np.float32)
    return result


class BesideShard:
    """The files beside one shard, written row group by row group."""

    def __init__(self, folder: Path, shard: str, config: BesideConfig, row_group_rows: int) -> None:
        self.config = config
        self.row_group_rows = row_group_rows
        self._writers = {kind: SidecarWriter(folder / f"{kind}-{shard}", config.schemas[kind]) for kind in KINDS}
        self._rows: list[BesideRow] = []

    def add(self, row: BesideRow) -> None:
        self._rows.append(row)
        if len(self._rows) == self.row_group_rows:
            self._flush()

    def close(self) -> dict[str, Any]:
        """Finish the files; return kind → entry."""
        self._flush()
        return {kind: writer.close().model_dump() for kind, writer in self._writers.items()}

    def _flush(self) -> None:
        if self._rows:
            for kind, table in _tables(self._rows, self.config).items():
                self._writers[kind].add(table)
            self._rows = []


def _tables(rows: Sequence[BesideRow], config: BesideConfig) -> dict[SidecarKind, pa.Table]:
    import torch

    from siclip_platform.datasets.derived.embeddings.layout import embedding_table

    listed = [[{"text": c.text, "source": c.source, "model": c.model} for c in row.captions] for row in rows]
    captions = pa.table({"captions": pa.array(listed, CAPTIONS_SCHEMA.field(0).type)}, CAPTIONS_SCHEMA)
    boxes = np.stack([row.boxes for row in rows])
    image, text = (torch.from_numpy(np.concatenate([getattr(row, n) for row in rows])) for n in ("image", "text"))
    table = embedding_table(config.layout(), image, boxes, text, [len(row.text) for row in rows])
    schema = config.schemas["embeddings"]
    for name in ("operations", "magnitudes"):
        if name in schema.names:
            values = pa.array([getattr(row, name) for row in rows], schema.field(name).type)
            table = table.append_column(schema.field(name), values)
    return {"captions": captions, "embeddings": table}


def change_beside(
    folder: Path,
    source: Path,
    chosen: Mapping[str, npt.NDArray[np.bool_]],
    config: BesideConfig,
    row_group_rows: int,
) -> dict[str, dict[str, Any]]:
    """Copy some rows of the files beside a shard.

    Args:
        folder: of the copies.
        source: the shard.
        chosen: name of a new shard → its rows.
        config: of the sets.
        row_group_rows: of the copies.

    Returns:
        Name of a new shard → kind → entry.
    """
    entries: dict[str, dict[str, Any]] = {}
    for name, rows in chosen.items():
        entries[name] = {}
        for kind in KINDS:
            writer = SidecarWriter(folder / f"{kind}-{name}", config.schemas[kind])
            for table in _regrouped(_filtered(source.with_name(f"{kind}-{source.name}"), rows), row_group_rows):
                writer.add(table)
            entries[name][kind] = writer.close().model_dump()
    return entries


def _filtered(path: Path, rows: npt.NDArray[np.bool_]) -> Iterator[pa.Table]:
    first = 0
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            yield table.filter(pa.array(rows[first : first + table.num_rows]))
            first += table.num_rows


def _regrouped(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Cut and join tables into tables of ``rows`` rows; the last may have fewer."""
    rest: pa.Table | None = None
    for table in tables:
        rest = table if rest is None else pa.concat_tables([rest, table])
        while rest.num_rows >= rows:
            yield rest.slice(0, rows).combine_chunks()
            rest = rest.slice(rows)
    if rest is not None and rest.num_rows:
        yield rest.combine_chunks()


def beside_entries(shard: Mapping[str, Any]) -> dict[SidecarKind, ShardEntry]:
    """Return the entries beside a shard, from a result of either stage."""
    return {kind: ShardEntry.model_validate(shard["beside"][kind]) for kind in KINDS if "beside" in shard}
