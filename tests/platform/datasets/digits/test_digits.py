"""Digit scenes, checked independently of their code: captions are parsed, and digits are located in the pixels."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from siclip.data.images import decode_image
from siclip_platform.datasets.digits.digits import (
    DigitScenesConfig,
    compose_scene,
    compose_shard,
    digit_scenes_recipe,
    shard_specs,
)
from siclip_platform.datasets.digits.glyphs import load_glyphs, split_instances
from siclip_platform.datasets.schema import validate_table

SMALL = DigitScenesConfig(train_scenes=300, validation_scenes=100, test_scenes=250, shard_rows=100, row_group_rows=40)
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
PAINT = {
    "red": (255, 0, 0),
    "green": (0, 220, 0),
    "blue": (60, 100, 255),
    "yellow": (255, 230, 0),
    "purple": (190, 50, 240),
    "white": (255, 255, 255),
}


class Thing(NamedTuple):
    size: str
    colour: str
    digit: int


class Description(NamedTuple):
    first: Thing
    relation: str
    second: Thing

    @property
    def inverted(self) -> Description:
        return Description(self.second, INVERSE[self.relation], self.first)


def parse(caption: str) -> Description:
    thing = r"a (small|big) (\w+) (\w+)"
    match = re.fullmatch(f"{thing} (left of|right of|above|below) {thing}", caption)
    assert match, caption
    size, colour, word, relation, size2, colour2, word2 = match.groups()
    return Description(
        Thing(size, colour, NUMBERS.index(word)), relation, Thing(size2, colour2, NUMBERS.index(word2))
    )


def parse_other_template(caption: str) -> Description:
    match = re.fullmatch(
        r"there is a (small|big) (\w+) in (\w+) (left of|right of|over|under) "
        r"(?:a|an) (\w+) that is (small|big) and (\w+)",
        caption,
    )
    assert match, caption
    size, word, colour, relation, word2, size2, colour2 = match.groups()
    relation = {"over": "above", "under": "below"}.get(relation, relation)
    return Description(
        Thing(size, colour, NUMBERS.index(word)), relation, Thing(size2, colour2, NUMBERS.index(word2))
    )


@pytest.fixture(scope="module")
def splits() -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for spec in shard_specs(SMALL):
        table = compose_shard(spec)
        validate_table(table, spec.file_name)
        rows[spec.split] += table.to_pylist()
    for split in rows.values():
        for row in split:
            row["meta"] = json.loads(row["meta"])
            row["described"] = parse(row["captions"][0]["text"])
    return rows


def combinations(rows: list[dict[str, Any]]) -> set[tuple[int, str]]:
    return {
        (thing.digit, thing.colour) for row in rows for thing in (row["described"].first, row["described"].second)
    }


@pytest.mark.slow  # importing scikit-learn takes seconds
def test_glyphs_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    ink, digit = load_glyphs()
    reference = load_digits()
    np.testing.assert_array_equal(ink, reference.images)
    np.testing.assert_array_equal(digit, reference.target)


def test_shards_cover_every_scene_once() -> None:
    config = DigitScenesConfig(train_scenes=5, validation_scenes=4, test_scenes=1, shard_rows=2)
    assert [(s.file_name, s.start, s.stop) for s in shard_specs(config)] == [
        ("train-00000.parquet", 0, 2),
        ("train-00001.parquet", 2, 4),
        ("train-00002.parquet", 4, 5),
        ("validation-00000.parquet", 0, 2),
        ("validation-00001.parquet", 2, 4),
        ("test-00000.parquet", 0, 1),
    ]


def test_a_scene_depends_only_on_seed_split_and_number() -> None:
    resharded = SMALL.model_copy(update={"shard_rows": 7, "train_scenes": 20, "test_scenes": 9})
    other_seed = SMALL.model_copy(update={"seed": 1})
    for split in ("train", "validation", "test"):
        scene = compose_scene(SMALL, split, 5)
        assert compose_scene(resharded, split, 5) == scene
        assert compose_scene(other_seed, split, 5)["image"] != scene["image"]
        assert compose_scene(SMALL, split, 6)["image"] != scene["image"]


def test_splits_share_no_handwritten_instance(splits: dict[str, list[dict[str, Any]]]) -> None:
    _, labels = load_glyphs()
    used = {}
    for name, rows in splits.items():
        things = [thing for row in rows for thing in row["meta"]["things"]]
        assert all(labels[thing["instance"]] == thing["digit"] for thing in things)
        used[name] = {thing["instance"] for thing in things}
        assert len(used[name]) > 100
    assert not used["train"] & used["validation"]
    assert not used["train"] & used["test"]
    assert not used["validation"] & used["test"]
    every = np.concatenate([part for parts in split_instances(0).values() for part in parts])
    assert sorted(every) == list(range(1797))


def test_held_out_combinations_occur_only_in_test(splits: dict[str, list[dict[str, Any]]]) -> None:
    held_out = {(digit, colour) for digit, colour in digit_scenes_recipe(SMALL)["held_out"]}
    assert len(held_out) == 6
    many = [compose_scene(SMALL, "train", number) for number in range(300, 900)]
    train = [{"described": parse(row["captions"][0]["text"])} for row in many] + splits["train"]
    assert combinations(train) | held_out == {(digit, colour) for digit in range(10) for colour in PAINT}
    assert not combinations(train) & held_out
    assert not combinations(splits["validation"]) & held_out
    assert held_out <= combinations(splits["test"])
    for row in splits["train"] + splits["validation"] + splits["test"]:
        assert row["meta"]["held_out"] == bool(combinations([row]) & held_out)


def test_captions_agree_with_meta_and_each_other(splits: dict[str, list[dict[str, Any]]]) -> None:
    relations = set()
    for row in splits["train"] + splits["test"]:
        described = row["described"]
        assert [caption["source"] for caption in row["captions"]] == ["original", "synthetic", "synthetic"]
        assert [caption["model"] for caption in row["captions"]] == [None, "template", "template"]
        assert parse(row["captions"][1]["text"]) == described.inverted
        assert parse_other_template(row["captions"][2]["text"]) == described
        assert ("an eight" in row["captions"][2]["text"]) == (described.second.digit == 8)
        for thing, meta in zip((described.first, described.second), row["meta"]["things"], strict=True):
            assert thing == (meta["size"], meta["colour"], meta["digit"])
        assert row["meta"]["relation"] == described.relation
        assert row["category"] == f"{described.first.digit}-{described.second.digit}"
        assert described.first.digit != described.second.digit
        assert described.first.colour != described.second.colour
        relations.add(described.relation)
    assert relations == set(INVERSE)


def test_captions_are_short_for_the_text_tower(splits: dict[str, list[dict[str, Any]]]) -> None:
    from open_clip import get_tokenizer

    texts = [caption["text"] for row in splits["test"] for caption in row["captions"]]
    assert (get_tokenizer("ViT-B-32")(texts) != 0).sum(dim=1).max() < 20


@pytest.mark.parametrize("split", ["validation", "test"])
def test_no_two_scenes_of_a_split_have_the_same_description(split: str) -> None:
    config = DigitScenesConfig(image_size=32)
    described = [
        parse(compose_scene(config, split, number)["captions"][0]["text"]) for number in range(config.scenes(split))
    ]
    assert len({min(one, one.inverted) for one in described}) == len(described)


def test_each_negative_differs_in_one_attribute_and_is_false(splits: dict[str, list[dict[str, Any]]]) -> None:
    assert all("negatives" not in row["meta"] for row in splits["train"])
    changed = {"digit": set(), "colour": set(), "size": set()}  # type: dict[str, set[int]]
    for row in splits["validation"] + splits["test"]:
        described = row["described"]
        negatives = {name: parse(text) for name, text in row["meta"]["negatives"].items()}
        assert set(negatives) == {"digit", "colour", "swapped_colours", "relation", "size"}
        for negative in negatives.values():
            assert negative not in (described, described.inverted)
        for attribute, positions in changed.items():
            negative = negatives[attribute]
            assert negative.relation == described.relation
            differing = [n for n in (0, 2) if negative[n] != described[n]]
            assert len(differing) == 1
            before, after = described[differing[0]], negative[differing[0]]
            assert isinstance(before, Thing)
            assert isinstance(after, Thing)
            assert before._replace(**{attribute: getattr(after, attribute)}) == after
            other = described[2 - differing[0]]
            assert isinstance(other, Thing)
            if attribute != "size":
                assert getattr(after, attribute) != getattr(other, attribute)
            positions.add(differing[0])
        assert negatives["relation"] == described._replace(relation=INVERSE[described.relation])
        assert negatives["swapped_colours"] == Description(
            described.first._replace(colour=described.second.colour),
            described.relation,
            described.second._replace(colour=described.first.colour),
        )
    assert all(positions == {0, 2} for positions in changed.values())


def ink_of(image: npt.NDArray[np.uint8], colours: list[str]) -> list[npt.NDArray[np.intp]]:
    """Return for each colour the pixels (N, 2), as (y, x), far from the background in that colour's direction."""
    background = np.median(image.reshape(-1, 3), axis=0)
    away = image - background
    paints = np.array([PAINT[colour] for colour in colours]) - background
    nearest = (away @ (paints / np.linalg.norm(paints, axis=1, keepdims=True)).T).argmax(axis=2)
    # JPEG spreads colours over a few pixels around each stroke.
    far = np.abs(away).max(axis=2) > 100
    return [np.argwhere((nearest == number) & far) for number in range(len(colours))]


