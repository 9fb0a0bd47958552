"""False captions by rule: what they exchange, that they are false, and the sidecar that holds them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from siclip.data.negatives import KINDS
from siclip.errors import UserError
from siclip_platform.cli import app
from siclip_platform.datasets.derived.negatives import build
from siclip_platform.datasets.derived.negatives.build import NegativesConfig, negatives_of_dataset
from siclip_platform.datasets.derived.negatives.phrases import article_of, noun_phrases, tokens_of
from siclip_platform.datasets.derived.negatives.rules import FalseCaptions, Vocabulary
from siclip_platform.datasets.derived.negatives.words import FAMILIES, meanings, plural
from siclip_platform.datasets.manifest import Manifest, open_dataset, write_manifest, write_shard
from siclip_platform.datasets.schema import SCHEMA
from siclip_platform.datasets.sidecar import (
    CAPTIONS_SCHEMA,
    SidecarManifest,
    open_sidecar,
    sidecar_folder,
    write_sidecar_manifest,
    write_sidecar_shard,
)
from siclip_platform.datasets.tools.inspect import sample_rows
from siclip_platform.datasets.tools.verify import verify_dataset

WORDS = (
    "red blue green orange one two three four five big small left right above below cat dog horse apple orange eagle"
)
USED = [
    "a red cat and a blue dog on a green horse",
    "two big dogs left of three small cats",
    "an eagle above an apple",
    "an orange below an old house",
    "four young horses right of five eagles",
    "a woman behind a man in front of a new house",
]


def maker(count: int = 64, captions: list[str] | None = None, **options: object) -> FalseCaptions:
    return FalseCaptions(Vocabulary(captions or USED), count, **options)  # type: ignore[arg-type]


def texts(caption: str, kind: str, others: tuple[str, ...] = ()) -> set[str]:
    made = maker(kinds=(kind,)).of("id", [caption, *others])[0]
    assert {false.kind for false in made} <= {kind}
    return {false.text for false in made}


@pytest.mark.parametrize(
    ("kind", "caption", "expected"),
    [
        ("swap_nouns", "a red cat and a blue dog", {"a red dog and a blue cat"}),
        ("swap_nouns", "a cat above a dog", {"a dog above a cat"}),
        ("swap_nouns", "an apple left of a cat", {"a cat left of an apple"}),
        # either order says the same; another number; the picture and what it shows
        ("swap_nouns", "a cat and a dog", set()),
        ("swap_nouns", "two dogs on a horse", set()),
        ("swap_nouns", "a photo of a cat", set()),
        ("swap_attributes", "a red cat and a blue dog", {"a blue cat and a red dog"}),
        (
            "swap_attributes",
            "a big red cat above a small blue dog",
            {"a small red cat above a big blue dog", "a big blue cat above a small red dog"},
        ),
        ("swap_attributes", "a big cat above a blue dog", set()),
        ("swap_attributes", "a red cat and a blue cat", set()),
        ("swap_attributes", "two dogs left of three cats", {"three dogs left of two cats"}),
        ("swap_attributes", "one dog left of three cats", set()),
        ("colour", "a Red cat", {"a Blue cat", "a Green cat", "an Orange cat"}),
        ("number", "two cats", {"three cats", "four cats", "five cats"}),
        ("size", "a BIG cat", {"a SMALL cat"}),
        ("direction", "a cat left of a dog", {"a cat right of a dog"}),
        ("direction", "a man in front of a house", {"a man behind a house"}),
        ("antonym", "an old house", {"a new house", "a young house"}),
        ("noun", "an eagle.", set()),
        ("noun", "two cats", {"two dogs", "two horses"}),
        ("noun", "a cat by a man", {"a dog by a man", "a horse by a man", "a cat by a woman"}),
    ],
)
def test_each_kind_exchanges_what_it_says(kind: str, caption: str, expected: set[str]) -> None:
    assert texts(caption, kind) == expected


def test_a_false_caption_is_no_true_one_of_the_image_and_takes_no_word_from_one() -> None:
    """The paraphrase inverts the relation, so the opposite of a relation stays possible."""
    caption, paraphrase = "a red cat left of a blue dog", "A blue dog, right of a red cat!"
    made = maker().of("id", [caption, paraphrase])
    said = [re.sub(r"\W+", " ", false.text.lower()).strip() for each in made for false in each]
    assert not {"a red cat left of a blue dog", "a blue dog right of a red cat"} & set(said)
    assert "a red cat right of a blue dog" in said
    assert all(len(set(map(str, each))) == len(each) for each in made)
    # swapped and inverted at once would be true again
    assert texts("a cat left of a dog", "swap_nouns", ("a dog left of a cat",)) == set()
    assert texts("a cat", "noun", ("a dog",)) == {"a horse"}


def test_words_come_from_the_dataset_as_often_as_it_uses_them() -> None:
    used = ["a red cat"] * 10 + ["a blue cat"] * 60 + ["a green cat"] * 20
    made = maker(1, used, kinds=("colour",))
    drawn = Counter(made.of(str(n), ["a red cat"])[0][0].text.split()[1] for n in range(2000))
    assert set(drawn) == {"blue", "green"}
    assert drawn["blue"] / 2000 == pytest.approx(0.75, abs=0.04)


def test_nouns_that_are_in_no_list_are_those_of_the_dataset() -> None:
    used = ["a gizmo on a widget", "two gizmos", "a doodad", "a rare"] + ["a gizmo", "a widget", "a doodad"] * 3
    made = maker(64, used, kinds=("noun",)).of("id", ["a gizmo"])[0]
    assert {false.text for false in made} == {"a widget", "a doodad"}


def test_the_draw_depends_on_seed_id_and_caption_alone() -> None:
    captions = ["a red cat above a blue dog", "two big dogs left of three small cats"]
    alone = [maker(3).of("a", [caption])[0] for caption in captions]
    assert maker(3).of("a", captions[:1])[0] == alone[0]
    assert maker(3, USED[::-1]).of("a", captions[1:])[0] == alone[1]
    others = {str(maker(3, seed=seed).of(name, captions[:1])) for seed in range(3) for name in "abc"}
    assert len(others) > 5


def test_kinds_take_turns() -> None:
    made = maker(6).of("id", ["two big red cats left of three small blue dogs"])[0]
    assert len({false.kind for false in made}) == 6


def test_phrases_articles_and_plurals() -> None:
    tokens = tokens_of("A man riding a flying bird over the old sea, a yellow T-shirt that is big")
    found = [([tokens[i].word for i in p.attributes], tokens[p.head].word) for p in noun_phrases(tokens)]
    assert found == [([], "man"), (["flying"], "bird"), (["old"], "sea"), (["yellow"], "t-shirt")]
    assert [article_of(w) for w in ("apple", "hour", "unicorn", "uninvited", "8", "11", "11-year", "one")] == [
        *("an", "an", "a", "an", "an", "an", "a", "a")
    ]
    assert [plural(w) for w in ("cat", "box", "cherry", "boy", "knife")] == [
        "cats",
        "boxes",
        "cherries",
        "boys",
        "knives",
    ]


def test_the_lists_are_consistent() -> None:
    """No word excludes itself, and the kinds of the lists are those of the library."""
    for kind, families in FAMILIES.items():
        assert kind in KINDS
        for family in families:
            words = [word for group in family for word in group]
            assert len(words) == len(set(words)), words
            assert len(family) >= 2
    for word, found in meanings().items():
        assert all(word not in meaning.others for meaning in found)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards with row groups of 2, 2 and 1 rows, and a caption set."""
    root = tmp_path / "data"
    root.mkdir()
    entries = []
    for shard in range(2):
        rows = [
            {
                "id": f"{shard}/{n}",
                "image": b"x",
                "width": 1,
                "height": 1,
                "captions": [{"text": text, "source": "original", "model": None} for text in (USED[n], USED[n + 1])],
                "category": None,
                "meta": None,
            }
            for n in range(5)
        ]
        table = pa.Table.from_pylist(rows, SCHEMA)
        entries.append(write_shard(table, root / f"train-{shard}.parquet", row_group_size=2))
    write_manifest(root, Manifest(name="d", version="1", recipe={}, splits={"train": entries}))
    return root


