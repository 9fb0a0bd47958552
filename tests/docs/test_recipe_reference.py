"""docs/recipe.md: made from the models, complete, and as they are now."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import recipe_reference
from pydantic import Field

from siclip.config import Config
from siclip_platform.recipes.recipe import leaf_paths


def rows(page: str) -> dict[str, list[str]]:
    """Dotted path of each field of the page → its cells."""
    found, section = {}, ""
    for line in page.splitlines():
        if title := re.fullmatch(r"### (?:`(.*)`|The whole)", line):
            section = title[1] or ""
        elif cells := re.fullmatch(r"\| `(\w+)` \| (.*) \|", line):
            found[".".join(filter(None, (section, cells[1])))] = re.split(r" ?(?<!\\)\| ?", cells[2])
    return found


def test_the_page_is_up_to_date() -> None:
    assert recipe_reference.PAGE.read_text() == recipe_reference.reference(), "run scripts/recipe_reference.py"


def test_every_field_is_on_the_page_with_a_meaning() -> None:
    found = rows(recipe_reference.reference())
    lists = {path for path in found if "[]" in path}
    assert found.keys() - lists == set(leaf_paths()) and len(found) > 80
    assert {"data.mix[].weight", "loss.schedule[].weights"} <= lists
    assert not [path for path, (*_, meaning) in found.items() if not meaning.strip()], "add it to the docstring"


class Example(Config):
    """An example.

    Attributes:
        share: how much, None
            for ``all``.
        several: numbers.
    """

    share: Annotated[float, Field(gt=0, le=1)] | None = None
    several: tuple[Annotated[int, Field(ge=2)], ...] = (3, 4)
    kind: Literal["a", "b"] = Field("a", description="which one")
    flag: bool


def test_a_table_says_what_the_model_says() -> None:
    example = recipe_reference._sections(Example, "x[]")
    assert "".join(example).splitlines()[-4:] == [
        "| `share` | number or null | `null` | > 0, ≤ 1 | no | how much, null for `all`. |",
        "| `several` | list of integer | `[3, 4]` | ≥ 2 | no | numbers. |",
        "| `kind` | `a`, `b` | `a` |  | no | which one |",
        "| `flag` | true or false |  |  | no |  |",
    ]
