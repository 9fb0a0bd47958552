"""One picture in every format, depth and orientation is the same to every command."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from siclip import preprocess
from siclip.captioning.captioner import whole
from siclip.data.augment import load_pixels
from siclip.data.config import AugmentConfig
from siclip.errors import UserError
from siclip_platform.datasets.derived.captions.caption import CaptionPart, Decode
from siclip_platform.datasets.derived.embeddings.config import EmbedConfig
from siclip_platform.datasets.derived.embeddings.steps import Crop
from siclip_platform.datasets.importing import images as importing_images
from siclip_platform.datasets.importing.images import ImageRules, prepare_image
from siclip_platform.datasets.importing.sources.sample import Rejection
from siclip_platform.datasets.tools import summary
from siclip_platform.datasets.tools.contact_sheet import write_contact_sheet
from siclip_platform.evaluation.composition_files import _cut
from siclip_platform.evaluation.sets import decode_as_training
from siclip_platform.inference.encoder import Encoder
from siclip_platform.inference.sheet import thumbnail
from siclip_platform.stream import evaluation_set
from siclip_platform.stream.trunk_features import sources
from tests.support.pictures import SIDE, bombs, claiming, deep, jpeg, oriented, picture, saved, xmp_segment

Reader = Callable[[bytes], npt.NDArray[Any]]
ROW = {"id": "a", "captions": [{"text": "a dog", "source": "original", "model": None}], "width": SIDE, "height": SIDE}


def training(data: bytes) -> npt.NDArray[Any]:
    return load_pixels(data, "x", SIDE, AugmentConfig(), (0,), scaled=True)


def validation(data: bytes) -> npt.NDArray[Any]:
    return evaluation_set._images([ROW | {"image": data}], SIDE)[0]


def trunk_features(data: bytes) -> npt.NDArray[Any]:
    return sources._variants(ROW | {"image": data}, SimpleNamespace(image_size=SIDE, augmentations=1))[0]  # type: ignore[arg-type]


def stored_embeddings(data: bytes) -> npt.NDArray[Any]:
    settings = EmbedConfig(teacher="none", crop_scale=1.0).model_dump_json()
    crops = np.empty((1, SIDE, SIDE, 3), np.uint8)
    Crop("", settings, (SIDE, SIDE), 77).crop(data, "a", "x", np.empty((1, 4), np.int32), crops)
    return crops[0]


def captioning(data: bytes) -> npt.NDArray[Any]:
    part = CaptionPart("train-00000.parquet", [0])
    Decode("", whole, judged=0).add(part, ROW | {"image": data}, "x")
    return part.images[0]


def embed_and_search(data: bytes) -> npt.NDArray[Any]:
    model = SimpleNamespace(config=SimpleNamespace(image=SimpleNamespace(image_size=SIDE)))
    return Encoder.pixels(SimpleNamespace(model=model), data, "x")  # type: ignore[arg-type]


def library(data: bytes) -> npt.NDArray[Any]:
    with Image.open(io.BytesIO(data)) as image:
        return (preprocess(train=False, size=SIDE)(image).permute(1, 2, 0).numpy() * 255).round()


def shown(uri: str) -> npt.NDArray[Any]:
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return np.asarray(image)


def sheet_of_a_dataset(data: bytes, folder: Path) -> npt.NDArray[Any]:
    write_contact_sheet(folder / "sheet.html", "t", "n", [ROW | {"image": data}])
    found = re.search(r'img src="([^"]+)"', (folder / "sheet.html").read_text())
    assert found
    return shown(found[1])


EXACT: dict[str, Reader] = {
    "import": lambda data: prepare_image(data, ImageRules()).pixels,
    "training": training,
    "validation": validation,
    "trunk features": trunk_features,
    "stored embeddings": stored_embeddings,
    "captioning": captioning,
    "embed and search": embed_and_search,
    "evaluation of a dataset": lambda data: np.asarray(decode_as_training(data)),
    "siclip.preprocess": library,
}
AS_JPEG: dict[str, Reader] = {
    "import": lambda data: shown("," + base64.b64encode(prepare_image(data, ImageRules()).data).decode()),
    "search --sheet": lambda data: shown(thumbnail(data)),
    "report": lambda data: shown(summary._example([ROW | {"image": data}], 0, ()).image),
}


def check(name: str, data: bytes, expected: npt.NDArray[np.uint8], folder: Path) -> None:
    for command, read in EXACT.items():
        found = read(data)
        assert found.shape == expected.shape, (name, command)
        # A premultiplied colour was rounded twice.
        by = 1 if "premultiplied" in name else 0
        assert np.abs(found.astype(int) - expected).max() <= by, (name, command)
    for command, read in (AS_JPEG | {"inspect": lambda data: sheet_of_a_dataset(data, folder)}).items():
        # JPEG stores half the resolution of colours, so random blocks differ at their edges.
        assert np.abs(read(data).astype(int) - expected).mean() < 6, (name, command)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_command_turns_a_picture_once(orientation: int, tmp_path: Path) -> None:
    for name, data, expected in oriented(picture(), orientation):
        check(f"{name} {orientation}", data, expected, tmp_path)


def test_every_command_reads_every_depth_colour_and_transparency(tmp_path: Path) -> None:
    for name, data, expected in deep(picture()):
        check(name, data, expected, tmp_path)


def test_an_import_stores_the_size_of_the_upright_image_and_no_orientation() -> None:
    for orientation in range(1, 9):
        for name, data, expected in oriented(picture(48, 96), orientation):
            stored = prepare_image(data, ImageRules())
            assert (stored.height, stored.width) == expected.shape[:2], name
            with Image.open(io.BytesIO(stored.data)) as image:
                assert image.size == (stored.width, stored.height), name
                assert orientation == 1 or b"tiff:Orientation" not in stored.data, name
    kept = jpeg(picture(48, 96), xmp_segment(1))
    assert prepare_image(kept, ImageRules()).data == kept


@pytest.mark.parametrize("command", [*EXACT, *AS_JPEG])
@pytest.mark.parametrize("form", list(bombs()))
def test_every_command_refuses_a_bomb_by_its_header(command: str, form: str) -> None:
    read = EXACT.get(command) or AS_JPEG[command]
    # The library's users open the image themselves, which Pillow refuses.
    error = Image.DecompressionBombError if command == "siclip.preprocess" else (UserError, Rejection)
    with pytest.raises(error, match=r"40000 × 40000 pixels|1600000000 pixels"):
        read(bombs()[form])


def test_a_bomb_beneath_pillows_own_limit_is_refused_too() -> None:
    data = claiming(saved(picture(), "JPEG"), 10_000, 10_000)
    for command, read in (EXACT | AS_JPEG).items():
        with pytest.raises((UserError, Rejection), match="10000 × 10000 pixels, more than"):
            read(data)
            pytest.fail(command)


def test_an_import_stores_nothing_that_training_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing_images, "MAX_PIXELS", 48 * 96 - 1)
    with pytest.raises(Rejection, match="96 × 48 pixels as stored"):
        prepare_image(saved(picture(48, 96), "PNG"), ImageRules(max_pixels=10_000))


def test_a_box_that_cannot_be_cut_out_is_unreadable_and_not_the_whole_image() -> None:
    data = saved(picture(), "PNG")
    assert np.array_equal(shown("," + base64.b64encode(_cut(data, (16, 0, 32, 48))).decode()), picture()[:48, 16:48])
    for content, box in ((data, (0, 0, 10**6, 10**6)), (bombs()["JPEG"], (0, 0, 8, 8)), (b"none", (0, 0, 8, 8))):
        assert _cut(content, box) == b""
