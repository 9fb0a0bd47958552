"""Errors that are the user's to mend."""


class UserError(ValueError):
    """Bad input. The message names the thing, the place and the remedy; no traceback is needed to act on it."""
