"""Sources named by glob patterns, and the splits that patterns of files have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from siclip.errors import UserError
from siclip_platform.storage import AnyPath, RemotePath, as_path, without_credentials
from siclip_platform.storage.listing import base_folder, list_files

Files = list[tuple[str, int]]
"""(path relative to a folder, bytes)"""
SPLIT_PATTERN = re.compile(r"([a-z][a-z0-9_]*)=(.+)")


def matching(name: str) -> tuple[AnyPath, Files]:
    """Return a folder and its files that a path or a pattern names, sorted; a folder's name means all below it.

    In a pattern ``*``, ``?`` and ``[…]`` match within one folder's name or file's name. In a URI a ``?`` begins the
    query.

    Raises:
        UserError: the path does not exist, its store does not answer, or the pattern matches no file.
    """
    path = as_path(name)
    words = (path.key if isinstance(path, RemotePath) else path.as_posix()).split("/")
    wild = re.compile(r"[*\[]" if isinstance(path, RemotePath) else r"[*?\[]")
    first = next((number for number, word in enumerate(words) if wild.search(word)), None)
    if first is None or (isinstance(path, Path) and path.exists()):
        return base_folder(path), list_files(path)
    base = "/".join(words[:first])
    folder: AnyPath = replace(path, key=base) if isinstance(path, RemotePath) else Path(base or "/" * (first > 0))
    pattern = "/".join(words[first:])
    found = [item for item in list_files(folder) if _matches(item[0], pattern, whole=True)]
    if not found:
        raise UserError(f"{without_credentials(name)} matches no file: correct the pattern")
    return folder, found


def _matches(file: str, pattern: str, *, whole: bool) -> bool:
    path = PurePosixPath(file)
    return (not whole or len(path.parts) == len(PurePosixPath(pattern).parts)) and path.match(pattern)


class SplitPatterns:
    """Splits by patterns of files.

    Args:
        given: ``NAME=GLOB`` each, and at most one ``NAME``, the split of all other files.

    Attributes:
        default: the split of the files that no pattern names; None: not given.
        given: whether there are patterns.

    Raises:
        UserError: a word is neither.
    """

    def __init__(self, given: Sequence[str]) -> None:
        self._patterns: list[tuple[str, str]] = []
        self._used: set[str] = set()
        self.default: str | None = None
        for word in given:
            if found := SPLIT_PATTERN.fullmatch(word):
                self._patterns.append((found[1], found[2]))
            elif not re.fullmatch("[a-z][a-z0-9_]*", word):
                raise UserError(
                    f"--split {word!r}: write NAME or NAME=GLOB, where NAME has lower-case letters, digits and '_'"
                )
            elif self.default is not None:
                raise UserError(
                    f"--split {self.default} and --split {word}: only one can take the files without a pattern; "
                    "write NAME=GLOB"
                )
            else:
                self.default = word

    @property
    def given(self) -> bool:
        return bool(self._patterns)

    def of(self, file: str) -> str | None:
        """Return the split of a file; None if there are no patterns.

        A pattern with folders matches the end of the path: ``val/*.tar`` matches ``a/val/0.tar``.

        Raises:
            UserError: patterns of two splits match it, or none does and there is no default.
        """
        found = {split: pattern for split, pattern in self._patterns if _matches(file, pattern, whole=False)}
        if len(found) > 1:
            named = " and ".join(f"--split {split}={pattern}" for split, pattern in found.items())
            raise UserError(f"{file} is matched by {named}: make them exclude each other")
        if not found:
            if self._patterns and self.default is None:
                raise UserError(
                    f"{file} is matched by no --split pattern: add one, or --split NAME for all files without one"
                )
            return self.default if self._patterns else None
        [(split, pattern)] = found.items()
        self._used.add(pattern)
        return split

    def check_used(self) -> None:
        """Refuse patterns that matched no file.

        Raises:
            UserError: names the first of them.
        """
        for split, pattern in self._patterns:
            if pattern not in self._used:
                raise UserError(f"--split {split}={pattern} matches no file of the source: correct the pattern")
