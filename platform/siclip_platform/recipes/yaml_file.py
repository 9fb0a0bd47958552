"""YAML that people write: plain values, the line of each of them, and the problems of a file by line."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from siclip.errors import UserError
from siclip_platform.recipes.problems import KEY, Loc, dotted, explain, short

Model = TypeVar("Model", bound=BaseModel)
TAG = "tag:yaml.org,2002:"
MERGE = f"{TAG}merge"
UNREADABLE = object()

LONGEST_TEXT = 4_000_000
"""Characters of a file: PyYAML reads about a million in a few seconds."""
MOST_VALUES = 100_000
"""Values of a file with every alias read: aliases of lists of aliases would multiply without end."""
DEEPEST = 50
LONGEST_NUMBER_BITS = 1024
DAMAGED = re.compile("[\0\ud800-\udfff]")
"""What no file name and no UTF-8 can hold, and an escape in quotes can write: null and halves of surrogate pairs."""

EXPONENT = re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
TRUTH = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
TEXT = (f"{TAG}timestamp", f"{TAG}value")
"""Types of YAML 1.1 that are read as text: dates, and ``=``, which PyYAML cannot construct."""
AMBIGUOUS = re.compile(r"[-+]?0[0-9_]+|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
"""Octal in YAML 1.1 but decimal in 1.2, and base 60 in 1.1 but text in 1.2."""


class _Loader(yaml.SafeLoader):
    """YAML as version 1.2 reads it: ``1e-3`` is a number, ``yes`` and ``off`` are text."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, TRUTH if tag == f"{TAG}bool" else pattern) for tag, pattern in entries if tag not in TEXT]
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Dumper(yaml.SafeDumper):
    """Puts text that `_Loader` would read as a number in quotes."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(f"{TAG}float", EXPONENT, list("-+.0123456789"))


class NotYaml(Exception):
    """The text is not YAML: the line, and why."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line
        self.reason = reason


class Document:
    """A YAML text as a plain value, with the line of every key and value in it.

    What can be read is read in spite of problems, so that all problems of a file are reported together: a key that is
    given twice, a key that is not text, a number that versions of YAML read differently, a tag other than plain
    YAML's.
    """

    def __init__(self, text: str) -> None:
        """Read the text.

        Raises:
            NotYaml: it is empty or is not YAML, or it is larger than a file that a person writes.
        """
        self.problems: list[tuple[int, Loc, str]] = []
        self._lines: dict[Loc, tuple[int, int]] = {}  # path → the line of the key, the line of the value
        self._unread: set[Loc] = set()
        self._open: set[int] = set()
        self._values = 0
        root = self._compose(text)
        self._lines[()] = (_line(root), _line(root))
        self.value = self._read(root, ())

    def _compose(self, text: str) -> yaml.Node:
        if len(text) > LONGEST_TEXT:
            raise NotYaml(1, f"it has {len(text):,} characters, and at most {LONGEST_TEXT:,} are read")
        try:
            self._loader = _Loader(text)
            root = self._loader.get_single_node()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise NotYaml(mark.line + 1 if mark else 1, f"not YAML: {error.problem or error.context}") from None
        except yaml.reader.ReaderError as error:
            raise NotYaml(text.count("\n", 0, int(error.position)) + 1, f"not YAML: {error.reason}") from None
        except RecursionError:
            raise NotYaml(1, "not YAML that can be read: nested too deeply") from None
        if root is None:
            raise NotYaml(1, "the file is empty")
        return root

    def line_of(self, loc: Loc) -> int:
        """The line of what is at a path, or of the nearest part of the path that the file has."""
        at_key = bool(loc) and loc[-1] == KEY
        loc = loc[:-1] if at_key else loc
        if loc in self._lines:
            return self._lines[loc][0 if at_key else 1]
        while loc not in self._lines:
            loc = loc[:-1]
        return self._lines[loc][1]

    def note(self, loc: Loc, text: str, line: int | None = None) -> None:
        """Add a problem, with its remedy, unless the value there could not be read."""
        if not any(loc[:length] in self._unread for length in range(len(loc) + 1)):
            self.problems.append((self.line_of(loc) if line is None else line, loc, text))

    def validate(self, model: type[Model], *, strict: bool = False, context: Any = None) -> Model | None:
        """The value as a model; None, with its problems noted, if the model refuses it."""
        try:
            return model.model_validate(self.value, strict=strict, context=context)
        except ValidationError as error:
            for loc, text in explain(error, model, self.value):
                self.note(loc, text)
        return None

    def _read(self, node: yaml.Node, loc: Loc) -> Any:
        self._count(node)
        if len(loc) > DEEPEST:
            return self._give_up(loc[:1], f"nested more than {DEEPEST} deep; write it flat")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, loc)
        plain = f"{TAG}map" if isinstance(node, yaml.MappingNode) else f"{TAG}seq"
        if node.tag != plain or id(node) in self._open:
            problem = f"the tag {node.tag} cannot be read" if node.tag != plain else "an alias within its own anchor"
            return self._give_up(loc, f"{problem}; write plain YAML")
        # An alias may point to the node that contains it, which would be read without end.
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                values: dict[str, Any] = {}
                self._fill(values, node, loc)
                return values
            for index, item in enumerate(node.value):
                self._lines[(*loc, index)] = (_line(item), _line(item))
            return [self._read(item, (*loc, index)) for index, item in enumerate(node.value)]
        finally:
            self._open.discard(id(node))

    def _fill(self, values: dict[str, Any], node: yaml.MappingNode, loc: Loc, *, merged: bool = False) -> None:
        """Add the entries of a mapping; those that ``<<`` merges in give way to the mapping's own."""
        own: dict[str, int] = {}
        self._count(node)
        for key_node, value_node in node.value:
            if key_node.tag == MERGE:
                continue
            key = self._key(key_node, loc)
            if key is None:
                continue
            line = _line(key_node)
            if key in own:
                self.note((*loc, key), f"given twice, first in line {own[key]}; remove one", line)
                continue
            own[key] = line
            if merged and key in values:
                continue
            self._lines[(*loc, key)] = (line, _line(value_node))
            values[key] = self._read(value_node, (*loc, key))
        # Merged last: a mapping's own keys override merged ones wherever << is written.
        for key_node, value_node in node.value:
            if key_node.tag == MERGE:
                self._merge(values, value_node, loc)

    def _merge(self, values: dict[str, Any], node: yaml.Node, loc: Loc) -> None:
        for part in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(part, yaml.MappingNode) or id(part) in self._open:
                self.note(loc, "<< takes an alias of a mapping, or a list of them; write that", _line(node))
                continue
            self._open.add(id(part))
            self._fill(values, part, loc, merged=True)
            self._open.discard(id(part))

    def _count(self, node: yaml.Node) -> None:
        self._values += 1
        if self._values > MOST_VALUES:
            raise NotYaml(_line(node), f"more than {MOST_VALUES:,} values, with those of its aliases")

    def _key(self, node: yaml.Node, loc: Loc) -> str | None:
        where = f"a key of {dotted(loc)}" if loc else "a key"
        if not isinstance(node, yaml.ScalarNode):
            self.note(loc, f"{where} is a list or a mapping; write a word", _line(node))
            return None
        value = self._plain(node)
        if isinstance(value, str) and value and not _is_ambiguous(node):
            return value
        shown = node.value if value is UNREADABLE else value
        self.note(loc, f"{where} is {short(shown)}, not text; write a word, in quotes if need be", _line(node))
        return None

    def _scalar(self, node: yaml.ScalarNode, loc: Loc) -> Any:
        if _is_ambiguous(node):
            remedy = "write a number without leading zeros or colons, or put it in quotes if it is text"
            return self._give_up(loc, f"versions of YAML read {node.value} differently; {remedy}")
        value = self._plain(node)
        if value is UNREADABLE:
            return self._give_up(loc, f"{short(node.value)} cannot be read; write a number or text")
        return value

    def _plain(self, node: yaml.ScalarNode) -> Any:
        """The number, text, truth value or None of a scalar; `UNREADABLE` for anything else."""
        try:
            value = self._loader.construct_object(node)
        except (yaml.YAMLError, ValueError):
            return UNREADABLE
        is_too_long = isinstance(value, int) and value.bit_length() > LONGEST_NUMBER_BITS
        is_damaged = isinstance(value, str) and DAMAGED.search(value) is not None
        if is_too_long or is_damaged or not isinstance(value, str | int | float | bool | None):
            return UNREADABLE
        return value

    def _give_up(self, loc: Loc, text: str) -> None:
        self.note(loc, text)
        self._unread.add(loc)


