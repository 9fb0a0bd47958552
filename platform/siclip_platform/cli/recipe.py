"""``siclip-platform recipe``: list and show the recipes that ship, copy one, check a file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from siclip_platform.recipes.recipe import Recipe

app = typer.Typer(help="Recipes: what ships, a copy of your own, and whether a file is valid.", no_args_is_help=True)
NameOrFile = Annotated[str, typer.Argument(metavar="NAME-OR-FILE", help="A shipped recipe or a file of YAML.")]


@app.command("list")
def list_recipes() -> None:
    """List the recipes that ship."""
    from siclip_platform.display import echo
    from siclip_platform.recipes.copies import summary
    from siclip_platform.recipes.load import shipped_recipes

    shipped = shipped_recipes()
    width = max(map(len, shipped), default=0)
    for name, path in shipped.items():
        echo(f"{name:<{width}}  {summary(path)}")
    echo("\nnext: siclip-platform recipe init NAME my.yaml")


@app.command()
def show(
    name: NameOrFile,
    resolved: Annotated[
        bool, typer.Option(help="Every field with its value, also those of recipes that it extends and defaults.")
    ] = False,
) -> None:
    """Print a recipe: its file, with its comments, or all of its values (--resolved)."""
    from siclip_platform.display import echo
    from siclip_platform.recipes.load import find_recipe, load_recipe
    from siclip_platform.recipes.yaml_file import dump_yaml

    recipe = load_recipe(name)
    text = dump_yaml(recipe.model_dump(mode="json")) if resolved else find_recipe(name).read_text(encoding="utf-8")
    echo(text.rstrip("\n"))


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="A shipped recipe.")],
    file: Annotated[Path, typer.Argument(help="The file to write; it must not exist.")],
    data: Annotated[str | None, typer.Option(help="The dataset to fill in, a folder or a URI.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="The teacher to fill in: a checkpoint or open_clip:NAME:TAG.")
    ] = None,
) -> None:
    """Write a commented copy of a shipped recipe, with your dataset and teacher filled in."""
    from siclip_platform.display import echo
    from siclip_platform.recipes.copies import write_copy
    from siclip_platform.recipes.load import load_recipe

    write_copy(name, file, data=data, teacher=teacher)
    recipe = load_recipe(file)
    echo(f"wrote {file}, a copy of {name}: dataset {recipe.data.path}, teacher {recipe.teacher or '(none)'}")
    _say_next(recipe, file)


@app.command()
def check(name: NameOrFile) -> None:
    """Check a recipe without training it: its fields, its model, and what of its data and teachers is here."""
    from siclip_platform.display import echo
    from siclip_platform.recipes.load import load_recipe
    from siclip_platform.training.check import check_what_is_here

    recipe = load_recipe(name)
    checked = check_what_is_here(recipe)
    length = checked.training
    batches = f"in batches of {length.batch_size:,}"
    steps = f"{length.steps:,} steps {batches}" if length.steps else f"{length.epochs:g} epochs {batches}"
    echo(f"{name} is valid: {recipe.model.name}, {steps}")
    _say_next(recipe, name)


def _say_next(recipe: Recipe, name: str | Path) -> None:
    """What the recipe still lacks on this machine, and the command that follows."""
    from siclip_platform.display import echo
    from siclip_platform.recipes.digits import STUDENT
    from siclip_platform.recipes.here import is_here, not_here
    from siclip_platform.recipes.load import load_recipe

    for what in not_here(recipe):
        echo(f"not here yet: {what}")
    file, data = shlex.quote(str(name)), recipe.data.path
    command = f"train --recipe {file}"
    # a recipe that names steps is one of minutes, whose length does not follow from the data
    if recipe.training.epochs:
        command = f"plan --pipeline --recipe {file}"
    elif is_here(data) is False:
        is_digits = data == load_recipe(STUDENT).data.path
        command = f"data build {data}" if is_digits else f"rehearse {file} SHARDS"
    echo(f"next: siclip-platform {command}")
