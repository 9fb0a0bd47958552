"""One picture in every format, depth and orientation gives the same pixels, and a refused one says why."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets.folder import pil_loader

from siclip import preprocess
from siclip.data import images
from siclip.data.augment import load_crop, load_pixels
from siclip.data.config import AugmentConfig
from siclip.data.images import decode_image, image_size
from siclip.errors import UserError
from tests.support.pictures import (
    SIDE,
    bombs,
    chunk,
    claiming,
    deep,
    exif,
    jpeg,
    oriented,
    over_white,
    picture,
    png,
    saved,
    stored,
    tiff,
    turned,
    xmp_segment,
)

WIDE = picture(48, 96)
DEEP = {name: (data, expected) for name, data, expected in deep(WIDE)}
DEEP_SQUARE = {name: (data, expected) for name, data, expected in deep(picture())}
PREPARE = preprocess(train=False, size=SIDE)


def assert_equal(found: np.ndarray, expected: np.ndarray, name: str, by: int = 0) -> None:
    assert found.shape == expected.shape, name
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= by, name


def prepared(data: bytes) -> np.ndarray:
    """What `siclip.preprocess` makes of a file."""
    with Image.open(io.BytesIO(data)) as image:
        return (PREPARE(image).permute(1, 2, 0).numpy() * 255).round()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("with_simplejpeg", [True, False])
def test_an_orientation_is_applied_once_wherever_it_is_stated(
    orientation: int, with_simplejpeg: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_simplejpeg:
        monkeypatch.setattr(images, "simplejpeg", None)
    for name, data, expected in oriented(WIDE, orientation):
        assert_equal(decode_image(data), expected, name)
        assert image_size(data) == expected.shape[:2], name
    for name, data, expected in oriented(picture(), orientation):
        assert_equal(prepared(data), expected, name)


@pytest.mark.parametrize("name", list(DEEP))
def test_every_depth_colour_and_transparency_becomes_rgb_over_white(name: str) -> None:
    # The sum of a premultiplied colour and its share of white was rounded twice.
    by = 1 if "premultiplied" in name else 0
    data, expected = DEEP[name]
    assert_equal(decode_image(data), expected, name, by)
    assert image_size(data) == (48, 96)
    data, expected = DEEP_SQUARE[name]
    assert_equal(prepared(data), expected, name, by)


def test_a_turned_jpeg_is_cropped_and_scaled_as_its_upright_picture() -> None:
    big = picture(256, 512)
    plain, sideways = jpeg(big), jpeg(stored(big, 6), exif(6))
    box = (0, 128, 256, 256)
    for scaled in (False, True):
        whole = [load_pixels(data, "x", 64, AugmentConfig(), (0,), scaled=scaled) for data in (plain, sideways)]
        crops = [load_crop(data, "x", 64, box, scaled=scaled) for data in (plain, sideways)]
        for one, other in (whole, crops):
            # JPEG itself is not symmetric: rounding in its transform.
            assert np.abs(one.astype(int) - other.astype(int)).mean() < 3


def test_exif_wins_over_xmp_and_damaged_exif_is_not_believed() -> None:
    rows = jpeg(WIDE)
    lossy = np.asarray(Image.open(io.BytesIO(rows)))
    assert_equal(decode_image(jpeg(WIDE, exif(1), xmp_segment(6))), lossy, "EXIF says upright")
    assert_equal(decode_image(jpeg(WIDE, exif(9), xmp_segment(6))), turned(lossy, 6), "9 is no orientation")
    assert_equal(decode_image(jpeg(WIDE, b"Exif\0\0garbage")), lossy, "garbage")


def test_a_turned_image_is_not_turned_again_by_preprocess() -> None:
    image = Image.open(io.BytesIO(png(picture().astype(int), 8, 2, before=chunk(b"eXIf", exif(6)[6:]))))
    once = PREPARE(image)
    assert image.getexif()[0x0112] == 6  # the caller's image is as it was
    from siclip.data.pillow_images import upright_rgb

    assert (PREPARE(upright_rgb(image)) == once).all()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "PPM"])
def test_a_bomb_is_refused_by_its_header(form: str) -> None:
    data = bombs()[form]
    assert len(data) < 700
    for read in (decode_image, image_size):
        with pytest.raises(UserError, match=r"row 7.*(40000 × 40000 pixels, more than|1600000000 pixels).*Remove it"):
            read(data, "row 7")


def test_the_limit_of_pixels_is_exact_and_a_line_is_refused() -> None:
    with pytest.raises(UserError, match="9460 × 9459 pixels, more than 89478485"):
        image_size(claiming(saved(picture(), "JPEG"), 9459, 9460))
    assert image_size(claiming(saved(picture(), "JPEG"), 9459, 9459)) == (9459, 9459)
    for line in (np.zeros((1, 1001), int), np.zeros((1001, 1), int)):
        with pytest.raises(UserError, match="one side more than 1000 times the other"):
            decode_image(png(line, 8, 0))
    assert decode_image(png(np.zeros((1, 1000), int), 8, 0)).shape == (1, 1000, 3)
    wide = Image.new("RGB", (9460, 9459))
    with pytest.raises(UserError, match="9460 × 9459"):
        PREPARE(wide)


def test_an_animation_is_refused_and_a_photo_with_a_preview_is_not() -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "lime")]
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        data = saved(np.asarray(frames[0]), form, save_all=True, append_images=frames[1:])
        with pytest.raises(UserError, match=f"{form} of 2 frames.*one frame"):
            decode_image(data)
        with pytest.raises(UserError, match="2 frames"):
            prepared(data)
    phone = saved(np.asarray(frames[0]), "MPO", save_all=True, append_images=frames[1:])
    assert np.abs(decode_image(phone).astype(int) - [255, 0, 0]).max() < 3


def test_depths_without_a_fixed_range_are_refused() -> None:
    values = np.linspace(0, 1, 64 * 64).reshape(64, 64)
    floats = saved(values.astype(np.float32), "TIFF")
    integers = saved((values * 65535).astype(np.int32), "TIFF")
    clear = chunk(b"tRNS", struct_of(1, 2, 3))
    deep_colour = png(picture().astype(int) * 257, 16, 2, before=clear)
    for data, says in (
        (floats, "mode 'F'"),
        (integers, "mode 'I'"),
        (deep_colour, "a transparent colour of 16 bits"),
    ):
        with pytest.raises(UserError, match=f"{says}.*Convert it to 8 bits"):
            decode_image(data)
        with pytest.raises(UserError, match=says):
            prepared(data)


def struct_of(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(2) for number in numbers)


def test_other_formats_of_pillow_are_never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("ran Ghostscript"))
    for form in ("EPS", "TGA", "ICO"):
        with pytest.raises(UserError, match="none of JPEG, PNG"):
            decode_image(saved(picture(), form))


def test_an_error_passes_through_pickle() -> None:
    with pytest.raises(UserError) as error:
        decode_image(b"no image", "row 3")
    copy = pickle.loads(pickle.dumps(error.value))
    assert str(copy) == str(error.value) and type(copy) is type(error.value)


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_reader_of_benchmarks_reads_as_they_do(orientation: int) -> None:
    """As Pillow's own conversion, neither turned nor over white; but with the limits of every reader."""
    from siclip.data.images import decode_as_pillow

    files = {name: data for name, data, _ in (*oriented(WIDE, orientation), *deep(WIDE))}
    # Pillow cannot convert it.
    del files["TIFF grey with premultiplied alpha"]
    for data in files.values():
        found = decode_as_pillow(data)
        with Image.open(io.BytesIO(data)) as image:
            expected = image.convert("RGB")
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
        assert not found.info and not found.getexif()
    with pytest.raises(UserError, match="1600000000 pixels"):
        decode_as_pillow(bombs()["JPEG"])


def test_the_reader_of_benchmarks_gives_what_torchvisions_loader_gives(tmp_path: Path) -> None:
    from siclip.data.images import decode_as_pillow

    path = tmp_path / "x.png"
    layer = np.concatenate([WIDE, WIDE[..., :1]], 2).astype(int)
    path.write_bytes(png(layer, 8, 6, before=chunk(b"eXIf", exif(6)[6:])))
    np.testing.assert_array_equal(np.asarray(pil_loader(str(path))), np.asarray(decode_as_pillow(path.read_bytes())))
    upright = over_white(turned(WIDE, 6), turned(WIDE, 6)[..., 0])
    assert_equal(decode_image(path.read_bytes()), upright, "all others turn it")


def test_a_tiff_of_another_order_of_bytes_keeps_its_size() -> None:
    for order in "<>":
        assert image_size(tiff(WIDE.astype(int), order=order, extra={274: 8})) == (96, 48)
