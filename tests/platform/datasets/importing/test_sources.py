"""Every layout of a source gives the same samples; a broken sample is rejected in its position."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from siclip.errors import UserError
from siclip_platform.datasets.importing.sources.columns import ColumnNames
from siclip_platform.datasets.importing.sources.find import find_source
from siclip_platform.datasets.importing.sources.part import read_samples
from siclip_platform.datasets.importing.sources.sample import SourceSample

NAMES = ["ant", "bee", "cat", "dog", "eel"]


def image(name: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (ord(name[0]) * 2, 7, 9)).save(buffer, "PNG")
    return buffer.getvalue()


def caption(name: str) -> str:
    return f'a "small" {name},\n  seen 蟻'


def read(root: Any, columns: ColumnNames | None = None, rows: int = 2, layout: Any = None) -> list[SourceSample]:
    source = find_source(str(root), layout, columns or ColumnNames(), rows)
    return [sample for part in source.parts for sample in read_samples(source.root, part)]


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_tar(folder: Path) -> Path:
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for name in NAMES:
            add(tar, f"{name}.png", image(name))
            add(tar, f"{name}.txt", caption(name).encode())
            add(tar, f"{name}.json", json.dumps({"kind": name[0]}).encode())
    pq.write_table(pa.table({"key": NAMES}), folder / "00000.parquet")  # as img2dataset writes it, without images
    return folder


def write_parquet(folder: Path) -> Path:
    images, captions, kinds = [image(n) for n in NAMES], [caption(n) for n in NAMES], [n[0] for n in NAMES]
    rows = {"key": NAMES, "jpg": images, "txt": captions, "kind": kinds}
    pq.write_table(pa.table(rows), folder / "00000.parquet", row_group_size=1)
    return folder


def write_images(folder: Path) -> None:
    for name in NAMES:
        (folder / f"{name}.png").write_bytes(image(name))


def write_list(suffix: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "images").mkdir()
        write_images(folder / "images")
        rows = [{"id": n, "path": f"images/{n}.png", "caption": caption(n), "kind": n[0]} for n in NAMES]
        path = folder / f"list{suffix}"
        with path.open("w", newline="", encoding="utf-8") as file:
            if suffix == ".jsonl":
                file.writelines(json.dumps(row) + "\n" for row in rows)
            else:
                writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
                writer.writeheader()
                writer.writerows(rows)
        return path

    return write


def write_folder(folder: Path) -> Path:
    write_images(folder)
    for name in NAMES:
        (folder / f"{name}.txt").write_text(caption(name), encoding="utf-8")
        (folder / f"{name}.json").write_text(json.dumps({"kind": name[0]}))
    return folder


def write_hugging_face(folder: Path) -> Path:
    import datasets

    images = [{"bytes": image(n), "path": None} for n in NAMES]
    rows = {"id": NAMES, "image": images, "text": [caption(n) for n in NAMES], "kind": [n[0] for n in NAMES]}
    texts = {name: datasets.Value("string") for name in ("id", "text", "kind")}
    features = datasets.Features(**texts, image=datasets.Image())
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder / "saved", num_shards=2)
    return folder / "saved"


WRITERS = {
    "webdataset": write_tar,
    "parquet": write_parquet,
    "csv": write_list(".csv"),
    "tsv": write_list(".tsv"),
    "jsonl": write_list(".jsonl"),
    "folder": write_folder,
    "arrow": write_hugging_face,
}


@pytest.mark.parametrize("form", [pytest.param(f, marks=pytest.mark.slow if f == "arrow" else ()) for f in WRITERS])
def test_every_layout_gives_the_same_samples(form: str, tmp_path: Path) -> None:
    samples = read(WRITERS[form](tmp_path))
    assert [sample.id for sample in samples] == NAMES
    assert [sample.rejected for sample in samples] == [None] * 5
    assert [sample.image for sample in samples] == [image(name) for name in NAMES]
    assert [[c.text for c in sample.captions] for sample in samples] == [[f'a "small" {n}, seen 蟻'] for n in NAMES]
    assert [sample.meta for sample in samples] == [{"kind": name[0]} for name in NAMES]
    assert len({(sample.source, sample.location) for sample in samples}) == 5


@pytest.mark.slow
def test_the_splits_of_a_saved_dataset_dict_are_kept(tmp_path: Path) -> None:
    import datasets

    def part(names: list[str]) -> Any:
        return datasets.Dataset.from_dict(
            {"image": [image(n) for n in names], "caption": [[n, n * 2] for n in names]}
        )

    datasets.DatasetDict({"train": part(NAMES[:3]), "test": part(NAMES[3:])}).save_to_disk(tmp_path / "d")
    source = find_source(str(tmp_path / "d"), None, ColumnNames(), 10)
    found = {part.split: [s.captions for s in read_samples(source.root, part)] for part in source.parts}
    assert {split: [[c.text for c in cs] for cs in captions] for split, captions in found.items()} == {
        "train": [[n, n * 2] for n in NAMES[:3]],
        "test": [[n, n * 2] for n in NAMES[3:]],
    }


def test_columns_are_mapped_and_missing_ones_are_refused_at_the_start(tmp_path: Path) -> None:
    rows = {"pixels": [image(n) for n in NAMES], "alt": NAMES, "long": [None, *["long"] * 4], "n": [1, 2, 3, 4, 5]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    columns = ColumnNames(image="pixels", caption=("alt", "long"), id="n", category="alt")
    samples = read(tmp_path, columns)
    assert [sample.id for sample in samples] == ["1", "2", "3", "4", "5"]
    assert [[c.text for c in s.captions] for s in samples] == [["ant"], *[[n, "long"] for n in NAMES[1:]]]
    assert [sample.category for sample in samples] == NAMES
    with pytest.raises(UserError, match="no column 'px': it has pixels, alt, long, n"):
        read(tmp_path, ColumnNames(image="px"))
    with pytest.raises(UserError, match=r"usual name for a caption.*--caption-column"):
        read(tmp_path, ColumnNames(image="pixels"))


def test_images_that_img2dataset_could_not_download_have_their_own_reason(tmp_path: Path) -> None:
    rows = {"key": ["a", "b", "c"], "jpg": [image("a"), None, None], "txt": ["x", None, "z"]}
    rows |= {"status": ["success", "failed_to_download", "success"], "error_message": [None, "404", None]}
    pq.write_table(pa.table(rows), tmp_path / "0.parquet")
    reasons = [str(sample.rejected) for sample in read(tmp_path)]
    assert reasons == ["None", "not downloaded: failed_to_download: 404", "missing image: there is no image"]


def test_broken_rows_of_lists_are_rejected_in_their_position(tmp_path: Path) -> None:
    write_images(tmp_path)
    lines = ["path,caption", "ant.png,an ant", "bee.png", "", "gone.png,gone", "cat.png,", 'dog.png,"a', 'dog"']
    lines.append(f"eel.png,{'x' * 200_000}")
    (tmp_path / "a.csv").write_bytes("\n".join(lines).encode() + b"\nant.png,\xff\xfe\n")
    samples = read(tmp_path / "a.csv")
    expected = [None, "damaged row", "missing image", "empty caption", None, "damaged row", "undecodable text"]
    assert [s.rejected and s.rejected.reason.value for s in samples] == expected
    assert [s.location for s in samples] == [str(n) for n in range(7)]
    assert str(samples) == str(read(tmp_path / "a.csv", rows=100)), "the size of the parts has an effect"
    text = '{"path": "ant.png", "text": "an ant"}\n[1]\n{"path": "bee.png", "text": "\\ud800"}\n{"path": "be\n'
    (tmp_path / "b.jsonl").write_text(text)
    reasons = [s.rejected and s.rejected.reason.value for s in read(tmp_path / "b.jsonl")]
    assert reasons == [None, "damaged row", "undecodable text", "damaged row"]


def test_incomplete_samples_of_a_tar_are_rejected(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "one.png", image("o"))
        add(tar, "two.txt", b"two")
        add(tar, "three.png", image("t"))
        add(tar, "three.json", b'{"caption": "from the json"}')
        add(tar, "four.png", image("f"))
        add(tar, "four.png", image("f"))
        add(tar, "../../five.png", image("v"))
        add(tar, "../../five.txt", b"five")
        link = tarfile.TarInfo("six.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        add(tar, "six.txt", b"six")
        add(tar, "seven.png", image("s"))
        add(tar, "seven.txt", b"seven")
        add(tar, "seven.json", b"{")
    before = sorted(tmp_path.rglob("*"))
    samples = {sample.id: sample for sample in read(tmp_path)}
    reasons = {key: s.rejected and s.rejected.reason.value for key, s in samples.items()}
    expected = {"one": "missing caption", "two": "missing image", "three": None, "../../five": None}
    assert reasons == expected | dict.fromkeys(("four", "six", "seven"), "damaged row")
    assert samples["three"].captions[0].text == "from the json"
    assert sorted(tmp_path.rglob("*")) == before, "a member was unpacked to disk"


@pytest.mark.parametrize("compressed", [False, True])
def test_a_truncated_tar_gives_the_samples_before_the_cut(tmp_path: Path, compressed: bool) -> None:
    whole = (write_tar(tmp_path) / "00000.tar").read_bytes()
    for path in tmp_path.iterdir():
        path.unlink()
    starts = {}
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        starts = {member.name: member.offset for member in tar}
    # Inside a header, inside the content, exactly between two members, and inside a large member.
    cuts = {starts["cat.txt"] + 100: 2, starts["cat.txt"] + 520: 2, starts["dog.png"]: 3, starts["dog.png"] + 700: 3}
    for cut, good in cuts.items():
        part = whole[:cut]
        name = "a.tar.gz" if compressed else "a.tar"
        (tmp_path / name).write_bytes(gzip.compress(part) if compressed else part)
        samples = read(tmp_path)
        assert [s.id for s in samples[:-1]] == NAMES[:good], cut
        assert samples[-1].rejected is not None
        assert samples[-1].rejected.reason.value == "damaged source"


def test_a_damaged_file_among_others_is_one_rejected_sample(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    (tmp_path / "00001.parquet").write_bytes(b"PAR1 and then nothing")
    samples = read(tmp_path)
    assert [s.rejected and s.rejected.reason.value for s in samples] == [*[None] * 5, "damaged source"]


@pytest.mark.parametrize("rows", [1, 7, 1_000], ids=lambda rows: f"{rows} rows per part")
def test_a_damaged_page_rejects_the_remaining_rows_of_its_row_group(tmp_path: Path, rows: int) -> None:
    path, count = tmp_path / "0.parquet", 900
    images = [image("ant") + bytes([n % 251]) * 500 for n in range(count)]
    texts = [f"caption {n}" for n in range(count)]
    table = pa.table({"id": [str(n) for n in range(count)], "image": images, "text": texts})
    options = {"compression": "none", "use_dictionary": False, "data_page_size": 20_000}
    pq.write_table(table, path, row_group_size=300, **options)
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    data = bytearray(path.read_bytes())
    offset = column.data_page_offset + column.total_compressed_size - 25_000  # in the last pages
    data[offset : offset + 24_000] = b"\xff" * 24_000
    path.write_bytes(data)
    samples = read(path, rows=rows)
    assert [sample.location for sample in samples] == [str(n) for n in range(count)]
    lost = [int(sample.location) for sample in samples if sample.rejected]
    assert lost == list(range(lost[0], 600)), "rows outside the second row group were rejected"
    assert lost[0] > 300
    assert {s.rejected.reason.value for s in samples if s.rejected} == {"damaged source"}
    good = [(s.id, s.captions[0].text) for s in samples if not s.rejected]
    assert good == [(str(n), f"caption {n}") for n in range(count) if n not in lost]


def test_captions_of_a_json_are_one_or_many(tmp_path: Path) -> None:
    values = {
        "a": {"caption": "one"},
        "b": {"captions": ["one", "two"]},
        "c": {"caption": ["one", " "], "x": math.nan},
    }
    for name, value in values.items():
        (tmp_path / f"{name}.png").write_bytes(image(name))
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    samples = read(tmp_path)
    assert [[caption.text for caption in sample.captions] for sample in samples] == [["one"], ["one", "two"], ["one"]]
    assert samples[2].meta["x"] == "NaN", "meta is not JSON"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", r"has no header \(it is empty\)"),
        (b"path,caption\ra.png,x\r", "Unix or Windows line ends"),
        ("path,caption\na.png,x\n".encode("utf-16"), "looks like UTF-16"),
    ],
)
def test_a_list_without_a_header_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=problem):
        read(tmp_path / "a.csv")


def test_invalid_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist: name an existing"):
        read(tmp_path / "nowhere")
    (tmp_path / "notes.doc").touch()
    with pytest.raises(UserError, match="nothing to import in"):
        read(tmp_path)
    with pytest.raises(UserError, match="cannot be opened"):
        read("nosuchscheme://bucket/key")
