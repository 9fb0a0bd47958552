"""Decoders that keep their remarks about damaged images to themselves: the error that they raise says enough."""

from __future__ import annotations

import ctypes
import ctypes.util
import warnings
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import PIL


@lru_cache(maxsize=1)
def quiet_decoders() -> None:
    """Silence Pillow's warnings about files, and the lines that libtiff writes to stderr, in this process.

    Pillow silences libtiff's warnings but not its errors, which are one line for each damaged row of an image.
    """
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.\w+ImagePlugin")
    for path in _libtiff():
        # The copy that Pillow has loaded: opening it again gives the same one.
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(path)
            library.TIFFSetErrorHandler(None)
            library.TIFFSetErrorHandlerExt(None)


def _libtiff() -> list[str]:
    """Return where Pillow's libtiff is: in its wheel, on Linux or macOS, or else the system's."""
    package = Path(PIL.__file__).parent
    folders = (package.parent / "pillow.libs", package / ".dylibs")
    found = [str(path) for folder in folders for path in folder.glob("libtiff*")]
    # It takes a quarter of a second.
    system = None if found else ctypes.util.find_library("tiff")
    return [*found, *([system] if system else [])]
