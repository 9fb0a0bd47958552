"""Write docs/recipe.md, the reference of every recipe field, from the models that validate recipes.

python scripts/recipe_reference.py
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from inspect import getdoc
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from siclip_platform.recipes.fields import NOT_SEARCHED, path_problem
from siclip_platform.recipes.load import shipped_recipes
from siclip_platform.recipes.recipe import Recipe, section_of

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipe.md"
INTRODUCTION = """\
# Every field of a recipe

<!-- Written by scripts/recipe_reference.py from the models that validate recipes: change their docstrings. -->

A recipe is a YAML file with everything that determines what a training computes. `siclip-platform recipe list` shows
those that ship, `recipe show NAME` prints one, `recipe init NAME FILE` writes a commented copy with your dataset and
teacher filled in, and `recipe check FILE` checks a file without training. Every command that trains takes `--recipe
NAME-OR-FILE`, and `--set PATH=VALUE` changes any field below for one run.

```sh
siclip-platform recipe list
siclip-platform recipe init siclip-s0-cc12m-syn my.yaml --data data/cc12m-syn --teacher mobileclip_s0.pt
siclip-platform recipe check my.yaml
siclip-platform plan --pipeline --recipe my.yaml
```

This is what the paper's recipe looks like (`siclip-platform recipe show siclip-s0-cc12m-syn`):

```yaml
{example}```

## One recipe from another

`extends` at the top of a file takes the fields of another recipe, of which the file replaces those that it has:

```yaml
extends: siclip-s0-cc12m-syn   # a shipped recipe, or a file: a relative path starts at this file's folder
training:
  learning_rate: 5e-4
```

Sections are merged field by field; a list, and a mapping that is the value of a field, is replaced as a whole.
`steps` replaces the base's `epochs` and the reverse. A base may extend another in turn; a circle is refused. A
mistake is reported with the file and the line in which the field is written. A run stores the recipe with every field
resolved, as `siclip-platform recipe show NAME-OR-FILE --resolved` prints it.

## Fields

A field without a default is required. *Searched* says whether a [search space](search.md) may vary the field.
"""


def reference() -> str:
    """The page."""
    example = shipped_recipes()["siclip-s0-cc12m-syn"].read_text(encoding="utf-8")
    body = example[example.index("data:") :]
    return INTRODUCTION.format(example=body) + "".join(_sections(Recipe, ""))


def _sections(model: type[BaseModel], path: str) -> Iterator[str]:
    """A model's own fields as a table, then its sections and the entries of its lists."""
    meanings = meanings_of(model)
    rows = [_row(path, name, field, meanings) for name, field in model.model_fields.items() if not section_of(field)]
    title = f"`{path}`" if path else "The whole"
    yield f"\n### {title}\n\n{_prose(_summary(model))}\n\n"
    yield "| field | type | default | range | searched | meaning |\n| --- | --- | --- | --- | --- | --- |\n"
    yield "".join(rows)
    for name, field in model.model_fields.items():
        inner = f"{path}.{name}" if path else name
        if section := section_of(field):
            yield from _sections(section, inner)
        for entry in _models(field.annotation):
            if entry is not section_of(field):
                yield from _sections(entry, f"{inner}[]")


def _row(path: str, name: str, field: FieldInfo, meanings: dict[str, str]) -> str:
    dotted = f"{path}.{name}" if path else name
    default = "" if field.is_required() else f"`{_value(field.get_default(call_default_factory=True))}`"
    meaning = meanings.get(name) or (field.description or "")
    cells = (
        f"`{name}`",
        type_of(field.annotation),
        default,
        range_of(field),
        _searched(dotted, field),
        _prose(meaning),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _searched(path: str, field: FieldInfo) -> str:
    if "[]" in path:
        return "no"
    if path_problem(path) is not None:
        return f"no: {NOT_SEARCHED[path]}"
    kinds = {tuple: "no: a space draws one value, not a list", dict: f"yes, as `{path}.KEY`"}
    return kinds.get(get_origin(field.annotation), "yes")


def meanings_of(model: type[BaseModel]) -> dict[str, str]:
    """Field → what the ``Attributes:`` of the model's docstring, and of those of its bases, say about it."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        text = (getdoc(base) or "") if "__doc__" in vars(base) else ""
        _, _, attributes = text.partition("Attributes:\n")
        for name, meaning in re.findall(r"^    (\w+): (.*(?:\n        .*)*)", attributes, re.MULTILINE):
            found[name] = " ".join(meaning.split())
    return found


def _summary(model: type[BaseModel]) -> str:
    text, _, _ = (getdoc(model) or "").partition("\n\nAttributes:")
    return " ".join(text.split())


def type_of(annotation: Any) -> str:
    """A type as a person would say it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin is Annotated:
        return type_of(arguments[0])
    if origin is not None:
        return _type_of_several(origin, arguments)
    names = {str: "text", int: "integer", float: "number", bool: "true or false", types.NoneType: "null"}
    return names.get(annotation, "mapping")


def _type_of_several(origin: Any, arguments: tuple[Any, ...]) -> str:
    inner = [type_of(argument) for argument in arguments if argument is not Ellipsis]
    if origin is tuple:
        return f"list of {inner[0]}" if Ellipsis in arguments else f"list of {len(inner)}: {inner[0]}"
    return f"mapping of {' to '.join(inner)}" if origin is dict else " or ".join(inner)


def range_of(field: FieldInfo) -> str:
    """The bounds of a number, or of the numbers in a list or mapping."""
    bounds = list(_bounds(field.metadata)) or list(dict.fromkeys(_inner_bounds(field.annotation)))
    return ", ".join(bounds)


def _inner_bounds(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Annotated:
        for data in get_args(annotation)[1:]:
            yield from _bounds(data.metadata if isinstance(data, FieldInfo) else [data])
    for argument in get_args(annotation):
        if get_origin(annotation) is not Literal:
            yield from _inner_bounds(argument)


def _bounds(metadata: list[Any]) -> Iterator[str]:
    signs = {"gt": "> ", "ge": "≥ ", "lt": "< ", "le": "≤ "}
    for data in metadata:
        for name, sign in signs.items():
            if (bound := getattr(data, name, None)) is not None:
                yield f"{sign}{_number(bound)}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _value(value: Any) -> str:
    assert value is not PydanticUndefined
    words = {None: "null", True: "true", False: "false", (): "[]"}
    if isinstance(value, bool | None | tuple) and value in words:
        return words[value]
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _prose(text: str) -> str:
    """A docstring's text as Markdown: its literals and references as code."""
    text = re.sub(r"``(.+?)``", r"`\1`", text)
    for python, yaml in (("None", "null"), ("True", "true"), ("False", "false")):
        text = re.sub(rf"\b{python}\b", yaml, text)
    # a name of the library, without the modules that it is in
    return re.sub(r"`(?:siclip|siclip_platform)\.[\w.]*?(\w+)`", r"`\1`", text)


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
    print(f"wrote {PAGE}")
