"""``siclip-platform``: one module per command group. Heavy libraries are imported by the command that runs."""

from __future__ import annotations

from typing import NoReturn

import typer

from siclip_platform.cli import data, doctor, evaluate, experiments, model, plan, results, submit, using
from siclip_platform.cli.guard import guarded

app = typer.Typer(
    help="Train a compact CLIP on one GPU, search its settings on Ray, and see which of them work.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data.app, name="data")
app.add_typer(model.app, name="model")
COMMANDS = (
    *(experiments.train, experiments.tune, evaluate.evaluate, results.report),
    *(using.embed, using.search, plan.plan, doctor.doctor),
)
for command in COMMANDS:
    app.command()(command)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})(
    experiments.demo
)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(submit.submit)


def main() -> NoReturn:
    """The console script: bad input ends with exit code 2 and a message."""
    guarded(app)
