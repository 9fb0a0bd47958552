"""False captions of a dataset: a sidecar that rules write shard by shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from siclip.config import Config
from siclip.data.negatives import KINDS, kind_names
from siclip.errors import UserError
from siclip_platform.datasets.derived.embeddings.layout import UsedCaptions
from siclip_platform.datasets.derived.negatives.rules import FalseCaptions, Vocabulary
from siclip_platform.datasets.derived.sidecar_stage import (
    BuiltSidecar,
    Progress,
    ShardJob,
    build_sidecar,
    chosen_splits,
    shard_result,
)
from siclip_platform.datasets.derived.stage import Pool, Task, TaskOutput
from siclip_platform.datasets.manifest import MANIFEST, Dataset, open_dataset
from siclip_platform.datasets.parquet import parquet_file
from siclip_platform.datasets.sidecar import (
    NEGATIVES_SCHEMA,
    Sidecar,
    open_sidecar,
    sidecar_folder,
    write_sidecar_shard,
)

VERSION = "1"  # increase it when the same recipe gives other false captions
MOST_ROWS = 100_000
"""Rows whose words are counted, in row groups that are evenly spread over the splits."""


class NegativesConfig(Config):
    """How false captions are made.

    Attributes:
        per_caption: how many a caption gets, as far as it allows.
        kinds: what may be changed.
        seed: of the draws.
    """

    per_caption: int = Field(4, ge=1, le=64)
    kinds: tuple[str, ...] = KINDS
    seed: int = Field(0, ge=0, lt=2**32)

    @field_validator("kinds")
    @classmethod
    def _are_known(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown or not kinds:
            raise ValueError(f"{', '.join(unknown) or 'none'} is no kind: choose among {', '.join(KINDS)}")
        return kind_names(kinds)


def negatives_of_dataset(
    folder: Path,
    name: str,
    config: NegativesConfig,
    *,
    captions: Sequence[str] = (),
    splits: Sequence[str] = (),
    pool: Pool | None = None,
    progress: Progress | None = None,
) -> BuiltSidecar:
    """Write false captions of a dataset's captions. See `build_sidecar` for interrupted and repeated calls.

    The counts are: true ``captions``; those without a false one (``without``); and the false captions of each kind.

    Args:
        folder: of the dataset.
        name: of the false captions.
        config: how they are made.
        captions: caption sets beside the dataset whose captions get false ones too.
        splits: whose captions; default: all.
        pool: where the shards are written; default: in this process.
        progress: called after every shard.

    Raises:
        UserError: the dataset or a caption set cannot be opened, or the folder contains other false captions.
    """
    dataset = open_dataset(folder)
    target = sidecar_folder(dataset.local_folder, "negatives", name)
    chosen = chosen_splits(dataset, splits)
    sets = [open_sidecar(dataset, "captions", one) for one in captions]
    used = [UsedCaptions(name=one.manifest.name, hash=one.hash).model_dump(mode="json") for one in sets]
    recipe: dict[str, Any] = {"config": config.model_dump(mode="json"), "layout": {"captions": used}}
    # A finished set needs no vocabulary.
    done = (target / MANIFEST).exists()
    words = Vocabulary(() if done else _some_captions(dataset, chosen, sets))
    maker = FalseCaptions(words, config.per_caption, config.kinds, config.seed)
    pool = replace(pool or Pool(here=True), arguments=(dataset, sets, maker))
    return build_sidecar(dataset, "negatives", name, VERSION, recipe, chosen, _Write, pool, progress)


def texts_of_rows(
    dataset: Dataset, sets: Sequence[Sidecar], split: str, shard: int, group: int
) -> Iterator[tuple[str, list[str]]]:
    """Yield id and captions of each row of a row group: the dataset's own, then those of the caption sets.

    Raises:
        UserError: the shard cannot be read.
    """
    path = dataset.shards(split)[shard]
    try:
        with parquet_file(path) as file:
            table = file.read_row_group(group, columns=["id", "captions"])
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({str(error)[:200]}): compare the dataset with its manifest (siclip-platform "
            "data verify) and restore that file"
        ) from None
    columns = [table["captions"], *(one.read(split, shard, group, ["captions"])["captions"] for one in sets)]
    for sample_id, *lists in zip(table["id"].to_pylist(), *(column.to_pylist() for column in columns), strict=True):
        yield sample_id, [caption["text"] for captions in lists for caption in captions]


def _some_captions(dataset: Dataset, splits: Sequence[str], sets: Sequence[Sidecar]) -> Iterator[str]:
    groups = [
        (split, shard, group)
        for split in splits
        for shard, sizes in enumerate(dataset.groups(split))
        for group in range(len(sizes))
    ]
    total = sum(dataset.rows(split) for split in splits)
    kept = max(1, round(len(groups) * min(1, MOST_ROWS / max(1, total))))
    for index in np.unique(np.linspace(0, len(groups) - 1, kept).astype(int)) if groups else ():
        for _, texts in texts_of_rows(dataset, sets, *groups[int(index)]):
            yield from texts


class _Write:
    """Writes the false captions of a shard."""

    def __init__(self, dataset: Dataset, sets: Sequence[Sidecar], maker: FalseCaptions) -> None:
        self.dataset, self.sets, self.maker = dataset, sets, maker

    def __call__(self, folder: Path, task: Task) -> TaskOutput:
        job = ShardJob.model_validate(task.payload)
        counts: Counter[str] = Counter(dict.fromkeys(("captions", "without", *self.maker.kinds), 0))
        entry = write_sidecar_shard(folder / job.path, self._tables(job, counts), NEGATIVES_SCHEMA)
        return TaskOutput(files=(job.path,), result=shard_result(entry, counts))

    def _tables(self, job: ShardJob, counts: Counter[str]) -> Iterator[pa.Table]:
        for group in range(len(self.dataset.groups(job.split)[job.number])):
            rows = []
            for sample_id, texts in texts_of_rows(self.dataset, self.sets, job.split, job.number, group):
                made = self.maker.of(sample_id, texts)
                counts["captions"] += len(made)
                counts["without"] += sum(not each for each in made)
                counts.update(false.kind for each in made for false in each)
                rows.append([[{"text": false.text, "kind": false.kind} for false in each] for each in made])
            yield pa.table({"negatives": pa.array(rows, NEGATIVES_SCHEMA.field("negatives").type)}, NEGATIVES_SCHEMA)
