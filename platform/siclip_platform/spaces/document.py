"""YAML with line numbers: nodes are read one by one, so that each problem of a file is told with its line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import yaml

from siclip.errors import UserError


class Problem(Exception):
    """Something wrong at a node, with the remedy; `Document.noting` collects it."""

    def __init__(self, node: yaml.Node, text: str) -> None:
        super().__init__(text)
        self.line = node.start_mark.line + 1
        self.text = text


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, except that ``1e-3`` is a number, as in YAML 1.2, and dates are text."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [entry for entry in entries if entry[0] != "tag:yaml.org,2002:timestamp"]
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def closest(word: str, words: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the nearest of these words, else nothing."""
    matches = difflib.get_close_matches(word, list(words), n=2)
    return f"; did you mean {' or '.join(map(repr, matches))}?" if matches else ""


class Document:
    """One YAML file being read: its root node, and what has been found wrong so far."""

    def __init__(self, text: str, place: str) -> None:
        """Compose the file's nodes; ``place`` names the file in messages.

        Raises:
            UserError: the text is empty or is not YAML.
        """
        self.place = place
        self.problems: list[tuple[int, str]] = []
        try:
            self._loader = _Loader(text)
            root = self._loader.get_single_node()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self._refuse(mark.line + 1 if mark else 1, f"not YAML: {error.problem or error.context}")
        except yaml.reader.ReaderError as error:
            self._refuse(text.count("\n", 0, int(error.position)) + 1, f"not YAML: {error.reason}")
        if root is None:
            self._refuse(1, "the file is empty")
        self.root: yaml.Node = root

    def _refuse(self, line: int, problem: str) -> NoReturn:
        remedy = "compare with search_spaces/wikd.yaml"
        raise UserError(f"{self.place}:{line}: {problem}; {remedy}") from None

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note a `Problem` of the block and go on after it."""
        try:
            yield
        except Problem as problem:
            self.problems.append((problem.line, problem.text))

    def raise_problems(self) -> None:
        """Raise one `UserError` with a line ``file:line: problem; remedy`` per problem, if there is any."""
        if self.problems:
            ordered = sorted(self.problems, key=lambda problem: problem[0])
            raise UserError("\n".join(f"{self.place}:{line}: {text}" for line, text in ordered))

    def scalar(self, node: yaml.Node, what: str) -> Any:
        """The number, text, truth value or None at a node.

        Raises:
            Problem: the node is a list or mapping, or has a tag that is not plain YAML's.
        """
        if not isinstance(node, yaml.ScalarNode):
            raise Problem(node, f"{what} is a list or a mapping; write one value")
        try:
            return self._loader.construct_object(node)
        except (yaml.YAMLError, ValueError):
            raise Problem(node, f"{what} {node.value!r} cannot be read; write a number or text") from None

    def text(self, node: yaml.Node, what: str) -> str:
        """The text at a node.

        Raises:
            Problem: something else stands there.
        """
        value = self.scalar(node, what)
        if not isinstance(value, str) or not value:
            raise Problem(node, f"{what} is {value!r}, not text; write a word, in quotes if need be")
        return value

    def items(self, node: yaml.Node, what: str) -> list[tuple[str, yaml.Node, yaml.Node]]:
        """(key, key's node, value's node) of a mapping, in order; a key that repeats or is not text is noted.

        Raises:
            Problem: the node is not a mapping.
        """
        if not isinstance(node, yaml.MappingNode):
            raise Problem(node, f"{what} is not a mapping; write `key: value` lines")
        found: dict[str, tuple[str, yaml.Node, yaml.Node]] = {}
        for key_node, value_node in node.value:
            with self.noting():
                key = self.text(key_node, f"a key of {what}")
                if key in found:
                    line = found[key][1].start_mark.line + 1
                    raise Problem(key_node, f"{key!r} stands twice in {what}, first in line {line}; remove one")
                found[key] = (key, key_node, value_node)
        return list(found.values())

    def fields(
        self, node: yaml.Node, what: str, known: Collection[str], required: Collection[str]
    ) -> dict[str, yaml.Node]:
        """The mapping's known keys → their values' nodes; unknown and missing keys are noted.

        Raises:
            Problem: the node is not a mapping.
        """
        fields: dict[str, yaml.Node] = {}
        unknown: list[str] = []
        for key, key_node, value_node in self.items(node, what):
            if key in known:
                fields[key] = value_node
                continue
            unknown.append(key)
            with self.noting():
                hint = closest(key, known) or f"; it takes {', '.join(known)}"
                raise Problem(key_node, f"unknown key {key!r} in {what}{hint}")
        missing = [key for key in required if key not in fields and not closest(key, unknown)]
        with self.noting():
            if missing:
                raise Problem(node, f"{what} lacks {', '.join(missing)}; add it")
        return fields
