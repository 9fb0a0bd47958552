"""What the leading setting costs compared with its baseline, and what the study cost."""

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
class SettingCost:
    """The cost of a setting, as means over its completed runs.

    Attributes:
        name: Name of the setting.
        seconds: Wall seconds of a run.
        parameters: Parameters of both towers.
    """

    name: str
    seconds: float | None
    parameters: float | None


def setting_costs(study: Study, winner: Winner) -> tuple[SettingCost | None, SettingCost | None]:
    """Costs of the leading setting and of the baseline (of a search: the control); None where there is none."""
    if study.type != "ablation":
        run = study.best or winner.trial
        leading = _setting_cost(winner.name, [run]) if run else None
        return leading, _setting_cost("control", [study.control]) if study.control else None
    found = settings(study)
    leader = next((setting for setting in found if setting.name == winner.name), None)
    baseline = baseline_of(study, found)
    leading = _setting_cost(leader.name, list(leader.by_seed.values())) if leader else None
    if baseline is None or leader is None or baseline.name == leader.name:
        return leading, None
    return leading, _setting_cost(baseline.name, list(baseline.by_seed.values()))


def _setting_cost(name: str, runs: Sequence[Run]) -> SettingCost:
    # A run that stopped early costs less, which would make a failing setting look cheap.
    done = [run for run in runs if run.state == "completed"]
    towers = ("cost/parameters_image", "cost/parameters_text")
    sizes = [_mean(run.value(tower) for run in done) for tower in towers]
    both = sizes[0] + sizes[1] if sizes[0] is not None and sizes[1] is not None else None
    return SettingCost(name, _mean(run.value("cost/seconds") for run in done), both)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def cost_tile(study: Study, winner: Winner) -> Tile:
    """The cost of a run of the leading setting, or of the study if that is not recorded."""
    seconds, timed = total_seconds(study.runs), sum(run.value("cost/seconds") is not None for run in study.runs)
    left = len(study.runs) - timed
    counted = plural(len(study.runs), "run") + (f", {left} without a recorded time" if left and timed else "")
    leading, other = setting_costs(study, winner)
    if leading is None or leading.seconds is None:
        return Tile("Cost of the study", duration(seconds) if timed else MISSING, counted)
    details = []
    if other is not None and other.seconds:
        details.append(f"{leading.seconds / other.seconds:.2f} × {other.name} ({duration(other.seconds)})")
    if leading.parameters is not None:
        details.append(_size(leading, other))
    details.append(f"study: {duration(seconds)}, {counted}")
    return Tile("Cost per run", duration(leading.seconds), " · ".join(details))


def _size(leading: SettingCost, other: SettingCost | None) -> str:
    text = f"{(leading.parameters or 0) / 1e6:.3g} M parameters"
    if other is None or not other.parameters:
        return text
    change = 100 * ((leading.parameters or 0) / other.parameters - 1)
    relation = f"{abs(change):.1f} % {'more' if change > 0 else 'fewer'} than" if round(change, 1) else "as many as"
    return f"{text}, {relation} {other.name}"


def total_seconds(runs: tuple[Run, ...]) -> float:
    """Sum of the recorded wall times."""
    return math.fsum(value for run in runs if (value := run.value("cost/seconds")) is not None)


def cost_of_study(study: Study) -> str:
    """A sentence on the wall time of all runs."""
    total, search = total_seconds(study.runs), total_seconds(study.leaves)
    if total <= 0:
        return "No run recorded its cost."
    return (
        f"All runs together took {duration(total)}, {duration(search)} of it ({100 * search / total:.1f} %) "
        f"in the {'search' if study.type == 'search' else 'compared runs'}."
    )
