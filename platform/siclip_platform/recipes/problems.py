"""What is wrong with a value that a pydantic model refuses: one sentence per problem, with its path and a remedy."""

from __future__ import annotations

import difflib
import re
import types
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

Loc: TypeAlias = tuple[str | int, ...]
"""Where a problem is: keys and indices from the root; `KEY` last for a problem with the key itself."""

KEY = "[key]"
LONGEST_VALUE = 80
NOT_A_MAPPING = "not a mapping; write `key: value` lines"
NOT_A_LIST = "not a list; write [one, another]"
WRONG_SHAPE = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type", "mapping_type"), NOT_A_MAPPING),
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "frozen_set_type"), NOT_A_LIST),
}


def closest(word: str, words: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the one or two nearest of these words, else nothing."""
    matches = difflib.get_close_matches(word, list(words), n=2)
    return f"; did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def dotted(loc: Loc) -> str:
    """The path as it is printed, for example ``training.steps``."""
    return ".".join(str(part) for part in loc if part != KEY)


class Problems:
    """The problems that one validator found, to be raised together."""

    def __init__(self) -> None:
        self._found: list[InitErrorDetails] = []

    def add(self, text: str, *loc: str | int) -> None:
        """Note a problem, with its remedy, at a path below the value that is validated."""
        self._found.append(InitErrorDetails(type=refusal(text), loc=loc, input=None))

    @contextmanager
    def at(self, *loc: str | int) -> Iterator[None]:
        """Note what the block raises as a problem at a path, and continue after the block."""
        try:
            yield
        except PydanticCustomError as error:
            self.add(error.message(), *loc)
        except ValidationError as error:
            for inner, text in explain(error, None, None):
                self.add(text, *loc, *inner)

    def validated(self, annotation: Any, value: Any, *loc: str | int, context: Any = None) -> Any:
        """The value as ``annotation`` reads it, in strict mode; None, with its problems noted, if it is refused."""
        try:
            return TypeAdapter(annotation).validate_python(value, strict=True, context=context)
        except ValidationError as error:
            for inner, text in explain(error, annotation, value):
                self.add(text, *loc, *inner)
        return None

    def check(self) -> None:
        """Raise `pydantic.ValidationError` if there is any problem.

        A validator may raise it: pydantic then puts the path of the validated value before each path.
        """
        # One error with all problems: pydantic stops at the first exception of a validator.
        if self._found:
            raise ValidationError.from_exception_data("file", self._found)


def refusal(text: str) -> PydanticCustomError:
    """The error that a validator raises for the whole of its value."""
    # The text is a value of the template, for it may contain braces.
    return PydanticCustomError("problem", "{text}", {"text": text})


def explain(error: ValidationError, annotation: Any, tree: Any) -> list[tuple[Loc, str]]:
    """Path and sentence of each problem for which an annotation, such as a model, refused ``tree``.

    A missing key is reported at its mapping, unless an unknown key there is a misspelling of it. The messages that
    the members of a union give for one value are joined.
    """
    found: list[tuple[Loc, str]] = []
    alternatives: dict[Loc, list[str]] = defaultdict(list)
    missing: dict[Loc, list[str]] = defaultdict(list)
    unknown: dict[Loc, list[str]] = defaultdict(list)
    for item in error.errors(include_url=False):
        at = _locate(item["loc"], annotation, tree, is_ours=item["type"] == "problem")
        key = item["loc"][-1] if item["loc"] else ""
        if item["type"] == "missing" and isinstance(key, str):
            missing[at.loc].append(key)
        elif item["type"] == "extra_forbidden":
            unknown[at.loc[:-1]].append(str(key))
            found.append(((*at.loc, KEY), _unknown_key(str(key), _models(at.parent), annotation)))
        elif item["type"] in ("union_tag_invalid", "union_tag_not_found"):
            found.append(_wrong_tag(item, at.loc, at.annotation))
        elif at.is_member and item["type"] not in ("value_error", "missing"):
            alternatives[at.loc].append(item["msg"])
            found.append((at.loc, f"{short(item['input'])} does not fit: "))
        else:
            found.append((at.loc, _sentence(item)))
    for loc, keys in missing.items():
        lacking = [key for key in keys if not closest(key, unknown[loc])]
        if lacking:
            found.append((loc, f"lacks {', '.join(lacking)}; add it"))
    found = [(loc, text + _joined(alternatives[loc]) if loc in alternatives else text) for loc, text in found]
    return list(dict.fromkeys(found))


def _joined(alternatives: list[str]) -> str:
    return f"{' or '.join(dict.fromkeys(alternatives))}; change it"


class _Location:
    """Where an error is in the tree, and what the model has there."""

    def __init__(self, annotation: Any) -> None:
        self.loc: Loc = ()
        self.annotation = annotation
        self.parent: Any = None
        self.is_member = False  # the error is that of one member of a union


def _locate(loc: Loc, annotation: Any, tree: Any, *, is_ours: bool) -> _Location:
    """The path of an error: pydantic's own without the names of the members of unions, which no file has."""
    at, node = _Location(annotation), tree
    for part in loc:
        at.is_member = False
        is_inside = (isinstance(node, dict) and part in node) or (
            isinstance(node, list | tuple) and isinstance(part, int) and part < len(node)
        )
        if is_inside:
            node = node[part]
            at.parent, at.annotation = at.annotation, _inside(at.annotation, part)
            at.loc = (*at.loc, part)
        elif (member := _member(at.annotation, str(part))) is not None:
            at.annotation = member
        elif is_ours or part == KEY:
            node = None
            at.loc = (*at.loc, part)
        else:
            at.is_member = True
    return at


def _parts(annotation: Any) -> list[Any]:
    """The members of a union, or the annotation itself."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _parts(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [part for member in get_args(annotation) for part in _parts(member)]
    return [annotation]


def _models(annotation: Any) -> list[type[BaseModel]]:
    return [part for part in _parts(annotation) if isinstance(part, type) and issubclass(part, BaseModel)]


def _inside(annotation: Any, part: str | int) -> Any:
    """The annotation of what is at a key or an index; None where it is not known."""
    for model in _models(annotation):
        if part in model.model_fields:
            return model.model_fields[str(part)].annotation
    for member in _parts(annotation):
        arguments = get_args(member)
        if arguments and get_origin(member) in (dict, list, tuple):
            return arguments[1] if get_origin(member) is dict else arguments[0]
    return None


def _member(annotation: Any, tag: str) -> type[BaseModel] | None:
    """The model in a union that pydantic calls so: by its discriminator's value or by its class."""
    for model in _models(annotation):
        literals = [field.annotation for field in model.model_fields.values() if _is_literal(field.annotation)]
        if tag == model.__name__ or any(tag in get_args(literal) for literal in literals):
            return model
    return None


def _is_literal(annotation: Any) -> bool:
    return get_origin(annotation) is Literal


def _unknown_key(key: str, models: list[type[BaseModel]], root: Any) -> str:
    removed: dict[str, str] = {}
    for model in models:
        removed |= getattr(model, "REMOVED", {})
    if key in removed:
        return f"{key!r} is not a key any more: {removed[key]}"
    known = [name for model in models for name in model.model_fields]
    hint = closest(key, known)
    if not hint:
        elsewhere = [path for path in _leaves(root) if path.endswith(f".{key}")]
        hint = f"; did you mean {' or '.join(map(repr, elsewhere[:2]))}?" if elsewhere else ""
    takes = f"; it takes {', '.join(known)}" if known else "; remove it"
    return f"unknown key {key!r}{hint or takes}"


def _leaves(annotation: Any, prefix: str = "") -> Iterator[str]:
    for model in _models(annotation):
        for name, field in model.model_fields.items():
            if _models(field.annotation):
                yield from _leaves(field.annotation, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}"


def _wrong_tag(item: ErrorDetails, loc: Loc, annotation: Any) -> tuple[Loc, str]:
    key = str(item["ctx"]["discriminator"]).strip("'")
    tags = list(
        dict.fromkeys(tag for model in _models(annotation) for tag in get_args(model.model_fields[key].annotation))
    )
    keys = list(item["input"]) if isinstance(item["input"], dict) else []
    if key in keys:
        return (*loc, key), _unknown_value(item["input"][key], tags)
    if near := difflib.get_close_matches(key, keys, n=1):
        return (*loc, near[0], KEY), f"unknown key {near[0]!r}; did you mean {key!r}?"
    if not isinstance(item["input"], dict):
        return loc, NOT_A_MAPPING
    return loc, f"lacks {key}; choose one of {', '.join(tags)}"


def _unknown_value(value: Any, choices: list[str]) -> str:
    hint = closest(str(value), choices) or f"; choose one of {', '.join(choices)}"
    return f"unknown value {short(value)}{hint}"


def _sentence(item: ErrorDetails) -> str:
    """The sentence for an error that is neither about keys nor about the members of a union."""
    error_type, value = item["type"], item["input"]
    if error_type == "literal_error":
        return _unknown_value(value, choices_of(item))
    if error_type in WRONG_SHAPE:
        return WRONG_SHAPE[error_type]
    if isinstance(value, list | dict) and error_type.endswith("_type"):
        return "a list or a mapping; write one value"
    sentences = {
        "missing": "has too few items; add what is missing",
        "problem": item["msg"],
        "value_error": str(item.get("ctx", {}).get("error")),
        "string_type": f"{short(value)} is not text; write a word, in quotes if need be",
    }
    return sentences.get(error_type, f"{short(value)} does not fit: {item['msg']}; change it")


def choices_of(item: ErrorDetails) -> list[str]:
    """The values that pydantic lists in a literal_error."""
    return re.findall(r"'([^']*)'", str(item["ctx"]["expected"]))


def short(value: Any) -> str:
    """A value for a message, cut where it is long."""
    try:
        text = repr(value)
    # Python writes no number of more than 4300 digits, and no list that is nested too deeply.
    except (ValueError, RecursionError):
        return "a value that is too large to be shown"
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"
