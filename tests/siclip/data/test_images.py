from __future__ import annotations

import io
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from siclip.data import images
from siclip.data.images import decode_image
from siclip.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def reference(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_are_decoded_exactly(form: str, options: dict[str, object]) -> None:
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(PIXELS), form, **options)), PIXELS)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_the_same_with_and_without_simplejpeg(
    subsampling: int, progressive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(Image.fromarray(PIXELS), "JPEG", quality=90, subsampling=subsampling, progressive=progressive)
    fast = decode_image(data)
    monkeypatch.setattr(images, "simplejpeg", None)
    np.testing.assert_array_equal(fast, reference(data))
    np.testing.assert_array_equal(decode_image(data), fast)
    assert fast.shape == (32, 40, 3)


def test_grey_and_cmyk_jpeg_become_rgb() -> None:
    for mode in ("L", "CMYK"):
        data = encoded(Image.fromarray(PIXELS).convert(mode), "JPEG", quality=95)
        np.testing.assert_array_equal(decode_image(data), reference(data))


def test_transparent_pixels_are_composited_over_white() -> None:
    layer = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    decoded = decode_image(encoded(Image.fromarray(layer), "PNG"))
    np.testing.assert_array_equal(decoded, [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]])

    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    palette.putpalette([9, 8, 7, 1, 2, 3])
    decoded = decode_image(encoded(palette, "PNG", transparency=0))
    np.testing.assert_array_equal(decoded, [[[255, 255, 255], [1, 2, 3]]])


def test_the_array_is_writeable() -> None:
    for form in ("PNG", "JPEG"):
        assert decode_image(encoded(Image.fromarray(PIXELS), form)).flags.writeable


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("with_simplejpeg", [True, False])
def test_broken_bytes_raise_an_error_with_their_location(
    form: str, with_simplejpeg: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_simplejpeg:
        monkeypatch.setattr(images, "simplejpeg", None)
    data = encoded(Image.fromarray(PIXELS), form)
    broken = [data[: len(data) // 2], data[:3], data[:20], b"", b"<html>"]
    broken += [data[:at] + bytes(12) + data[at + 12 :] for at in range(0, 40, 4)]
    refused = 0
    for bytes_ in broken:
        try:
            decode_image(bytes_, "row 7 of train-0")
        except UserError as error:
            assert "row 7 of train-0" in str(error)
            refused += 1
    assert refused >= 5


@pytest.mark.parametrize("compression", ["group4", "tiff_lzw", "tiff_adobe_deflate"])
def test_decoders_write_nothing_about_damaged_images(compression: str, capfd: pytest.CaptureFixture[str]) -> None:
    """libtiff has a line for each damaged row."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    (image.convert("1") if compression == "group4" else image).save(buffer, "TIFF", compression=compression)
    for _ in range(20):
        data = np.frombuffer(buffer.getvalue(), np.uint8).copy()
        data[rng.integers(8, len(data), 6)] = rng.integers(0, 256, 6)
        with suppress(UserError):
            images.decode_image(data.tobytes())
    assert capfd.readouterr() == ("", "")
