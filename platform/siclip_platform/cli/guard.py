"""How every command ends: on bad input (one message, exit code 2, no traceback), on Ctrl-C (exit code 130) or
SIGTERM (143), and when its work is done but MLflow lacks records of it (exit code 1)."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

import typer
from pydantic import ValidationError

from siclip.errors import UserError
from siclip_platform.cli.examples import HELP, JOBS, epilog
from siclip_platform.cluster.interrupt import INTERRUPTED, Interrupted, handle_interrupts, leave
from siclip_platform.storage.filesystem import OPENING
from siclip_platform.storage.full_disk import is_full
from siclip_platform.studies import shortfall
from siclip_platform.studies.command_line import command_line

BAD_INPUT = 2


def guarded(app: Callable[[], object]) -> NoReturn:
    """Run a typer app and exit; bad input and Ctrl-C are explained on stderr."""
    handle_interrupts()
    try:
        app()
    except Interrupted:
        leave()
    except SystemExit as ended:
        # Typer turns KeyboardInterrupt into this exit code, without a message.
        if ended.code in (0, None):
            sys.exit(shortfall.exit_code())
        if ended.code != INTERRUPTED:
            raise
        _say(f"stopped; to resume: {command_line(sys.argv)}")
        leave()
    except UserError as error:
        _refuse(str(error))
    except OSError as error:
        if is_full(error):
            _refuse_full_disk(error)
        if error.filename is None:
            raise
        _refuse(f"{error.filename}: {error.strerror}; name a path that can be read and written")
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or error.title}: {e['msg']}" for e in error.errors()]
        _refuse("\n".join(problems))
    except Exception as error:
        # A task of Ray and a writer of torch wrap what the disk reported.
        if not is_full(error):
            raise
        _refuse_full_disk(error)
    sys.exit(shortfall.exit_code())


def as_app(job: Callable[..., None]) -> typer.Typer:
    """A job's function as an app, with the options that its annotations declare."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(epilog=epilog(JOBS.get(job.__name__, job.__name__)), context_settings=HELP)(job)
    return app


def _refuse_full_disk(error: Exception) -> NoReturn:
    where = getattr(error, "filename", None) or "while a file was written"
    _refuse(f"{where}: the disk is full; free space on it, then resume or repeat: what is finished is kept")


def _refuse(message: str) -> NoReturn:
    _say(f"error: {message}")
    if any(thread.name == OPENING for thread in threading.enumerate()):
        # The normal end of the process would wait for it for minutes, or crash.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(BAD_INPUT)
    sys.exit(BAD_INPUT)


def _say(message: str) -> None:
    # imported here: most commands end without a message
    from siclip_platform.display import echo

    echo(message, error=True)
