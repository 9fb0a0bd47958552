"""The first screen: what was gained and how certainly, what leads, what it costs, and what to do next."""

from __future__ import annotations

from collections import Counter

from siclip_platform.report.draw.blocks import Block, Code, Notes, Section, Text, Tile, Tiles
from siclip_platform.report.draw.looks import BEST, CONTROL
from siclip_platform.report.draw.plots import Plot, Series
from siclip_platform.report.draw.values import is_share, metric_label, parameter_cell, plural, points
from siclip_platform.report.judge.gain import Gain, Over, Tie, gains, start_leads, tie
from siclip_platform.report.judge.pools import pool_of
from siclip_platform.report.judge.winner import Winner, find_winner
from siclip_platform.report.read.items import read_items
from siclip_platform.report.read.runs import Study
from siclip_platform.report.sections.advice import Step, next_steps
from siclip_platform.report.sections.cost import cost_of_study, cost_tile
from siclip_platform.report.sections.statement import (
    UNCONFIRMED,
    amount,
    brief,
    evidence,
    no_gain,
    rivals,
    statement,
    tied,
)

SHOWN_VALUES = 6
OVER = {name: f"the {name}" for name in ("baseline", "control", "teacher")} | {"start": "the starting recipe"}


def summary(study: Study) -> Section:
    """Tiles, the statement, the next step, the gains as a picture, and notes."""
    winner, steps = find_winner(study), next_steps(study)
    found = gains(study, winner)
    blocks: list[Block] = [Tiles(_tiles(study, winner, found)), *map(Text, statement(study))]
    blocks += _next(steps[:1])
    plot = gain_plot(study, winner, found)
    blocks += [plot] if plot else []
    blocks.append(Text(f"{ran(study)} {cost_of_study(study)}", soft=True))
    if study.page:
        blocks.append(Text(f"All runs in MLflow: {study.page}", soft=True))
    problems = [text] if isinstance(text := read_items(study.items), str) else []
    if study.notes or problems:
        blocks.append(Notes([*study.notes, *problems]))
    return Section("summary", "Summary", blocks)


def advice(study: Study) -> Section | None:
    """Everything to do next; None if the first screen has it all."""
    steps = next_steps(study)
    return Section("next", "What to do next", _next(steps)) if len(steps) > 1 else None


def _next(steps: list[Step]) -> list[Block]:
    blocks: list[Block] = []
    for step in steps:
        blocks += [Text(f"Next: {step}"), *([Code(step.command)] if step.command else [])]
    return blocks


def _tiles(study: Study, winner: Winner, found: dict[Over, Gain]) -> list[Tile]:
    together = tie(study, winner)
    tiles = [] if study.type == "runs" else [_gain_tile(study, winner, found, together)]
    if "control" in found:
        tiles.append(_tile(study, found["control"], "Gain over the control", "distillation, not the search"))
    if study.type != "runs":
        claim = "Best setting" if winner.best and not rivals(study, winner) else UNCONFIRMED
        others = [f"not distinguishable from {', '.join(names)}"] if (names := rivals(study, winner)) else []
        aim = f"{metric_label(study.metric)}, {'lower' if study.mode == 'min' else 'higher'} is better"
        tiles.append(Tile(claim, winner.name or "none yet", " · ".join([*_values(study, winner), *others, aim])))
    return [*tiles, cost_tile(study, winner)]


def _gain_tile(study: Study, winner: Winner, found: dict[Over, Gain], together: Tie) -> Tile:
    over: Over = "baseline" if study.type == "ablation" else "start"
    label = f"Gain over {OVER[over]}"
    names = f"tied with {tied(study, together)}" if together.trials else ""
    if start_leads(study, winner):
        return Tile(label, "none", " · ".join(filter(None, [f"it leads ({winner.name})", names])))
    gain = found.get(over)
    if gain is None:
        return Tile(label, "not known", "nothing to compare with")
    if over == "start" and not winner.best and (gain.fresh or no_gain(study, gain, together)):
        return _tile(study, gain, label, "no gain shown", names)
    return _tile(study, gain, label, names)


