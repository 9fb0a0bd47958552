"""What weight inheritance did, by tensor and by module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Action = Literal["copied", "started", "fresh", "left"]


@dataclass(frozen=True)
class ReportRow:
    """Parameters of one module with the same action; the teacher's parameters if the action is ``left``."""

    module: str
    action: Action
    parameters: int
    trains: bool
    reason: str


@dataclass(frozen=True)
class ReportEntry:
    """One tensor; ``parameters`` is 0 for a BatchNorm statistic."""

    name: str
    module: str
    action: Action
    parameters: int
    trains: bool
    reason: str


@dataclass(frozen=True)
class InheritanceReport:
    """What happened to every tensor of the student, and which of the teacher's were not used.

    Actions: ``copied``: from the tensor of the same name in the teacher. ``started``: the FFN of a SAS-P block,
    initialised from the teacher's block and trained. ``fresh``: not in the teacher. ``left``: parameters of the
    teacher that the student does not have. Shared weights are counted once, so ``copied + started + fresh`` are the
    student's parameters and, if the teacher shares none, ``copied + started + left`` the teacher's.

    Attributes:
        entries: one per tensor.
        frozen: names of the parameters that the freeze policy froze.
    """

    entries: tuple[ReportEntry, ...]
    frozen: tuple[str, ...]

    def names(self, action: Action) -> tuple[str, ...]:
        """Names of the tensors with this action."""
        return tuple(entry.name for entry in self.entries if entry.action == action)

    def parameters(self, action: Action) -> int:
        """Number of parameters with this action."""
        return sum(entry.parameters for entry in self.entries if entry.action == action)

    def trained(self, trains: bool = True) -> int:
        """Number of the student's parameters that train (or, with False, do not)."""
        return sum(entry.parameters for entry in self.entries if entry.action != "left" and entry.trains is trains)

    def rows(self) -> list[ReportRow]:
        """The parameters by module in the student's order, followed by the teacher's unused ones."""
        counts: dict[tuple[Any, ...], int] = {}
        for entry in self.entries:
            key = (entry.module, entry.action, entry.trains, entry.reason)
            if entry.parameters:
                counts[key] = counts.get(key, 0) + entry.parameters
        return [
            ReportRow(module, action, count, trains, reason)
            for (module, action, trains, reason), count in counts.items()
        ]

    def table(self) -> str:
        """`rows` as plain text."""
        cells = [("module", "what", "parameters", "trains", "why")]
        for row in self.rows():
            trains = "" if row.action == "left" else "yes" if row.trains else "no"
            cells.append((row.module, row.action, f"{row.parameters:,}", trains, row.reason))
        module, what, count, trains_width, _ = (max(map(len, column)) for column in zip(*cells, strict=True))
        return "\n".join(
            f"{a:<{module}}  {b:<{what}}  {c:>{count}}  {d:<{trains_width}}  {e}".rstrip() for a, b, c, d, e in cells
        )

    def __str__(self) -> str:
        return (
            f"inherited {len(self.names('copied'))} tensors, started {len(self.names('started'))} from the teacher's "
            f"FFN, {len(self.names('fresh'))} fresh; {self.trained():,} parameters to train, "
            f"{self.trained(False):,} frozen"
        )
