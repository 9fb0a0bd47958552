"""A plan as tables on the terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from siclip_platform.display import Terminal
from siclip_platform.plan.plan import EFFICIENCY, Plan

GB = 10**9
GIB = 2**30


def as_dict(plan: Plan) -> dict[str, Any]:
    """Bytes, pairs per second, hours and kWh by name; JSON values only."""
    job = plan.job
    return {
        "pairs": job.pairs,
        "epochs": job.epochs,
        "steps": plan.steps,
        "machine": machine(plan),
        "teacher": job.teacher,
        "fits": plan.fits,
        "storage_bytes": dict(plan.storage),
        "storage_total_bytes": plan.storage_bytes,
        "disk_bytes": job.disk_bytes,
        "memory_bytes": dict(plan.memory),
        "memory_total_bytes": plan.memory_bytes,
        "pairs_per_second": [plan.speed.least, plan.speed.most],
        "limits_pairs_per_second": {name: list(pair) for name, pair in plan.speed.limits.items()},
        "bottleneck": plan.speed.bottleneck,
        "hours": list(plan.hours),
        "kilowatt_hours": list(plan.kilowatt_hours) if plan.kilowatt_hours else None,
        "advice": list(plan.advice),
    }


def machine(plan: Plan) -> str:
    """The device of a plan, with the number of cards."""
    job = plan.job
    device = job.measured.device if job.measured else job.card.name if job.card else "this machine"
    return f"{job.cards} × {device}" if job.cards > 1 else device


def show(plan: Plan) -> None:
    """Print storage, memory and time, the sources of the figures, and what to change."""
    # A fixed width: in a pipe rich would wrap at 80 columns.
    console = Terminal(width=110)
    job = plan.job
    console.print(
        f"{job.recipe.model.name}: {job.pairs:,} pairs × {job.epochs:g} epochs in {plan.steps:,} steps of "
        f"{job.recipe.training.batch_size:,} on {machine(plan)}; teacher: {job.teacher}\n"
    )
    console.print(_bytes_table("disk", plan.storage, GB, "GB", job.disk_bytes))
    card = job.card.memory_bytes if job.card else None
    console.print(_bytes_table("memory of one card", plan.memory, GIB, "GiB", card))
    console.print(_time_table(plan))
    console.print(_sources(plan))
    for number, sentence in enumerate(plan.advice, 1):
        console.print(f"{number}. {sentence}")
    console.print("It fits." if plan.fits else "It does not fit.")


def _bytes_table(title: str, parts: Mapping[str, float], unit: int, name: str, budget: int | None) -> Table:
    table = Table("part", title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column(name, justify="right")
    for part, size in parts.items():
        table.add_row(part, f"{size / unit:,.2f}")
    table.add_row("all", f"{sum(parts.values()) / unit:,.2f}", style="bold")
    if budget is not None:
        table.add_row("available", f"{budget / unit:,.2f}")
    return table


def _time_table(plan: Plan) -> Table:
    table = Table("", title="time", title_justify="left", box=None, pad_edge=False)
    table.add_column("", justify="right")
    for name, limit in plan.speed.limits.items():
        mark = "  ← bottleneck" if name == plan.speed.bottleneck else ""
        table.add_row(f"pairs/s by {name}", _range(limit) + mark)
    table.add_row("hours", _range(plan.hours))
    if plan.kilowatt_hours:
        table.add_row("kWh of the cards", _range(plan.kilowatt_hours))
    return table


def _range(pair: tuple[float, float]) -> str:
    low, high = (f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in pair)
    return low if low == high else f"{low} to {high}"


def _sources(plan: Plan) -> str:
    job = plan.job
    lines = [f"Rows: {job.rows.source}."]
    if job.measured:
        lines.append(
            f"Speed: steps of {' and '.join(map(str, job.measured.batches))} pairs timed here, spread "
            f"{job.measured.spread:.0%}; a step takes {job.measured.seconds_fixed:.3g} s + "
            f"{job.measured.seconds_each:.3g} s per pair."
        )
    elif job.card:
        least, most = EFFICIENCY
        lines.append(
            f"Card: {job.card.source}. That training reaches {least:.0%} to {most:.0%} of its peak is an assumption; "
            "--calibrate measures instead."
        )
    if job.cards > 1:
        lines.append("Several cards: the time that they wait for each other is not counted.")
    lines.append("Decoding: measured on one core of this machine, times the number of cores.")
    return "\n".join(lines) + "\n"
