"""False captions beside the data are read with the right caption, by threads, as blocks and with a trunk cache."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from siclip.data.captions import stable_id
from siclip.data.negatives import KINDS, choose_negatives
from siclip.errors import UserError
from siclip.models import model_config
from siclip.tokenizer import tokenize
from siclip_platform.datasets.derived.negatives.build import NegativesConfig, negatives_of_dataset
from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.datasets.sidecar import open_sidecar
from siclip_platform.recipes.digits import digits_student
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.stream import Stream, thread_batches
from siclip_platform.stream.columns import shares
from siclip_platform.stream.parts import PartReader, parts_of
from siclip_platform.stream.ray_reader import received_batches
from siclip_platform.stream.source import _check_captions
from siclip_platform.stream.windows import EMBEDDINGS, Group

MODEL = model_config("siclip-nano")
COUNT = 3


@pytest.fixture(scope="module")
def folder(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digit scenes with four false captions of most captions; of swaps alone there are fewer than COUNT."""
    copy = tmp_path_factory.mktemp("near")
    for file in digits.iterdir():
        if file.is_file():
            shutil.copy(file, copy)
    negatives_of_dataset(copy, "near", NegativesConfig(), splits=["train"])
    negatives_of_dataset(copy, "swaps", NegativesConfig(kinds=("swap_nouns", "swap_attributes")), splits=["train"])
    return copy


def recipe(folder: Path, **changes: object) -> Recipe:
    wanted = {"data.negatives": "near", "data.negatives_per_sample": COUNT, "loss.generated_columns": "own"}
    return digits_student(folder).updated(
        {"data.window_row_groups": 3, "training.batch_size": 50, **wanted, **changes}
    )


def rows(folder: Path, name: str) -> dict[int, tuple[str, list[str], list[list[dict]]]]:
    """Hash of the id → id, captions and their false captions, from the files."""
    found = {}
    for shard in sorted(folder.glob("train-*")):
        false = pq.read_table(folder / "negatives" / name / shard.name)["negatives"].to_pylist()
        for row, made in zip(pq.read_table(shard).to_pylist(), false, strict=True):
            found[stable_id(row["id"])] = row["id"], [caption["text"] for caption in row["captions"]], made
    return found


@pytest.mark.parametrize("name", ["near", "swaps"])
def test_a_sample_brings_false_captions_of_the_caption_that_it_gets(folder: Path, name: str) -> None:
    known = rows(folder, name)
    batches = list(thread_batches(Stream.of(recipe(folder, **{"data.negatives": name}), MODEL), 50, 0, 480))
    missing = 0
    for epoch, batch in ((0, batches[0]), (1, batches[-2])):
        assert batch.negatives is not None and batch.negatives.tokens.shape == (50, COUNT, 20)
        for number, key in enumerate(batch.image_ids.tolist()):
            sample, captions, made = known[key]
            ids = [stable_id(text) for text in captions]
            false = made[ids.index(int(batch.caption_ids[number]))]
            chosen = [false[index] for index in choose_negatives(len(false), COUNT, 0, epoch, sample)]
            kinds = [KINDS.index(each["kind"]) for each in chosen]
            assert batch.negatives.kinds[number].tolist() == kinds + [-1] * (COUNT - len(chosen))
            texts = [each["text"] for each in chosen]
            assert batch.negatives.ids[number, : len(texts)].tolist() == [stable_id(text) for text in texts]
            assert not set(texts) & set(captions)
            assert torch.equal(batch.negatives.tokens[number, : len(texts)], tokenize(texts, 20).long())
            missing += COUNT - len(texts)
    assert (missing > 0) == (name == "swaps")


def test_they_travel_in_the_blocks_of_ray_datas_tasks(folder: Path) -> None:
    stream = Stream.of(recipe(folder), MODEL)
    reader = PartReader(stream.sources, stream.captions, stream.unique_batch)
    parts = list(parts_of(stream.sources, stream.mixture, 50, 0, 150))
    blocks = [(part, 0, Group.of_table(table)) for part in parts for table in reader.blocks(part)]
    received = list(received_batches(stream, list(shares(50, 0, 150)), iter(blocks)))
    for ours, theirs in zip(received, thread_batches(stream, 50, 0, 150), strict=True):
        assert ours.negatives is not None and theirs.negatives is not None
        assert all(
            torch.equal(getattr(ours.negatives, n), getattr(theirs.negatives, n)) for n in ("tokens", "ids", "kinds")
        )
        assert torch.equal(ours.tokens, theirs.tokens)


def test_a_reader_without_images_has_the_same_ones(folder: Path) -> None:
    """As a trunk cache reads them."""
    stream = Stream.of(recipe(folder), MODEL)
    whole = next(thread_batches(stream, 50, 0, 50))
    samples = stream.samples(0, 50, stream.windows(("id", "captions", EMBEDDINGS)))
    captions = [[stable_id(str(c["text"])) for c in sample.captions] for sample in samples]
    chosen = [ids.index(int(key)) for ids, key in zip(captions, whole.caption_ids, strict=True)]
    assert whole.negatives is not None
    found = stream.false_texts(samples, chosen)
    assert (found["negative_ids"] == whole.negatives.ids.numpy()).all()


def test_what_is_not_used_is_not_read_and_what_is_used_must_be_named(folder: Path) -> None:
    unused = Stream.of(recipe(folder, **{"loss.generated_columns": "none"}), MODEL)
    assert unused.negatives == 0 and unused.sources[0].negatives is None
    assert next(thread_batches(unused, 50, 0, 50)).negatives is None
    plain = Stream.of(recipe(folder, **{"loss.generated_columns": "none", "data.negatives": None}), MODEL)
    assert unused.cursor(0) == plain.cursor(0) != Stream.of(recipe(folder), MODEL).cursor(0)
    stream = Stream.of(recipe(folder), MODEL)
    assert replace(stream, negatives=2).cursor(0).order != stream.cursor(0).order
    with pytest.raises(UserError, match=r"data\.negatives: a part of the loss uses generated false captions"):
        recipe(folder, **{"data.negatives": None})
    with pytest.raises(UserError, match=r"has no finished negatives 'far': it has near, swaps.*data negatives"):
        Stream.of(recipe(folder, **{"data.negatives": "far"}), MODEL)
    with pytest.raises(UserError, match=r"was computed with the caption sets \[\]"):
        _check_captions(open_sidecar(open_dataset(folder), "negatives", "near"), ["other"])
