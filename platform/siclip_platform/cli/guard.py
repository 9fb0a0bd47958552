"""How every command of ours ends on bad input: one message, exit code 2, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

import typer
from pydantic import ValidationError

from siclip.errors import UserError

BAD_INPUT = 2


def guarded(app: Callable[[], object]) -> NoReturn:
    """Run a typer app and exit; bad input is explained on stderr."""
    try:
        app()
    except UserError as error:
        _refuse(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _refuse(f"{error.filename}: {error.strerror}; name a place that can be read and written")
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or error.title}: {e['msg']}" for e in error.errors()]
        _refuse("\n".join(problems))
    sys.exit(0)


def as_app(job: Callable[..., None]) -> typer.Typer:
    """A job's function with the command line that its annotations make."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(job)
    return app


def _refuse(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(BAD_INPUT)