@pytest.mark.parametrize("image_size", [32, 64, 96])
def test_pixels_show_the_scene_of_the_caption(image_size: int) -> None:
    config = DigitScenesConfig(image_size=image_size)
    heights: dict[str, list[int]] = {"small": [], "big": []}
    for number in range(150):
        row = compose_scene(config, "test", number)
        described = parse(row["captions"][0]["text"])
        image = decode_image(row["image"])
        assert image.shape == (row["height"], row["width"], 3) == (image_size, image_size, 3)
        first, second = ink_of(image, [described.first.colour, described.second.colour])
        assert min(len(first), len(second)) > image_size / 4, number
        (y1, x1), (y2, x2) = np.median(first, axis=0), np.median(second, axis=0)
        along, across = (x1 - x2, y1 - y2) if described.relation in ("left of", "right of") else (y1 - y2, x1 - x2)
        assert (along < 0) == (described.relation in ("left of", "above")), number
        assert abs(along) > abs(across), number
        for thing, meta in zip((described.first, described.second), json.loads(row["meta"])["things"], strict=True):
            heights[thing.size].append(meta["box"][2])
            ink = first if thing is described.first else second
            extent = np.percentile(ink[:, 0], 98) - np.percentile(ink[:, 0], 2)
            # Between the two sizes: 0.27 of the side for a small box, 0.46 for a big one, less the margins.
            threshold = 0.29 * image_size
            assert (extent > threshold) == (thing.size == "big"), (number, extent)
    assert min(heights["big"]) > 1.5 * max(heights["small"])


def test_boxes_are_inside_the_image_apart_and_aligned(splits: dict[str, list[dict[str, Any]]]) -> None:
    for row in splits["train"] + splits["test"]:
        one, two = (np.array(thing["box"][:2]) for thing in row["meta"]["things"])
        side1, side2 = (thing["box"][2] for thing in row["meta"]["things"])
        assert min(*one, *two) >= 0
        assert max(*(one + side1), *(two + side2)) <= 64
        axis = 0 if row["described"].relation in ("left of", "right of") else 1
        before, after, side = (one, two, side1) if one[axis] < two[axis] else (two, one, side2)
        assert before[axis] + side < after[axis]
        assert (before is one) == (row["described"].relation in ("left of", "above"))
        centres = one[1 - axis] + side1 / 2, two[1 - axis] + side2 / 2
        # Misalignment of 0.1 of the image, and a pixel for rounding.
        assert abs(centres[0] - centres[1]) <= 0.1 * 64 + 1