def _is_ambiguous(node: yaml.ScalarNode) -> bool:
    return node.style is None and AMBIGUOUS.fullmatch(node.value) is not None


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def read_model(
    text: str, where: str, model: type[Model], *, remedy: str, strict: bool = False, context: Any = None
) -> Model:
    """A YAML text, checked and read as a pydantic model.

    Args:
        text: the file's text.
        where: the file's name, for messages.
        model: of the file.
        remedy: what to do about a text that is empty or not YAML at all.
        strict: take values only as they are written; False: also as pydantic converts them.
        context: for the model's validators.

    Raises:
        UserError: one line ``where:line: path: problem; remedy`` for each problem, in the order of the lines.
    """
    try:
        document = Document(text)
    except NotYaml as error:
        raise UserError(f"{where}:{error.line}: {error.reason}; {remedy}") from None
    read = document.validate(model, strict=strict, context=context)
    if document.problems or read is None:
        raise UserError("\n".join(by_line(where, document)))
    return read


def by_line(where: str, document: Document) -> list[str]:
    """A document's problems, each as ``where:line: path: problem; remedy``, in the order of the lines."""
    ordered = sorted(document.problems, key=lambda problem: problem[0])
    return [f"{where}:{line}: {f'{dotted(loc)}: ' if loc else ''}{problem}" for line, loc, problem in ordered]


def parse_value(text: str, where: str) -> Any:
    """One value as a file's YAML would give it, for ``--set``; text that is not YAML is taken as it is.

    Raises:
        UserError: it begins like a list, a mapping or a quoted text and is none, or has a problem of `Document`.
    """
    if not text.strip():
        return None
    try:
        document = Document(text)
    except NotYaml as error:
        if text.lstrip()[0] in "[{\"'":
            raise UserError(f"{where}: {text!r} is {error.reason}; close what it opens") from None
        return text
    if document.problems:
        raise UserError(
            "\n".join(
                f"{where}: {f'{dotted(loc)}: ' if loc else ''}{problem}" for _, loc, problem in document.problems
            )
        )
    return document.value


def dump_yaml(tree: Any, **layout: Any) -> str:
    """A plain value as YAML that this module reads back as the same value; ``layout``: see `yaml.dump`."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, **layout)
    return text