def _tile(study: Study, gain: Gain, label: str, *notes: str) -> Tile:
    pool = pool_of(study, gain.metric)
    figures = amount(gain).partition(f"{points(gain.metric, gain.mean)} ")[2]
    where = f"{figures} · {pool.words(gain.metric)}" if pool else figures
    return Tile(label, points(gain.metric, gain.mean), " · ".join(filter(None, [*notes, where, brief(gain)])))


def gain_plot(study: Study, winner: Winner, found: dict[Over, Gain]) -> Plot | None:
    """The gains with their intervals; None without one."""
    shown = [gain for gain in found.values() if gain.over != "baseline"]
    if not shown:
        return None
    rows = shown[::-1]  # the y axis points up
    metric = rows[0].metric
    many = [gain.seeds > 1 for gain in rows]
    seeds = [
        (float(index), gain.mean, gain.low if several else None, gain.high if several else None)
        for index, (gain, several) in enumerate(zip(rows, many, strict=True))
    ]
    of_items = [(index - 0.2, gain.items) for index, gain in enumerate(rows) if gain.items]
    items = [(at, found.mean, found.low, found.high) for at, found in of_items]
    series = [
        Series(
            name=name,
            x=[mean for _, mean, _, _ in drawn],
            y=[at for at, *_ in drawn],
            low=[low for _, _, low, _ in drawn],
            high=[high for _, _, _, high in drawn],
            labels=[OVER[rows[round(at)].over] for at, *_ in drawn],
            style="points",
            look=look,
            sideways=True,
        )
        for name, drawn, look in (
            ("difference, 95 % interval over several seeds", seeds, BEST),
            ("items of the final split, 95 % interval", items, CONTROL),
        )
        if drawn
    ]
    words = "; ".join(f"over {OVER[gain.over]} {amount(gain)}, {evidence(gain)}" for gain in shown)
    return Plot(
        key="gain",
        title=f"What {winner.name} gains",
        description=f"Leading setting minus the other: {words}.",
        x_label=f"difference in {metric_label(metric).partition(' ')[2] or metric_label(metric)}",
        y_label="",
        series=series,
        y_ticks=[OVER[gain.over] for gain in rows],
        percent_x=is_share(metric),
        zero_line="x",
        height=170 + 44 * len(rows),
    )


def _values(study: Study, winner: Winner) -> list[str]:
    """The leading trial's searched values, by the last part of each name or, if that is not unique, all of it."""
    if study.type != "search" or winner.trial is None:
        return []
    known = [path for path in study.searched if path in winner.trial.params]
    paths = known[:SHOWN_VALUES]
    # Two searched fields may end alike, such as image.width and text.width.
    last = Counter(path.rpartition(".")[2] for path in study.searched)
    names = [short_name if last[short_name := path.rpartition(".")[2]] == 1 else path for path in paths]
    pairs = zip(names, paths, strict=True)
    more = len(known) - len(paths)
    shown = [f"{name} {parameter_cell(winner.trial.params[path]).text}" for name, path in pairs]
    return [", ".join([*shown, *([f"{more} more"] if more > 0 and shown else [])])] if shown else []


def ran(study: Study) -> str:
    """What was run, and how it ended."""
    states = Counter(run.state for run in study.leaves)
    counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none recorded"
    label = metric_label(study.metric)
    if study.type == "runs":
        return f"{plural(len(study.leaves), 'run')} ({counted}), by {label}."
    if study.type == "ablation":
        count = len({trial.label for trial in study.trials})
        return f"{plural(count, 'setting')} in {plural(len(study.leaves), 'run')} ({counted}), by {label}."
    space = study.run.params.get("study.space")
    return (
        f"{plural(len(study.trials), 'trial')} ({counted}) over {plural(len(study.searched), 'parameter')}"
        f"{f' of {space}' if space else ''}, by {label}."
    )
