"""What a set of false captions contains."""

from __future__ import annotations

from collections import Counter

import numpy as np

from siclip.data.negatives import KINDS
from siclip_platform.datasets.derived.negatives.build import texts_of_rows
from siclip_platform.datasets.manifest import Dataset
from siclip_platform.datasets.sidecar import Sidecar, read_sidecar

MOST_GROUPS = 100
"""Row groups that are looked at, evenly spread."""


def describe_negatives(dataset: Dataset, sidecar: Sidecar, split: str) -> list[str]:
    """Return lines of text: how many false captions of each kind a split has, and an example of each.

    Raises:
        UserError: the set was not built for this split.
    """
    counts, examples = Counter[str](), dict[str, tuple[str, str]]()
    captions = without = 0
    used = [read_sidecar(dataset, "captions", one["name"]) for one in sidecar.manifest.recipe["layout"]["captions"]]
    groups = [(shard, group) for shard, sizes in enumerate(dataset.groups(split)) for group in range(len(sizes))]
    chosen = np.unique(np.linspace(0, len(groups) - 1, min(MOST_GROUPS, len(groups))).astype(int)) if groups else ()
    for index in chosen:
        shard, group = groups[int(index)]
        made = sidecar.read(split, shard, group)["negatives"].to_pylist()
        for (_, texts), each in zip(texts_of_rows(dataset, used, split, shard, group), made, strict=True):
            captions += len(texts)
            without += sum(not some for some in each)
            for text, some in zip(texts, each, strict=True):
                for false in some:
                    counts[false["kind"]] += 1
                    examples.setdefault(false["kind"], (text, false["text"]))
    name = sidecar.manifest.name
    seen = "" if len(chosen) == len(groups) else f" in {len(chosen)} of {len(groups)} row groups"
    total = f"{counts.total():,} of {captions:,} captions{seen}, {without:,} without one"
    lines = [f"false captions {name} of {split}: {total}"]
    for kind in (kind for kind in KINDS if counts[kind]):
        true, false_text = examples[kind]
        lines.append(f"  {kind}: {counts[kind]:,}, such as {false_text!r} for {true!r}")
    return lines
