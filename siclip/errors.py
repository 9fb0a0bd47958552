"""Errors that the user can fix."""


class UserError(ValueError):
    """Bad input. The message names the thing, the location and the remedy; no traceback is needed to act on it."""
