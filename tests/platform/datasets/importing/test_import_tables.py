"""Tables lose no row: rows read are those of an independent count, and a caption is a text or a list of texts."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from import_parts import Outcome, imported, picture

from siclip.errors import UserError


def account(found: Outcome) -> int:
    """Return the rows read, after comparing them with the rows written and the ledger."""
    done = found.imported
    assert done.read == sum(map(len, found.rows.values())) + done.merged + len(found.ledger)
    return done.read


@pytest.mark.parametrize(("name", "separator"), [("list.tsv", "\t"), ("list.csv", ",")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_unclosed_quotation_mark_costs_only_its_own_row(
    name: str, separator: str, end: str, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/p.png").write_bytes(picture(0))
    rows = [f"p.png{separator}caption number {i} of a thing" for i in range(3_000)]
    rows[100] = f'p.png{separator}"Best ever said the reviewer of this thing'
    rows[2_100] = f'p.png{separator}a thing that ends with a mark"'
    lines = [f"path{separator}caption", *rows]
    (tmp_path / "in" / name).write_text(end.join(lines) + end, newline="")
    for size in (50, 10_000):
        found = imported(tmp_path / "in", tmp_path / f"out{size}", rows=size)
        assert account(found) == len(rows)  # counted by the lines
        assert [row["place"] for row in found.ledger] == ["100"]
        [captions] = found.captions.values()
        assert len(captions) == 2_999


def test_rows_over_several_lines_are_those_of_the_csv_module(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(40):
        (tmp_path / f"in/{number}.png").write_bytes(picture(number))
    odd = ["two\nlines", 'a "quoted" word', "a, b\nc, d", "\nfirst", 'three\n\n"lines", so', "plain", " spaced ", "ü"]
    with (tmp_path / "in/list.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("path", "caption"), *((f"{n}.png", odd[n % len(odd)]) for n in range(40))])
    table = pandas.read_csv(tmp_path / "in/list.csv")
    for rows in (3, 100):
        found = imported(tmp_path / "in", tmp_path / f"out{rows}", rows=rows)
        assert account(found) == len(table)
        texts = [text for captions in found.captions.values() for text in captions]
        assert texts == [" ".join(text.split()) for text in table["caption"]]


@pytest.mark.parametrize("separator", [";", "|", "\t", ","])
@pytest.mark.parametrize("name", ["list.csv", "list.tsv"])
def test_other_separators_are_found(separator: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/p.png").write_bytes(picture(0))
    (tmp_path / "in" / name).write_text(f"path{separator}caption\np.png{separator}one\n")
    assert list(imported(tmp_path / "in", tmp_path / "out").captions.values()) == [["one"]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([float("nan"), 1.5, None]), [None, None, None]),
        (pa.array([True, False, None]), [None, None, None]),
        (pa.array([[["a", "b"], ["c"]], [["a"]], None]), [None, None, None]),
        (pa.array([[("en", "cat")]] * 3, pa.map_(pa.string(), pa.string())), [None] * 3),
        (pa.array([{"en": "cat"}, None, {"en": None}]), [None] * 3),
        (pa.array([["a", None, "b"], [], [None]]), [["a", "b"], None, None]),
        (pa.array([[{"text": "a"}], [{"text": None}], [{"text": "b"}]]), [["a"], None, ["b"]]),
        (pa.array([b"plain", "größe".encode(), b"\xff"]), [["plain"], ["größe"], None]),
    ],
    ids=["numbers", "booleans", "nested", "map", "struct", "list", "texts", "bytes"],
)
def test_only_texts_and_lists_of_texts_are_captions(values: Any, expected: list[Any], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    ids = [str(n) for n in range(4)]
    # One good row, because an import without a row is refused.
    pq.write_table(pa.table({"image": [picture(9)], "caption": ["good"], "id": ["3"]}), tmp_path / "in/good.parquet")
    images = [picture(n) for n in range(3)]
    pq.write_table(pa.table({"image": images, "caption": values, "id": ids[:3]}), tmp_path / "in/odd.parquet")
    found = imported(tmp_path / "in", tmp_path / "out")
    assert account(found) == 4
    good = {name: texts for name, texts in zip(ids, [*expected, ["good"]], strict=True) if texts}
    assert found.captions == good


def test_missing_values_of_text_files_are_no_captions(tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / "jsonl").mkdir()
    values = ["NaN", "", '["a", "b"]', "['c']", "['d' 'e']", "Nan the cat", "null"]
    for number in range(len(values)):
        for kind in ("csv", "jsonl"):
            (tmp_path / kind / f"{number}.png").write_bytes(picture(number))
    with (tmp_path / "csv/list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "caption"), *((f"{n}.png", v) for n, v in enumerate(values))])
    found = imported(tmp_path / "csv", tmp_path / "out-csv")
    assert sorted(found.captions.values()) == [["Nan the cat"], ["a", "b"], ["c"]]
    assert account(found) == len(values)
    lines = [
        '{"path": "0.png", "caption": NaN}',
        '{"path": "1.png", "caption": null}',
        '{"path": "2.png", "caption": 3}',
    ]
    lines += ['{"path": "3.png", "caption": "a", "caption": "b"}', '{"path": "4.png", "caption": ["x", "y"]}']
    lines += ['{"path": "5.png", "caption": ' + "[" * 5_000 + "]" * 5_000 + "}", '{"path": ' + "1" * 5_000 + "}"]
    lines += [json.dumps({"path": "6.png", "caption": "ok\u2028end"}, ensure_ascii=False)]
    (tmp_path / "jsonl/list.jsonl").write_text("\n".join(lines) + "\n")
    found = imported(tmp_path / "jsonl", tmp_path / "out-jsonl")
    assert sorted(found.captions.values()) == [["ok end"], ["x", "y"]]
    assert account(found) == len(lines)


def test_a_column_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,caption,caption\na.png,first,second\n")
    arrays = [pa.array([picture(0)]), pa.array(["first"]), pa.array(["second"])]
    pq.write_table(pa.Table.from_arrays(arrays, names=["image", "caption", "caption"]), tmp_path / "a.parquet")
    for name in ("list.csv", "a.parquet"):
        with pytest.raises(UserError, match=f"{name} has the column 'caption' more than once"):
            imported(tmp_path / name, tmp_path / "out")


@pytest.mark.slow  # datasets takes seconds to import
def test_class_labels_keep_their_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["cat", "dog", "bird"]),
        }
    )
    images = [{"bytes": picture(n), "path": None} for n in range(4)]
    rows = {"image": images, "text": list("abcd"), "label": [2, 0, 1, -1]}
    saved = datasets.Dataset.from_dict(rows, features=features)
    saved.save_to_disk(tmp_path / "saved")
    (tmp_path / "hub").mkdir()
    saved.to_parquet(tmp_path / "hub/a.parquet")
    for name in ("saved", "hub"):
        found = imported(tmp_path / name, tmp_path / f"out-{name}")
        expected = [None if n < 0 else features["label"].int2str(n) for n in rows["label"]]
        assert [row["category"] for row in found.rows["train"]] == expected


def test_a_list_that_shrank_after_it_was_planned_is_told(tmp_path: Path) -> None:
    from siclip_platform.datasets.importing.sources.columns import ColumnNames
    from siclip_platform.datasets.importing.sources.find import find_source
    from siclip_platform.datasets.importing.sources.part import read_samples

    (tmp_path / "p.png").write_bytes(picture(0))
    lines = ["path,caption", *(f"p.png,number {n}" for n in range(9))]
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    [part] = find_source(str(tmp_path / "list.csv"), None, ColumnNames(), 100).parts
    (tmp_path / "list.csv").write_text("\n".join(lines[:5]) + "\n")
    last = list(read_samples(str(tmp_path / "list.csv"), part))[-1]
    assert "the file was changed" in str(last.rejected)
