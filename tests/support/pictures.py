"""One picture in every format, depth and orientation, with its pixels by an independent calculation.

PNG and TIFF are written here by hand, so that no library decides what a file means; Pillow writes what is compressed
by a codec.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
SIDE = 64
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"{}</rdf:RDF></x:xmpmeta>'
)


def picture(height: int = SIDE, width: int = SIDE) -> Pixels:
    """Blocks of random colours without any symmetry; JPEG preserves them."""
    corners = np.random.default_rng(3).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return corners.repeat(16, axis=0).repeat(16, axis=1)


def turned(stored: Pixels, orientation: int) -> Pixels:
    """What a file that stores these pixels shows, by the figures of the EXIF specification (row 0 and column 0)."""
    return {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a[::-1].swapaxes(0, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: a[:, ::-1].swapaxes(0, 1),
    }[orientation](stored)


def stored(upright: Pixels, orientation: int) -> Pixels:
    """The pixels that a file of this orientation stores to show the picture upright."""
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    return np.ascontiguousarray(turned(upright, inverse))


def over_white(colour: npt.ArrayLike, alpha: npt.ArrayLike) -> Pixels:
    """Colour (H, W, 3) with alpha (H, W) from 0 to 255, over white."""
    share = np.asarray(alpha, float)[..., None] / 255
    return np.rint(np.asarray(colour, float) * share + 255 * (1 - share)).astype(np.uint8)


def exif(orientation: int) -> bytes:
    return b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">HH", orientation, 0) + bytes(4)


def xmp(orientation: int, form: str = "attribute") -> bytes:
    inner = {
        "attribute": f' tiff:Orientation="{orientation}"/>',
        "single quotes": f" tiff:Orientation='{orientation}'/>",
        "element": f"><tiff:Orientation>{orientation}</tiff:Orientation></rdf:Description>",
    }[form]
    return XMP.format(inner).encode()


def saved(pixels: Pixels, form: str, mode: str | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, form, **options)
    return buffer.getvalue()


def jpeg(pixels: Pixels, *segments: bytes, **options: Any) -> bytes:
    """A JPEG with APP1 segments."""
    data = saved(pixels, "JPEG", quality=95, subsampling=0, **options)
    inserted = b"".join(b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment for segment in segments)
    return data[:2] + inserted + data[2:]


def xmp_segment(orientation: int, form: str = "attribute") -> bytes:
    return b"http://ns.adobe.com/xap/1.0/\0" + xmp(orientation, form)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def itxt(orientation: int) -> bytes:
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(orientation))


def png(samples: npt.NDArray[Any], depth: int, colour: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of samples (H, W) or (H, W, C).

    Args:
        samples: values of ``depth`` bits.
        depth: bits per sample.
        colour: PNG's colour type.
        before: chunks before the pixels.
        after: chunks behind them.
    """
    height, width = samples.shape[:2]
    flat = samples.reshape(height, -1)
    if depth == 16:
        lines = flat.astype(">u2").view(np.uint8).reshape(height, -1)
    else:
        bits = (flat[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        lines = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    raw = b"".join(b"\0" + line.tobytes() for line in lines)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + after + chunk(b"IEND", b"")


def tiff(
    samples: npt.NDArray[Any],
    bits: int = 8,
    photometric: int = 2,
    order: str = "<",
    extra: dict[int, Any] | None = None,
) -> bytes:
    """An uncompressed TIFF of samples (H, W) or (H, W, C).

    Args:
        samples: values of ``bits`` bits.
        bits: 8, 12, 16 or 32 per sample.
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 5 CMYK.
        order: of the bytes, ``<`` or ``>``.
        extra: further tags: a number, numbers, or bytes.
    """
    height, width = samples.shape[:2]
    count = 1 if samples.ndim == 2 else samples.shape[2]
    if bits == 12:
        pairs = samples.reshape(-1, 2).astype(int)
        triples = (pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255)
        content = np.stack(triples, 1).astype(np.uint8).tobytes()
    else:
        content = samples.astype(samples.dtype.newbyteorder(order) if bits > 8 else np.uint8).tobytes()
    tags: dict[int, Any] = {256: width, 257: height, 258: [bits] * count, 259: 1, 262: photometric, 273: 8}
    tags |= {277: count, 278: height, 279: len(content)} | (extra or {})
    content += bytes(len(content) % 2)
    at = 8 + len(content)
    tail, entries = b"", []
    after = at + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        values = [value] if isinstance(value, int) else value
        if isinstance(value, bytes):
            kind, packed = 1, value
        elif tag in (273, 279):
            kind, packed = 4, struct.pack(f"{order}{len(values)}I", *values)
        else:
            kind, packed = 3, struct.pack(f"{order}{len(values)}H", *values)
        if len(packed) > 4:
            offset = struct.pack(f"{order}I", after + len(tail))
            tail += packed + bytes(len(packed) % 2)
        else:
            offset = packed.ljust(4, b"\0")
        entries.append(struct.pack(f"{order}HHI", tag, kind, len(values)) + offset)
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", at)
    return head + content + directory + tail


def oriented(upright: Pixels, orientation: int) -> Iterator[tuple[str, bytes, Pixels]]:
    """(name, file, its upright pixels) for every way of stating an orientation."""
    pixels = stored(upright, orientation)
    tag, note = exif(orientation), xmp(orientation)
    bare = {"exif": exif(orientation)[6:]}
    for name, segments in {
        "EXIF": [tag],
        "EXIF before XMP": [tag, xmp_segment(3)],
        **{f"XMP {form}": [xmp_segment(orientation, form)] for form in ("attribute", "single quotes", "element")},
    }.items():
        data = jpeg(pixels, *segments)
        lossy = np.asarray(Image.open(io.BytesIO(jpeg(pixels))))
        yield f"JPEG {name}", data, turned(lossy, orientation)
    yield "progressive JPEG", jpeg(pixels, tag, progressive=True), turned(lossy, orientation)
    eight = pixels.astype(int)
    yield "PNG eXIf", png(eight, 8, 2, before=chunk(b"eXIf", tag[6:])), upright
    yield "PNG eXIf behind the pixels", png(eight, 8, 2, after=chunk(b"eXIf", tag[6:])), upright
    yield "PNG XMP", png(eight, 8, 2, before=itxt(orientation)), upright
    yield "PNG of 16 bits", png(eight * 257, 16, 2, before=chunk(b"eXIf", tag[6:])), upright
    yield "WebP EXIF", saved(pixels, "WEBP", lossless=True, **bare), upright
    yield "WebP XMP", saved(pixels, "WEBP", lossless=True, xmp=note), upright
    for order in "<>":
        yield f"TIFF tag {order}", tiff(pixels, order=order, extra={274: orientation}), upright
    yield "TIFF tag and XMP", tiff(pixels, extra={274: orientation, 700: note}), upright
    yield "TIFF XMP", tiff(pixels, extra={700: note}), upright
    compressed = saved(pixels, "TIFF", compression="tiff_lzw", tiffinfo={274: orientation})
    yield "TIFF compressed", compressed, upright
    grey = np.asarray(eight[..., 0]) * 256 + 77
    shown = upright[..., :1].repeat(3, axis=2)
    yield "TIFF of 16 bits", tiff(grey.astype(np.uint16), 16, 1, extra={274: orientation}), shown
    yield "PNG grey of 16 bits", png(grey, 16, 0, before=chunk(b"eXIf", tag[6:])), shown


def deep(upright: Pixels) -> Iterator[tuple[str, bytes, Pixels]]:
    """(name, file, its pixels over white) for every depth, colour and kind of transparency."""
    red, green, blue = (upright[..., channel].astype(int) for channel in range(3))
    rgb = upright.astype(int)

    def grey(values: npt.ArrayLike, clear: Any = False) -> Pixels:
        return np.where(clear, 255, np.asarray(values)).astype(np.uint8)[..., None].repeat(3, axis=2)

    yield "BMP", saved(upright, "BMP"), upright
    yield "PPM", saved(upright, "PPM"), upright
    yield "JPEG 2000", saved(upright, "JPEG2000"), upright
    for bits in (1, 2, 4, 8):
        values = red >> (8 - bits)
        shown = values * (255 // (2**bits - 1))
        kinds = np.unique(values)
        clear = int(kinds[(len(kinds) - 1) // 2])
        yield f"PNG grey of {bits} bits", png(values, bits, 0), grey(shown)
        file = png(values, bits, 0, before=chunk(b"tRNS", struct.pack(">H", clear)))
        yield f"PNG grey of {bits} bits, one clear", file, grey(shown, values == clear)
    wide = red * 256 + green
    clear = int(wide[0, 0])
    yield "PNG grey of 16 bits", png(wide, 16, 0), grey(red)
    file = png(wide, 16, 0, before=chunk(b"tRNS", struct.pack(">H", clear)))
    yield "PNG grey of 16 bits, one clear", file, grey(red, wide == clear)
    yield "PNG grey with alpha", png(np.stack([red, blue], 2), 8, 4), over_white(grey(red), blue)
    layer = np.concatenate([rgb, blue[..., None]], 2)
    yield "PNG with alpha", png(layer, 8, 6), over_white(upright, blue)
    yield "PNG of 16 bits with alpha", png(layer * 257, 16, 6), over_white(upright, blue)
    yield (
        "WebP with alpha",
        saved(layer.astype(np.uint8), "WEBP", lossless=True, exact=True),
        over_white(upright, blue),
    )
    corner = rgb[0, 0]
    is_corner = (rgb == corner).all(-1)
    file = png(rgb, 8, 2, before=chunk(b"tRNS", struct.pack(">HHH", *corner)))
    yield "PNG with a clear colour", file, over_white(upright, 255 * ~is_corner)
    colours, index = np.unique(upright.reshape(-1, 3), axis=0, return_inverse=True)
    index = index.reshape(red.shape)
    alpha = (np.arange(len(colours)) * 40 % 256).astype(np.uint8)
    palette = chunk(b"PLTE", colours.tobytes())
    yield "PNG palette", png(index, 8, 3, before=palette), upright
    file = png(index, 8, 3, before=palette + chunk(b"tRNS", alpha.tobytes()))
    yield "PNG palette with alpha", file, over_white(upright, alpha[index])
    indexed = Image.fromarray(index.astype(np.uint8), "P")
    indexed.putpalette(colours.tobytes())
    buffer = io.BytesIO()
    indexed.save(buffer, "GIF", transparency=5, optimize=False)
    yield "GIF, one clear", buffer.getvalue(), over_white(upright, 255 * (index != 5))
    big = b"P5 %d %d 65535\n" % red.shape[::-1]
    yield "PGM of 16 bits", big + wide.astype(">u2").tobytes(), grey(red)
    for order in "<>":
        yield f"TIFF grey of 16 bits {order}", tiff(wide.astype(np.uint16), 16, 1, order), grey(red)
    yield "TIFF grey of 16 bits, white is zero", tiff((65535 - wide).astype(np.uint16), 16, 0), grey(red)
    yield "TIFF grey of 12 bits", tiff(wide >> 4, 12, 1), grey(red)
    yield "TIFF white is zero", tiff(255 - red, 8, 0), grey(red)
    yield "TIFF of 16 bits", tiff((rgb * 257).astype(np.uint16), 16, 2), upright
    yield "TIFF with alpha", tiff(layer, extra={338: 2}), over_white(upright, blue)
    pair = np.stack([red, blue], 2)
    yield "TIFF grey with alpha", tiff(pair, photometric=1, extra={338: 2}), over_white(grey(red), blue)
    both = np.stack([red * blue // 255, blue], 2)
    # Premultiplied: white shines through by what alpha leaves.
    shown = grey(both[..., 0] + 255 - blue)
    yield "TIFF grey with premultiplied alpha", tiff(both, photometric=1, extra={338: 1}), shown
    ink = np.stack([red, green, blue, green // 2], 2)
    shown = np.rint((255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255).astype(np.uint8)
    yield "TIFF CMYK", tiff(ink, photometric=5), shown
    yield "JPEG 2000 grey of 16 bits", saved(wide.astype(np.uint16), "JPEG2000"), grey(red)


def claiming(data: bytes, height: int, width: int) -> bytes:
    """A JPEG with another size in its header."""
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def bombs() -> dict[str, bytes]:
    """Small files that claim 40,000 × 40,000 pixels."""
    plain = saved(picture(16, 16), "JPEG", quality=50)
    whole = png(np.zeros((1, 8), int), 1, 0)
    size = struct.pack(">IIBBBBB", 40_000, 40_000, 1, 0, 0, 0, 0)
    return {
        "JPEG": claiming(plain, 40_000, 40_000),
        "PNG": whole[:8] + chunk(b"IHDR", size) + whole[33:],
        "TIFF": tiff(np.zeros((2, 2), int), 8, 1, extra={256: 40_000, 257: 40_000, 278: 40_000}),
        "PPM": b"P5 40000 40000 255\n" + bytes(600),
    }
