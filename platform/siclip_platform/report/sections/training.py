"""Block divergence and pair matching during training."""

from __future__ import annotations

from collections.abc import Sequence

from siclip_platform.report.draw.blocks import Block, Section, Text
from siclip_platform.report.draw.diagrams import pattern
from siclip_platform.report.draw.plots import Plot, Series
from siclip_platform.report.draw.values import Cell, Table, is_share, short
from siclip_platform.report.judge.settings import settings
from siclip_platform.report.judge.statistics import t_interval
from siclip_platform.report.read.runs import Run, Study
from siclip_platform.report.sections.curves import LOOKS, line, setting_bands

DIVERGENCE = "train/divergence/"
PAIRS = {
    "train/pair_matching": "pair-matching loss",
    "train/pair_positive_accuracy": "accuracy on true pairs",
    "train/pair_negative_accuracy": "accuracy on mined pairs",
    "train/pair_masked_share": "share masked as false negatives",
    "train/pair_dropped": "rows left without a negative",
}


def divergence(study: Study) -> Section | None:
    """Jensen-Shannon divergence of adjacent and of sharing blocks during training; None if no run logged it."""
    names = sorted({name for run in _detailed(study) for name in run.curves if name.startswith(DIVERGENCE)})
    if not names:
        if study.question != "divergence":
            return None
        return Section("divergence", "Divergence of blocks", [Text("No run logged divergences.")])
    text = (
        "Jensen-Shannon divergence between the attention of two blocks, in nats (0: equal, 0.693: disjoint). "
        "Near-uniform attention also gives a low value, so compare shared pairs with the others."
    )
    plots: list[Block] = [_divergence_plot(study, tower, names) for tower in ("image", "text") if _of(names, tower)]
    return Section("divergence", "Divergence of blocks", [Text(text, soft=True), *plots, _change(study, names)])


def _of(names: Sequence[str], tower: str) -> list[str]:
    return [name for name in names if name.startswith(f"{DIVERGENCE}{tower}/")]


def _divergence_plot(study: Study, tower: str, names: Sequence[str]) -> Plot:
    """One line per pair of blocks, from one representative run; pairs that share weights are marked."""
    run = _representative(study)
    series, ends = [], []
    for index, name in enumerate(_of(names, tower)):
        pair = name.rpartition("/")[2]
        shared = shares_weights(run, tower, pair)
        curve = run.curves.get(name)
        if curve:
            label = f"blocks {pair}{', shared' if shared else ''}"
            series.append(line(label, curve, index + 1))
            ends.append(f"{label} {curve[0][1]:.3g} to {curve[-1][1]:.3g}")
    return Plot(
        key=f"divergence-{tower}",
        title=f"Divergence in the {tower} tower, {run.label}",
        description=f"Divergence in nats from the first to the last logged step: {'; '.join(ends) or 'none logged'}.",
        x_label="optimizer step",
        y_label="JS divergence, nats",
        series=series or [Series(name="none", x=[], y=[])],
    )


def shares_weights(run: Run, tower: str, pair: str) -> bool | None:
    """Whether both blocks of a pair (``0-1``) use the same weights; None if the pattern is not known."""
    found = pattern(run.params.get(f"model.{tower}_sharing"))
    one, _, other = pair.partition("-")
    if found is None or not (one.isdecimal() and other.isdecimal()):
        return None
    if max(int(one), int(other)) >= len(found.assignment):
        return None
    return found.owner(int(one)) == found.owner(int(other))


def _change(study: Study, names: Sequence[str]) -> Table:
    """First and last value of each pair in each setting, and the mean change over seeds with its interval."""
    rows = []
    for setting in settings(study):
        for name in names:
            # A change needs a first and a last value.
            found = [run.curves[name] for run in setting.by_seed.values() if len(run.curves.get(name, ())) > 1]
            if not found:
                continue
            tower, pair = name.removeprefix(DIVERGENCE).split("/")
            change = t_interval([curve[-1][1] - curve[0][1] for curve in found])
            shared = shares_weights(setting.trial, tower, pair)
            ends = [t_interval([curve[index][1] for curve in found]).mean for index in (0, -1)]
            change_interval = (
                f"{change.low:+.3g} to {change.high:+.3g}".replace("-", "−") if change.count > 1 else "one seed"
            )
            rows.append(
                [
                    Cell(setting.name, setting.name),
                    Cell(f"{tower} {pair}"),
                    Cell({True: "yes", False: "no", None: "not known"}[shared]),
                    *(Cell(short(end), end) for end in ends),
                    Cell(f"{change.mean:+.3g}".replace("-", "−"), change.mean),
                    Cell(change_interval),
                    Cell(str(change.count), change.count),
                ]
            )
    return Table(
        key="divergences",
        title="Change of divergence during training",
        columns=["setting", "blocks", "shared", "first", "last", "change", "95 % interval of change", "seeds"],
        rows=rows,
        numeric=[False, False, False, True, True, True, False, True],
        sortable=True,
        limit=60,
    )


def pair_matching(study: Study) -> Section | None:
    """Loss, accuracies and masking of pair matching; None if no run logged them."""
    runs = _detailed(study)
    logged = [name for name in PAIRS if any(name in run.curves for run in runs)]
    if not logged:
        return None
    plots: list[Block] = []
    for name in logged:
        series = _lines(study, name)
        ends = ", ".join(f"{each.name} {short(each.y[-1])}" for each in series if each.y and each.y[-1] is not None)
        plots.append(
            Plot(
                key=name.rpartition("/")[2].replace("_", "-"),
                title=PAIRS[name].capitalize(),
                description=f"{PAIRS[name].capitalize()} against optimizer steps; at the end: {ends}.",
                x_label="optimizer step",
                y_label=PAIRS[name],
                series=series,
                percent=is_share(name),
                height=300,
            )
        )
    text = (
        "Two of three pairs are mined negatives, so a classifier that always answers no is right for 67 % of pairs."
    )
    return Section("pair-matching", "Pair matching", [Text(text, soft=True), *plots])


def _lines(study: Study, name: str) -> list[Series]:
    if study.type == "ablation":
        return setting_bands(study, name)
    roles = [run for run in (study.control, study.best) if run and name in run.curves]
    if roles:
        return [line(run.label, run.curves[name], LOOKS[run.kind]) for run in roles]
    found = [run for run in _detailed(study) if name in run.curves][:8]
    return [line(run.label, run.curves[name], index + 1) for index, run in enumerate(found)]


def _detailed(study: Study) -> list[Run]:
    """Runs whose training curves the report reads."""
    single = [run for run in (study.best, study.control) if run]
    return [*single, *study.leaves, *study.confirms]


def _representative(study: Study) -> Run:
    """The run whose curves are shown: best, else one of the leading trial, else any that has them."""
    having = [run for run in _detailed(study) if any(name.startswith(DIVERGENCE) for name in run.curves)]
    if study.best in having:
        return study.best
    # `divergence` returns earlier if no run has curves, so there is at least one.
    leader = study.best_trial
    return next((run for run in having if leader and run.label == leader.label), having[0])
