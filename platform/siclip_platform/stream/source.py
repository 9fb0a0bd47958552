"""One split of one dataset as the stream reads it: its shards, their order and their sidecars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from siclip.data.order import RowGroup, SampleOrder, first_samples
from siclip.errors import UserError
from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.datasets.sidecar import COMMANDS, Sidecar, open_sidecar
from siclip_platform.storage import AnyPath


@dataclass(frozen=True)
class StreamSource:
    """A split of a dataset, ready to read; picklable.

    Attributes:
        folder: the dataset.
        hashes: of the dataset's manifest and of every sidecar that is read.
        shards: the split's files.
        order: which row groups are read, and in which order.
        first_rows: (shard, row group) → the index of its first row in the split, in file order.
        rows: the split's rows.
        split: its name.
        captions: caption sets that are read in addition to the dataset's own captions.
        embeddings: stored teacher embeddings.
        negatives: stored false captions.
    """

    folder: AnyPath
    hashes: tuple[str, ...]
    shards: tuple[AnyPath, ...]
    order: SampleOrder
    first_rows: dict[tuple[int, int], int]
    rows: int
    split: str
    captions: tuple[Sidecar, ...] = ()
    embeddings: Sidecar | None = None
    negatives: Sidecar | None = None

    @classmethod
    def of(
        cls,
        folder: AnyPath,
        split: str,
        seed: int,
        window_groups: int,
        *,
        limit: int = 0,
        captions: Sequence[str] = (),
        embeddings: str | None = None,
        negatives: str | None = None,
    ) -> StreamSource:
        """Open a split.

        Args:
            folder: the dataset.
            split: the split's name.
            seed: shuffles row groups and rows.
            window_groups: row groups that are read and shuffled together.
            limit: use only the first samples (see `siclip.data.order.first_samples`); 0 for all.
            captions: names of caption sets beside the dataset, see `siclip_platform.datasets.sidecar`.
            embeddings: the name of an embedding set beside it.
            negatives: the name of a set of false captions beside it.

        Raises:
            UserError: the dataset or a sidecar is missing, damaged or does not fit, or the split has no samples or
                fewer than the limit.
        """
        dataset = open_dataset(folder)
        shards = tuple(dataset.shards(split))
        found = enumerate(dataset.groups(split))
        groups = [RowGroup(shard, n, rows) for shard, each in found for n, rows in enumerate(each)]
        rows = sum(group.rows for group in groups)
        if not rows:
            raise UserError(f"split {split!r} of dataset {folder} has no samples: name a dataset that has some")
        # one more than there are groups: the last is the end
        starts = accumulate((group.rows for group in groups), initial=0)
        first_rows = {(group.shard, group.index): start for group, start in zip(groups, starts, strict=False)}
        try:
            # first_rows counts all rows all the same: stored features are in the order of the whole split
            kept = first_samples(groups, limit) if limit else groups
        except UserError as error:
            raise UserError(f"split {split!r} of dataset {folder}: {error}") from None
        texts = tuple(open_sidecar(dataset, "captions", name) for name in captions)
        stored = open_sidecar(dataset, "embeddings", embeddings) if embeddings else None
        false = open_sidecar(dataset, "negatives", negatives) if negatives else None
        for made in (stored, false):
            if made is not None:
                _check_captions(made, captions)
                # now, and not when the first batch is read
                made.shards(split)
        return cls(
            folder=folder,
            hashes=(dataset.hash, *(sidecar.hash for sidecar in (*texts, stored, false) if sidecar is not None)),
            shards=shards,
            order=SampleOrder(kept, seed, window_groups),
            first_rows=first_rows,
            rows=rows,
            split=split,
            captions=texts,
            embeddings=stored,
            negatives=false,
        )


def _check_captions(stored: Sidecar, captions: Sequence[str]) -> None:
    """Refuse what was made of captions in another order than those that are read."""
    made_with = [used["name"] for used in stored.manifest.recipe["layout"].get("captions", ())]
    if made_with[: len(captions)] != list(captions):
        raise UserError(
            f"{stored.folder} was computed with the caption sets {made_with}, and data.captions names "
            f"{list(captions)}: name the first of those in the same order, or build it again (siclip-platform "
            f"{COMMANDS[stored.manifest.kind]})"
        )
