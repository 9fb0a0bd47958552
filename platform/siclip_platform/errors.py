"""The one error a user is meant to read: the CLI prints it without a traceback and exits with code 2."""

from siclip.errors import UserError

__all__ = ["UserError"]
