"""Read text files as people and their tools write them: with a byte order mark, and with any line ending."""

from __future__ import annotations

import re
from pathlib import Path

from siclip.errors import UserError

# not str.splitlines, which also splits at U+2028, U+0085 and form feeds: texts contain these
ENDING = re.compile("\r\n|\n|\r")


def read_text(path: Path) -> str:
    """Return a text without its byte order mark.

    Raises:
        UserError: it cannot be read or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text, empty ones too, without their endings; errors as `read_text`."""
    lines = ENDING.split(read_text(path))
    # the last line's ending is not the start of another one
    return lines if lines[-1] else lines[:-1]
