"""Progress of long work: bars on a terminal, else a line of text at the start and the end of each task."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table


class Task:
    """One part of the work, with a number of units and a note such as the best value so far."""

    def __init__(self, display: Display, title: str, total: int | None) -> None:
        self.display = display
        self.title = title
        self.started = time.perf_counter()
        self.id = display.progress.add_task(title, total=total, note="") if display.progress else None

    def progress(self, done: int, total: int) -> None:
        """Set the finished units, and a total that was not known before."""
        if self.display.progress and self.id is not None:
            self.display.progress.update(self.id, completed=done, total=total)

    def update(self, done: int | None = None, note: str | None = None) -> None:
        """Set the finished units (all, not the increment) and the note; None leaves the value."""
        if self.display.progress and self.id is not None:
            self.display.progress.update(self.id, completed=done)
            if note is not None:
                self.display.progress.update(self.id, note=note)


class Display:
    """Shows tasks: as live bars on a terminal, elsewhere as a line at the start and at the end of each."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=False)
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
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
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