def test_the_command_writes_them_beside_the_data_and_inspect_shows_them(folder: Path) -> None:
    run = CliRunner(env={"COLUMNS": "200"})
    done = run.invoke(app, ["data", "negatives", str(folder), "--name", "near", "--per-caption", "3"])
    assert done.exit_code == 0, done.output
    vocabulary = Vocabulary(text for n in range(5) for text in (USED[n], USED[n + 1]) for _ in range(2))
    total = 0
    for shard in range(2):
        file = pq.ParquetFile(folder / f"negatives/near/train-{shard}.parquet")
        assert [file.metadata.row_group(group).num_rows for group in range(3)] == [2, 2, 1]
        for n, row in enumerate(file.read()["negatives"].to_pylist()):
            expected = FalseCaptions(vocabulary, 3).of(f"{shard}/{n}", [USED[n], USED[n + 1]])
            total += sum(map(len, expected))
            assert row == [[{"text": f.text, "kind": f.kind} for f in each] for each in expected]
    assert 50 < total <= 60
    assert f"{total} false captions of 20 true ones" in done.output.replace("\n", "")
    assert not verify_dataset(folder)
    done = run.invoke(app, ["data", "inspect", str(folder), "--negatives", "near"])
    assert done.exit_code == 0, done.output
    assert f"false captions near of train: {total} of 20 captions, 0 without one" in done.output
    assert "swap_attributes: " in done.output and " for 'a red cat and a blue dog" in done.output
    near, dataset = open_sidecar(open_dataset(folder), "negatives", "near"), open_dataset(folder)
    (row,) = sample_rows(dataset, "train", 1, None, near)
    false = [caption for caption in row["captions"] if caption["source"] == "false"]
    expected = FalseCaptions(vocabulary, 3).of("0/0", USED[:2])
    assert [(c["text"], c["model"]) for c in false] == [
        (f.text, f"false: {f.kind}") for each in expected for f in each
    ]
    done = run.invoke(app, ["data", "negatives", str(folder), "--name", "other", "--kind", "shape"])
    assert isinstance(done.exception, UserError) and "shape is no kind" in str(done.exception)


