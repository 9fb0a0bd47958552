"""MLflow's sqlite store is created whole, by one process; what a kill left of an older creation is replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote

from siclip.errors import UserError
from siclip_platform.storage.databases import create_whole, tables

SQLITE = "sqlite:///"
# MLflow writes the default experiment last, and its migrations fill no other table than these.
EXPERIMENTS = "experiments"
FILLED_BY_MIGRATIONS = {"alembic_version", "workspaces"}


def sqlite_uri(path: Path) -> str:
    """The URI of a store in a file. SQLAlchemy decodes ``%41``, and takes what follows ``?`` for options."""
    return SQLITE + str(path.resolve()).replace("%", "%25").replace("?", "%3F")


def sqlite_file(uri: str) -> Path | None:
    """The file of a store with an absolute path; None for other stores."""
    if not uri.startswith(f"{SQLITE}/"):
        return None
    return Path(unquote(uri.removeprefix(SQLITE).partition("?")[0]))


def create_store(path: Path, connect: Any) -> None:
    """Create the store unless it exists. MLflow itself breaks it if it is killed, or if two processes create it.

    Args:
        path: the database.
        connect: makes an ``MlflowClient`` of a URI.

    Raises:
        UserError: the folder cannot be written.
    """

    def make(database: Path) -> None:
        connect(sqlite_uri(database)).search_experiments(max_results=1)

    try:
        create_whole(path, make, _half_made)
    except OSError as error:
        raise UserError(
            f"tracking store {path} cannot be created: {error.strerror}; name another --out or --tracking-uri"
        ) from None


def _half_made(path: Path) -> bool:
    """Whether the file is what MLflow leaves when it is killed while it creates its tables: they hold nothing."""
    found = tables(path)
    if found is None or any(rows for name, rows in found.items() if name not in FILLED_BY_MIGRATIONS):
        return False
    # An empty database of another program is not ours to replace.
    return not found or any(name.endswith(EXPERIMENTS) for name in found)
