"""``siclip-platform``: one module per command group. Heavy libraries are imported by the command that runs."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from siclip_platform.cli import (
    ablate,
    data,
    doctor,
    evaluate,
    experiments,
    inference,
    model,
    plan,
    recipe,
    rehearse,
    results,
    simulate,
    submit,
    tune,
)
from siclip_platform.cli.examples import HELP, add_examples
from siclip_platform.cli.guard import guarded

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=HELP,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from siclip_platform.display import echo

        echo(f"siclip-platform {version('siclip-platform')}")
        raise typer.Exit


@app.callback()
def _root(
    shown: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train a compact CLIP on one GPU, search its settings on Ray, and see which of them work."""


app.add_typer(data.app, name="data")
app.add_typer(model.app, name="model")
app.add_typer(recipe.app, name="recipe")
COMMANDS = (
    *(tune.tune, tune.sync, simulate.simulate, evaluate.evaluate, results.report, results.compare),
    *(inference.embed, inference.search, plan.plan, rehearse.rehearse, doctor.doctor),
)
for command in COMMANDS:
    app.command()(command)
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
for job in (experiments.demo, experiments.train, ablate.ablate):
    app.command(context_settings=PASSED_ON | {"help_option_names": []})(job)
app.command(context_settings=PASSED_ON)(submit.submit)
app.command(context_settings=PASSED_ON)(submit.job)
add_examples(app)


def main() -> NoReturn:
    """The console script: bad input ends with exit code 2 and a message."""
    guarded(app)