def test_a_stopped_build_resumes_to_the_same_bytes_and_other_settings_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = NegativesConfig(per_caption=2)
    negatives_of_dataset(folder, "whole", config)

    def stop(done: int, *_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        negatives_of_dataset(folder, "near", config, progress=stop)
    target = folder / "negatives/near"
    first = (target / "train-0.parquet").stat().st_mtime_ns
    built = negatives_of_dataset(folder, "near", config)
    assert (target / "train-0.parquet").stat().st_mtime_ns == first
    for shard in range(2):
        name = f"train-{shard}.parquet"
        assert (target / name).read_bytes() == (folder / "negatives/whole" / name).read_bytes()
    # a finished set is reused without reading the captions again
    monkeypatch.setattr(build, "_some_captions", lambda *_: pytest.fail("the captions were read again"))
    assert negatives_of_dataset(folder, "near", config).sidecar.hash == built.sidecar.hash
    with pytest.raises(UserError, match=r"negatives that differ in config"):
        negatives_of_dataset(folder, "near", NegativesConfig(per_caption=3))


def test_captions_beside_the_data_are_falsified_too_and_may_not_be_replaced(folder: Path) -> None:
    dataset = open_dataset(folder)
    write_captions(folder, "a big dog left of a cat")
    built = negatives_of_dataset(folder, "near", NegativesConfig(per_caption=2), captions=["more"])
    rows = built.sidecar.read("train", 0, 0)["negatives"].to_pylist()
    assert [len(row) for row in rows] == [3, 3]
    assert all(false["text"] != "a big dog left of a cat" for row in rows for false in row[2])
    write_captions(folder, "a small dog right of a cat")
    with pytest.raises(
        UserError, match=r"contains negatives of other captions than .*siclip-platform data negatives"
    ):
        open_sidecar(dataset, "negatives", "near")


def write_captions(folder: Path, text: str) -> None:
    dataset = open_dataset(folder)
    target = sidecar_folder(folder, "captions", "more")
    target.mkdir(parents=True, exist_ok=True)
    caption = {"text": text, "source": "synthetic", "model": "m"}
    entries = []
    for shard, sizes in zip(dataset.shards("train"), dataset.groups("train"), strict=True):
        tables = [pa.Table.from_pylist([{"captions": [caption]}] * size, CAPTIONS_SCHEMA) for size in sizes]
        entries.append(write_sidecar_shard(target / shard.name, tables, CAPTIONS_SCHEMA))
    manifest = SidecarManifest(
        kind="captions", name="more", version="1", dataset=dataset.hash, recipe={}, splits={"train": entries}
    )
    write_sidecar_manifest(target, manifest)
    assert json.loads((target / "manifest.json").read_text())["kind"] == "captions"
