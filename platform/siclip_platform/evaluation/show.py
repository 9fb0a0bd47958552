"""Print a suite's result as tables."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from siclip.evaluation.bootstrap import Interval
from siclip.evaluation.cost import Cost
from siclip_platform.display import Terminal, printable
from siclip_platform.evaluation.results import SetResult, SuiteResult

SHOWN = 3


def show(result: SuiteResult, costs: Mapping[str, Cost], console: Terminal, *, confidence: float) -> None:
    """Print the main metric of each set, all metrics if the sets are few, averages, missing sets and costs."""
    measured = [each for each in result.sets if each.state == "measured"]
    if len(measured) > 1:
        console.print(_main_table(result, measured))
    if len(measured) <= SHOWN:
        for each in measured:
            console.print(_set_table(result, each))
    if measured:
        console.print(f"In brackets: {confidence:.0%} bootstrap intervals over samples; differences are paired.")
    for model, mean in result.averages.items():
        console.print(f"{model}: {mean.title} {mean.value:.4f}")
    _print_unmeasured(result, console)
    if costs:
        console.print(_cost_table(costs))


def _main_table(result: SuiteResult, measured: list[SetResult]) -> Table:
    table = Table("set", "metric", "samples", *_model_columns(result))
    for each in measured:
        table.add_row(each.title, each.main, _count(each), *_cells(result, each, each.main))
    return table


def _set_table(result: SuiteResult, each: SetResult) -> Table:
    table = Table("metric", *_model_columns(result), title=f"{each.title}, {_count(each)} samples")
    for metric in next(iter(each.metrics.values())):
        table.add_row(metric, *_cells(result, each, metric))
    if each.prompts:
        table.caption = f"class names and prompts: {each.prompts}"
    return table


def _count(each: SetResult) -> str:
    return f"{each.units:,}" + (f" ({each.captions:,} captions)" if each.captions else "")


def _model_columns(result: SuiteResult) -> list[str]:
    first, *others = result.models
    return [first, *(column for model in others for column in (model, "difference"))]


def _cells(result: SuiteResult, each: SetResult, metric: str) -> list[str]:
    cells = []
    for model in result.models:
        cells.append(_cell(each.metrics[model].get(metric), "{:.4f}"))
        if model != result.models[0]:
            cells.append(_cell(each.differences[model].get(metric), "{:+.4f}"))
    return cells


def _cell(interval: Interval | None, form: str) -> str:
    if interval is None:
        return "–"
    return f"{form.format(interval.value)} [{form.format(interval.low)}, {form.format(interval.high)}]"


def _print_unmeasured(result: SuiteResult, console: Terminal) -> None:
    missing = [each for each in result.sets if each.state == "missing"]
    if missing:
        console.print(f"Missing, {len(missing)} of {len(result.sets)}: {', '.join(each.name for each in missing)}")
    kept = [each.name for each in result.sets if each.kept]
    if kept:
        console.print(f"Kept from an earlier run (--fresh measures again): {', '.join(kept)}")
    for each in result.sets:
        if each.note:
            console.print(f"Note: {each.note}")
        if each.state == "failed":
            console.print(f"Not measured: {each.name}: {printable(each.reason)}")
        if each.unreadable:
            shown = ", ".join(map(printable, each.unreadable[:SHOWN])) + (
                ", …" if len(each.unreadable) > SHOWN else ""
            )
            console.print(
                f"{each.name}: {len(each.unreadable)} images could not be read and are not counted: {shown}"
            )


def _cost_table(costs: Mapping[str, Cost]) -> Table:
    batches = list(next(iter(costs.values())).milliseconds)
    columns = [f"batch {batch}, × MobileCLIP-S0" for batch in batches]
    table = Table("model", "parameters", "multiply-adds", *columns, "peak memory")
    for model, cost in costs.items():
        times = [_time(cost, batch) for batch in batches]
        peak = f"{cost.peak_bytes / 2**20:,.0f} MiB"
        table.add_row(model, f"{cost.parameters:,}", f"{cost.multiply_adds / 1e9:.3f} G", *times, peak)
    return table


def _time(cost: Cost, batch: int) -> str:
    median, low, high = cost.times_reference[batch]
    return f"{median:.2f} ({low:.2f} to {high:.2f}), {cost.milliseconds[batch]:.1f} ms"
