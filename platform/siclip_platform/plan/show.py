"""A plan as tables on the terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from siclip_platform.display import Terminal
from siclip_platform.plan.pipeline import Pipeline
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
        "memory_peak_operation": job.exact.operation if job.exact else None,
        "pairs_per_second": [plan.speed.least, plan.speed.most],
        "limits_pairs_per_second": {name: list(pair) for name, pair in plan.speed.limits.items()},
        "bottleneck": plan.speed.bottleneck,
        "hours": list(plan.hours),
        "kilowatt_hours": list(plan.kilowatt_hours) if plan.kilowatt_hours else None,
        "advice": list(plan.advice),
    }


def pipeline_as_dict(pipeline: Pipeline) -> dict[str, Any]:
    """The training's plan, and ``stages`` and ``pipeline`` with their sums and maxima; JSON values only."""
    stages = [
        {
            "stage": stage.name,
            "hours": list(stage.hours),
            "memory_bytes": stage.memory_bytes,
            "disk_bytes": stage.disk_bytes,
            "kilowatt_hours": list(stage.kilowatt_hours),
        }
        for stage in pipeline.stages
    ]
    whole = {
        "fits": pipeline.fits,
        "hours": list(pipeline.hours),
        "memory_bytes": pipeline.memory_bytes,
        "disk_bytes": pipeline.disk_bytes,
        "kilowatt_hours": list(pipeline.kilowatt_hours),
        "advice": list(pipeline.advice),
    }
    return {**as_dict(pipeline.plan), "stages": stages, "pipeline": whole}


def machine(plan: Plan) -> str:
    """The device of a plan, with the number of cards."""
    job = plan.job
    device = job.measured.device if job.measured else job.card.name if job.card else "this machine"
    return f"{job.cards} × {device}" if job.cards > 1 else device


def show(plan: Plan) -> None:
    """Print the verdict and what to change, then storage, memory and time, and the sources of the figures."""
    # A fixed width: in a pipe rich would wrap at 80 columns.
    console = Terminal(width=110)
    job = plan.job
    energy = f", {_range(plan.kilowatt_hours)} kWh" if plan.kilowatt_hours else ""
    _print_verdict(console, plan, plan.fits, f"{_range(plan.hours)} hours{energy}", plan.advice)
    console.print(_bytes_table("disk", plan.storage, GB, "GB", job.disk_bytes))
    card = job.card.memory_bytes if job.card else None
    console.print(_bytes_table("memory of one card", plan.memory, GIB, "GiB", card))
    console.print(_time_table(plan))
    console.print(_sources(plan))


def show_pipeline(pipeline: Pipeline) -> None:
    """Print the verdict and what to change, then a row for each stage, and the sources of the figures."""
    console = Terminal(width=110)
    plan = pipeline.plan
    whole = f"{_range(pipeline.hours)} hours, {_range(pipeline.kilowatt_hours)} kWh"
    _print_verdict(console, plan, pipeline.fits, whole, pipeline.advice)
    table = Table("stage", title="stages", title_justify="left", box=None, pad_edge=False)
    for column in ("hours", "GiB of a card", "GB on disk", "kWh"):
        table.add_column(column, justify="right")
    for stage in pipeline.stages:
        table.add_row(
            stage.name,
            _range(stage.hours),
            f"{stage.memory_bytes / GIB:,.1f}" if stage.memory_bytes else "–",
            f"{stage.disk_bytes / GB:,.0f}",
            _range(stage.kilowatt_hours) if any(stage.kilowatt_hours) else "–",
        )
    table.add_row(
        "all",
        _range(pipeline.hours),
        f"{pipeline.memory_bytes / GIB:,.1f}",
        f"{pipeline.disk_bytes / GB:,.0f}",
        _range(pipeline.kilowatt_hours),
        style="bold",
    )
    console.print(table)
    console.print(
        "Disk: what is there when a stage ends; the source shards lie beside the dataset until the import is "
        "verified.\nImport, captioning and embedding: from decoding speed and operations, none was timed; "
        "`siclip-platform rehearse` times your own.\nSearch: trials that are stopped early need less.\n"
    )
    console.print(_sources(plan))


def _print_verdict(console: Terminal, plan: Plan, fits: bool, needs: str, changes: tuple[str, ...]) -> None:
    job = plan.job
    console.print(f"{'It fits' if fits else 'It does not fit'}: {needs}.")
    for number, sentence in enumerate(changes, 1):
        console.print(f"{number}. {sentence}")
    console.print(
        f"\n{job.recipe.model.name}: {job.pairs:,} pairs × {job.epochs:.4g} epochs in {plan.steps:,} steps of "
        f"{job.recipe.training.batch_size:,} on {machine(plan)}; teacher: {job.teacher}\n"
    )


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
    if pair[1] < 0.1:
        return "< 0.1"
    low, high = (f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in pair)
    return low if low == high else f"{low} to {high}"


def _sources(plan: Plan) -> str:
    job = plan.job
    lines = [f"Pairs: {job.pairs_source}."] if job.pairs_source else []
    lines.append(f"Rows: {job.rows.source}.")
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
    if job.teacher == "online":
        lines.append("Teacher: counted as the model that the student inherits from; a larger one takes more.")
    if job.exact is not None:
        lines.append(f"Memory: counted, operation by operation; the peak is at {job.exact.operation}.")
    where = "measured here" if job.core_rate_is_measured else "benchmarks/results/streaming.json"
    lines.append(f"Decoding: {job.core_rate:,.0f} images/s per core ({where}), times {job.cores} cores.")
    return "\n".join(lines) + "\n"
