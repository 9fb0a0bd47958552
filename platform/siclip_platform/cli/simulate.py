"""``siclip-platform simulate``."""

from __future__ import annotations

from typing import Annotated

import typer

POLICIES = ["tpe+asha", "random+asha", "random+none"]


def simulate(
    curves: Annotated[str, typer.Argument(help="Recorded curves: a name, such as digits-wikd, or a file.")],
    policy: Annotated[
        list[str] | None,
        typer.Option(help=f"SAMPLER+SCHEDULER, may be repeated; default: {', '.join(POLICIES)}."),
    ] = None,
    space: Annotated[str | None, typer.Option(help="Search this space instead of the recorded one.")] = None,
    trials: Annotated[int, typer.Option(min=2, help="Budget: the time of this many whole trials.")] = 24,
    workers: Annotated[int, typer.Option(min=1, help="Trials at the same time.")] = 2,
    repetitions: Annotated[int, typer.Option(min=2, help="Seeds of the search.")] = 20,
) -> None:
    """Compare samplers, schedulers and spaces on recorded learning curves, without training anything."""
    from rich.table import Table

    from siclip_platform.display import Terminal, echo
    from siclip_platform.report.judge.statistics import t_interval
    from siclip_platform.simulation.curves import Landscape, load_curves
    from siclip_platform.simulation.simulator import budget_seconds, parse_policy
    from siclip_platform.simulation.simulator import simulate as replay
    from siclip_platform.spaces.load import load_space

    chosen = [parse_policy(text) for text in policy or POLICIES]
    recorded = load_curves(curves)
    landscape = Landscape(recorded, load_space(space) if space else None)
    budget = budget_seconds(landscape, workers, trials)
    found = replay(landscape, chosen, workers=workers, trials=trials, repetitions=repetitions)
    table = Table(
        title=f"{recorded.metric} of the best complete trial in {budget:,.0f} simulated seconds on {workers} workers"
    )
    for title in ("policy", "best, mean of seeds", "95 % interval", "trials started", "complete"):
        table.add_column(title, justify="left" if title == "policy" else "right")
    for name, traces in found.items():
        best = t_interval([trace.best_at(budget) for trace in traces])
        started = sum(len(trace.trials) for trace in traces) / len(traces)
        complete = sum(trace.complete for trace in traces) / len(traces)
        table.add_row(
            name, f"{best.mean:.4f}", f"{best.low:.4f} – {best.high:.4f}", f"{started:.1f}", f"{complete:.1f}"
        )
    Terminal(width=100).print(table)
    echo(
        f"{len(recorded.whole)} recorded settings, {repetitions} seeds. Other settings are interpolated by trees: "
        f"R² of the last score of held-out settings is {landscape.fit_quality():.2f}."
    )
