"""What commands print: text without control characters, tables, and the progress of long work.

Progress is shown as bars on a terminal, elsewhere as lines of text: at the start and the end of each task, and now
and then while it runs.
"""

from __future__ import annotations

import threading
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories that a terminal obeys or hides instead of showing: controls, C1 and direction marks too."""
# Cf too, but Persian and Indic words and many emoji are written with them, and they move nothing
JOINERS = "\u200c\u200d"
LAYOUT = "\n\t"
"""What our own text uses for layout."""
LINE_SECONDS = 30.0
"""How often a running task prints a line where there are no bars."""


def printable(text: str, keep: str = "") -> str:
    """Return a text as a terminal may show it: control characters and direction marks as escapes such as ``\\x1b``.

    Args:
        text: a caption, an id, a path or a message, which may come from a stranger.
        keep: characters that stay, such as `LAYOUT`.
    """
    if text.isprintable():
        return text
    return "".join(
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in HIDDEN and letter not in JOINERS + keep
        else letter
        for letter in text
    )


def echo(text: str, *, error: bool = False) -> None:
    """Print lines of text through `printable`; ``error`` prints to stderr."""
    typer.echo(printable(text, LAYOUT), err=error)


class Terminal(Console):
    """A console that prints everything through `printable`.

    A plain string is text: Rich's markup and emoji codes in it stay as they are, unless ``markup=True`` is given.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False} | options)

    def render_str(self, text: str, **options: Any) -> Text:
        # strings become Text here, before Rich measures them for the width of a column
        return super().render_str(printable(text, LAYOUT), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        # everything passes here, also Text that a caller made; only Rich's own cursor movements are control segments
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text, LAYOUT), segment.style)


class Task:
    """One part of the work, with a number of units and a note such as the best value so far."""

    def __init__(self, display: Display, title: str, total: int | None) -> None:
        self.display = display
        self.title = printable(title)
        self.started = self._said = time.perf_counter()
        self._first: tuple[float, int] | None = None
        self.id = display.progress.add_task(self.title, total=total, note="") if display.progress else None

    def progress(self, done: int, total: int, rows: int | None = None) -> None:
        """Set the finished units, a total that was not known before, and the rows of the finished units.

        The rows per second are those since the first call: what an earlier run had finished was not done now.
        """
        note = "" if rows is None else self._rate(rows)
        if self.display.progress and self.id is not None:
            self.display.progress.update(self.id, completed=done, total=total, note=note)
            return
        if done < total and time.perf_counter() - self._said >= LINE_SECONDS:
            self._said = time.perf_counter()
            self.display.say(f"{self.title}: {done:,} of {total:,}" + (f", {note}" if note else ""))

    def _rate(self, rows: int) -> str:
        now = time.perf_counter()
        if self._first is None:
            self._first = (now, rows)
        since, before = self._first
        if rows == before:
            return f"{rows:,} rows"
        return f"{rows:,} rows, {(rows - before) / (now - since):,.0f} rows/s"

    def update(self, done: int | None = None, note: str | None = None) -> None:
        """Set the finished units (all, not the increment) and the note; None leaves the value."""
        if self.display.progress and self.id is not None:
            self.display.progress.update(self.id, completed=done)
            if note is not None:
                self.display.progress.update(self.id, note=printable(note))


class Display:
    """Shows tasks: as live bars on a terminal, elsewhere as a line at the start and at the end of each."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Terminal()
        self.progress: Progress | None = None
        # Concurrent trainings print from their threads: lines must not mix.
        self._lock = threading.Lock()

    @contextmanager
    def live(self) -> Iterator[Display]:
        """Show bars during the block, if the console is a terminal."""
        if not self.console.is_terminal:
            yield self
            return
        columns = (
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
        )
        with Progress(*columns, console=self.console) as progress:
            self.progress = progress
            try:
                yield self
            finally:
                self.progress = None

    @contextmanager
    def task(self, title: str, total: int | None = None) -> Iterator[Task]:
        """Show a task; it is finished when the block ends without an error."""
        if not self.progress:
            self.say(f"{title} …")
        task = Task(self, title, total)
        yield task
        seconds = time.perf_counter() - task.started
        if self.progress and task.id is not None:
            self.progress.update(task.id, total=total or 1, completed=total or 1)
        else:
            self.say(f"{title}: done in {seconds:.0f} s")

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        with self._lock:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def table(self, table: Table) -> None:
        """Print a table."""
        self.console.print(table)
