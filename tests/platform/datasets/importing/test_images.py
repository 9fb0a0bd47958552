"""Which images an import rejects and why, and how it stores the others."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps

from siclip_platform.datasets.importing.images import ImageRules, Prepared, prepare_image
from siclip_platform.datasets.importing.sources.sample import Rejection

RULES = ImageRules()
RNG = np.random.default_rng(5)


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Return an image of smooth colours, which JPEG preserves."""
    corners = np.random.default_rng(7).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    image = Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)
    if mode == "P":
        return image.quantize(24, dither=Image.Dither.NONE)
    return image.convert("1", dither=Image.Dither.NONE) if mode == "1" else image.convert(mode)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def shown(prepared: Prepared) -> npt.NDArray[np.float32]:
    """Decode a stored image with another decoder."""
    with Image.open(io.BytesIO(prepared.data)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (prepared.width, prepared.height))
        return np.asarray(image, np.float32)


def difference(prepared: Prepared, expected: Image.Image) -> float:
    return float(np.abs(shown(prepared) - np.asarray(expected.convert("RGB"), np.float32)).mean())


def refusal(data: bytes, rules: ImageRules = RULES) -> str:
    with pytest.raises(Rejection) as error:
        prepare_image(data, rules)
    assert error.value.detail
    return error.value.reason.value


@pytest.mark.parametrize(
    ("size", "expected"),
    [((512, 400), (328, 256)), ((400, 512), (256, 328)), ((256, 900), (256, 900)), ((3000, 300), (2560, 256))],
)
def test_the_shorter_side_is_reduced_to_the_size_and_never_enlarged(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    prepared = prepare_image(encoded(picture(*size), "PNG"), RULES)
    assert (prepared.width, prepared.height) == expected
    assert difference(prepared, picture(*size).resize(expected, Image.Resampling.BICUBIC)) < 2


@pytest.mark.parametrize(
    ("form", "mode"),
    [
        *(("PNG", mode) for mode in ("L", "P", "1", "LA")),
        *(("JPEG", mode) for mode in ("L", "CMYK")),
        *((form, "RGB") for form in ("WEBP", "BMP", "TIFF", "JPEG2000")),
        ("GIF", "P"),
    ],
)
def test_every_mode_and_format_becomes_an_rgb_jpeg(form: str, mode: str) -> None:
    image = picture(90, 60, mode)
    prepared = prepare_image(encoded(image, form), RULES)
    assert difference(prepared, image) < 5  # 4:2:0 blurs the edges of colours


def test_transparent_pixels_become_white_and_sixteen_bits_are_scaled() -> None:
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    assert difference(prepare_image(encoded(clear, "PNG"), RULES), Image.new("RGB", (64, 64), "white")) < 1
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    grey = Image.fromarray((ramp // 256).astype(np.uint8))
    assert difference(prepare_image(encoded(Image.fromarray(ramp), "PNG"), RULES), grey) < 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_images_are_turned_upright_as_pillow_turns_them(orientation: int, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(300, 420), form, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    prepared = prepare_image(data, ImageRules(size=300))
    assert difference(prepared, upright) < 2
    with Image.open(io.BytesIO(prepared.data)) as image:
        assert image.getexif().get(0x0112) is None


def test_a_small_baseline_jpeg_keeps_its_bytes_and_others_do_not() -> None:
    plain = encoded(picture(200, 256), "JPEG", quality=80)
    assert prepare_image(plain, RULES).data == plain
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    for other in (
        encoded(picture(200, 256), "JPEG", progressive=True),
        encoded(picture(200, 256), "JPEG", exif=exif),
        encoded(picture(200, 256, "L"), "JPEG"),
        encoded(picture(257, 300), "JPEG"),
    ):
        assert prepare_image(other, RULES).data != other
    assert b"taken at home" not in prepare_image(encoded(picture(99, 99), "JPEG", exif=exif), RULES).data


def test_equal_inputs_give_equal_bytes_and_quality_has_an_effect() -> None:
    data = encoded(Image.fromarray(RNG.integers(0, 256, (400, 400, 3), dtype=np.uint8)), "JPEG")
    assert prepare_image(data, RULES).data == prepare_image(data, RULES).data
    assert len(prepare_image(data, ImageRules(quality=50)).data) < 0.6 * len(prepare_image(data, RULES).data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_cut_file_is_rejected_as_truncated(form: str, share: float) -> None:
    data = encoded(Image.fromarray(RNG.integers(0, 256, (300, 300, 3), dtype=np.uint8)), form)
    assert refusal(data[: int(len(data) * share)]) == "truncated"


@pytest.mark.parametrize("data", [b"", b"<html>", b"%PDF-1.7 " * 20, b"RIFF\x10\x00\x00\x00WAVEfmt ", bytes(500)])
def test_other_files_are_rejected_as_not_an_image(data: bytes) -> None:
    assert refusal(data) == "not an image"


def test_postscript_is_never_handed_to_an_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("ran Ghostscript"))
    assert refusal(encoded(picture(64, 64), "EPS")) == "not an image"


def test_damage_inside_a_file_is_distinguished_from_a_cut() -> None:
    png = bytearray(encoded(picture(64, 64), "PNG"))
    png[len(png) // 2] ^= 0xFF
    assert refusal(bytes(png)) == "damaged image"


def test_bombs_are_rejected_by_their_header() -> None:
    data = encoded(picture(64, 64), "PNG")
    size = struct.pack(">II", 60_000, 60_000) + data[24:29]
    # A valid header, with its checksum, of an image far larger than the file.
    claims = data[:16] + size + struct.pack(">I", zlib.crc32(b"IHDR" + size)) + data[33:]
    assert refusal(claims) == "decompression bomb"
    assert refusal(encoded(picture(200, 200), "JPEG"), ImageRules(max_pixels=39_999)) == "decompression bomb"
    assert prepare_image(encoded(picture(200, 200), "JPEG"), ImageRules(max_pixels=40_000)).width == 200


def test_small_and_animated_images_are_rejected() -> None:
    assert refusal(encoded(picture(31, 500), "JPEG")) == "too small"
    assert prepare_image(encoded(picture(32, 500), "JPEG"), RULES).width == 32
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "lime")]
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        assert refusal(encoded(frames[0], form, save_all=True, append_images=frames[1:])) == "animated"
    # Phones store a photo and its preview as two frames, which is no animation.
    phone = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])  # a photo and its preview
    assert difference(prepare_image(phone, RULES), frames[0]) < 3
