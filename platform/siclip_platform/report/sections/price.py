"""What the leading setting costs beside what it is held against, and what the study cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from siclip_platform.report.draw.blocks import Tile
from siclip_platform.report.draw.values import MISSING, duration, plural
from siclip_platform.report.judge.settings import baseline_of, settings
from siclip_platform.report.judge.winner import Winner
from siclip_platform.report.read.runs import Run, Study


@dataclass(frozen=True)
class Price:
    """Of one run of a setting, as means over its runs: wall seconds, and parameters of both towers."""

    name: str
    seconds: float | None
    parameters: float | None


def prices(study: Study, winner: Winner) -> tuple[Price | None, Price | None]:
    """Of the leading setting, and of the ablation's baseline or the control; None where there is none."""
    if study.type != "ablation":
        own = study.best or winner.trial
        mine = _price(winner.name, [own]) if own else None
        return mine, _price("control", [study.control]) if study.control else None
    found = settings(study)
    leader = next((setting for setting in found if setting.name == winner.name), None)
    baseline = baseline_of(study, found)
    mine = _price(leader.name, list(leader.by_seed.values())) if leader else None
    same = baseline is None or leader is None or baseline.name == leader.name
    return mine, None if same or baseline is None else _price(baseline.name, list(baseline.by_seed.values()))


def _price(name: str, runs: Sequence[Run]) -> Price:
    done = [run for run in runs if run.state == "completed"]
    towers = ("cost/parameters_image", "cost/parameters_text")
    sizes = [_mean(run.value(tower) for run in done) for tower in towers]
    both = sizes[0] + sizes[1] if sizes[0] is not None and sizes[1] is not None else None
    return Price(name, _mean(run.value("cost/seconds") for run in done), both)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def cost_tile(study: Study, winner: Winner) -> Tile:
    seconds, timed = total_seconds(study.runs), sum(run.value("cost/seconds") is not None for run in study.runs)
    whole = f"{plural(len(study.runs), 'run')}, {timed} with a recorded time"
    mine, other = prices(study, winner)
    if mine is None or mine.seconds is None:
        return Tile("Cost of the study", duration(seconds) if timed else MISSING, whole)
    told = []
    if other is not None and other.seconds:
        told.append(f"× {mine.seconds / other.seconds:.2f} of {other.name} ({duration(other.seconds)})")
    if mine.parameters is not None:
        told.append(_size(mine, other))
    told.append(f"the study: {duration(seconds)}, {whole}")
    return Tile("Cost of one run of it", duration(mine.seconds), " · ".join(told))


def _size(mine: Price, other: Price | None) -> str:
    words = f"{(mine.parameters or 0) / 1e6:.3g} M parameters"
    if other is None or not other.parameters:
        return words
    change = 100 * ((mine.parameters or 0) / other.parameters - 1)
    same = f"{abs(change):.1f} % {'more' if change > 0 else 'fewer'} than" if round(change, 1) else "as many as"
    return f"{words}, {same} {other.name}"


def price_sentence(study: Study, winner: Winner) -> list[str]:
    """The leading setting's cost in words; nothing without a recorded time."""
    mine, other = prices(study, winner)
    if mine is None or mine.seconds is None:
        return []
    words = f"A run of {mine.name} takes {duration(mine.seconds)} of wall time"
    if other is not None and other.seconds:
        words += f", one of {other.name} {duration(other.seconds)}"
    return [f"{words}; {_size(mine, other)}." if mine.parameters is not None else f"{words}."]


def total_seconds(runs: tuple[Run, ...]) -> float:
    """Sum of the recorded wall times."""
    return math.fsum(value for run in runs if (value := run.value("cost/seconds")) is not None)


def cost_sentence(study: Study) -> str:
    total, search = total_seconds(study.runs), total_seconds(study.leaves)
    if total <= 0:
        return "No run has recorded what it cost."
    return (
        f"The runs took {duration(total)} together, {duration(search)} of it ({100 * search / total:.1f} %) "
        f"in the {'search' if study.type == 'search' else 'compared runs'}."
    )
