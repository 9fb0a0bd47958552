"""Diagnostics of caption sets, on captions whose figures are counted by hand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from captioning_parts import SIDE, shapes_dataset, write_caption_set
from PIL import Image
from torch.nn import functional as F
from typer.testing import CliRunner

from siclip.checkpoints.formats import load_model
from siclip.data.images import decode_image
from siclip.errors import UserError
from siclip.tokenizer import tokenize
from siclip_platform.cli import app
from siclip_platform.cli.data.diagnosis import degenerate
from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.datasets.parquet import read_table
from siclip_platform.datasets.sidecar import open_sidecar
from siclip_platform.datasets.tools.caption_sets import CaptionRows, caption_statistics
from siclip_platform.datasets.tools.inspect import sample_rows


def test_the_statistics_are_those_counted_by_hand() -> None:
    rows = CaptionRows(4, [["A dog runs", "a cat"], ["a dog, runs!"], ["no no no no", "no no no no"], []], [])
    own = CaptionRows(4, [["a DOG runs"], ["two dogs"], ["x"], ["y"]], [])
    found = caption_statistics(rows, own)
    assert (found.captions, found.without, found.vocabulary) == (5, 1, 5)
    assert (found.words.low, found.words.median, found.words.high) == (2, 3, 4)
    assert found.distinct[1] == 5 / 16  # a, dog, runs, cat, no of 3 + 2 + 3 + 4 + 4 words
    assert found.distinct[2] == 4 / 11  # a dog, dog runs, a cat, no no of 2 + 1 + 2 + 3 + 3
    # Two images have "a dog runs"; an image that has a caption twice does not share it.
    assert found.repeated == 2 / 5 and not found.is_degenerate
    assert found.most_frequent == [("a dog, runs!", 2)]
    assert found.original == 1 / 5
    assert found.runs == [(4, "no", "no no no no")]


def test_no_caption_at_all_has_statistics_too() -> None:
    found = caption_statistics(CaptionRows(2, [[], []], []))
    assert (found.captions, found.without, found.repeated, found.runs) == (0, 2, 0.0, [])


@pytest.fixture
def constant(tmp_path: Path) -> Path:
    """A dataset of 20 images with a set that says the same of 15 of them."""
    folder = tmp_path / "data"
    shapes_dataset(folder, shards=2)
    texts = ["a picture of a thing"] * 15 + [f"thing number {number}" for number in range(5)]
    write_caption_set(folder, "same", [[text] for text in texts])
    return folder


def test_a_degenerate_set_is_told_with_examples(constant: Path) -> None:
    sidecar = open_sidecar(open_dataset(constant), "captions", "same")
    lines = degenerate(sidecar, constant)
    assert lines[0].startswith("train: 75 % of the captions are those of other images too")
    assert lines[1:] == ["  15 images: a picture of a thing"]


def test_inspect_shows_a_set_beside_the_originals_and_on_the_sheet(constant: Path) -> None:
    sheet = constant.parent / "sheet.html"
    found = CliRunner(env={"COLUMNS": "200"}).invoke(
        app, ["data", "inspect", str(constant), "--captions", "same", "--sheet", str(sheet), "--images", "4"]
    )
    assert found.exit_code == 0, found.output
    assert "captions same of train: 20 of 20 images" in found.output
    line = next(line for line in found.output.splitlines() if line.startswith("other images have it too"))
    assert line.split()[-4:] == ["75.0", "%", "0.0", "%"]
    page = sheet.read_text()
    assert "15 images: a picture of a thing" in page and "thing number 4" in page
    dataset = open_dataset(constant)
    rows = list(sample_rows(dataset, "train", 20, open_sidecar(dataset, "captions", "same")))
    assert [row["captions"][1]["text"] for row in rows] == ["a picture of a thing"] * 15 + [
        f"thing number {number}" for number in range(5)
    ]


def test_a_teacher_measures_the_cosines_of_a_set_and_of_the_originals(constant: Path, nano_teacher: Path) -> None:
    """Compared with the model itself, on images that PIL resizes."""
    model = load_model(nano_teacher).eval()
    rows = [row for shard in open_dataset(constant).shards("train") for row in read_table(shard).to_pylist()]
    side = model.config.image.image_size
    pictures = [Image.fromarray(decode_image(row["image"], "x")) for row in rows]
    assert {picture.size for picture in pictures} == {(SIDE, SIDE)}
    resized = [np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR)) for picture in pictures]
    with torch.no_grad():
        image = F.normalize(model.encode_image(torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2) / 255))
        expected = []
        for texts in (
            ["a picture of a thing"] * 15 + [f"thing number {number}" for number in range(5)],
            [row["captions"][0]["text"] for row in rows],
        ):
            text = F.normalize(model.encode_text(tokenize(texts, model.config.text.context_length)))
            cosines = (image * text).sum(dim=1).numpy()
            expected += [float(np.median(cosines)), float(cosines.mean())]
    arguments = ["data", "inspect", str(constant), "--captions", "same", "--teacher", str(nano_teacher)]
    found = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)
    assert found.exit_code == 0, found.output
    line = next(line for line in found.output.splitlines() if line.startswith("cosine with the image: median"))
    assert [float(number) for number in re.findall(r"-?\d\.\d+", line)] == pytest.approx(expected, abs=6e-4)
    with pytest.raises(UserError, match="--teacher measures captions: name their set with --captions"):
        CliRunner().invoke(
            app, ["data", "inspect", str(constant), "--teacher", str(nano_teacher)], catch_exceptions=False
        )
