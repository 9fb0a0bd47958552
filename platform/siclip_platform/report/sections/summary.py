"""The first screen: what wins, by how much and how surely, what it costs, what to try next.

Every figure in the sentences was logged by a run or is computed from such figures.
"""

from __future__ import annotations

from collections import Counter

from siclip_platform.report.draw.blocks import Block, Notes, Section, Text, Tile, Tiles
from siclip_platform.report.draw.values import (
    MISSING,
    interval,
    metric_cell,
    metric_label,
    parameter_cell,
    plural,
    points,
    probability,
)
from siclip_platform.report.judge.advice import next_steps
from siclip_platform.report.judge.settings import compare_settings, level_with
from siclip_platform.report.judge.winner import Winner, find_winner
from siclip_platform.report.read.runs import HEADLINE, Run, Study
from siclip_platform.report.sections.price import cost_sentence, cost_tile, price_sentence

DISTILLATION = ("feature_distillation", "contrastive_relational", "interactive_contrastive")
SHOWN_VALUES = 6
STATUS = {
    "confirmed": "confirmed with fresh seeds",
    "not confirmed": "fresh seeds do not confirm it",
    "contradicted": "fresh seeds contradict it",
    "not repeated": "not repeated with fresh seeds",
    "none": "nothing stands out",
}


def summary(study: Study) -> Section:
    winner, steps = find_winner(study), next_steps(study)
    sentences = [_ran(study), *_found(study, winner), *_teacher(study), *price_sentence(study, winner)]
    sentences.append(cost_sentence(study))
    blocks: list[Block] = [Tiles(_tiles(study, winner, steps)), *map(Text, sentences)]
    if steps:
        blocks.append(Text("What to try next: " + " ".join(steps)))
    if study.notes:
        blocks.append(Notes(study.notes))
    return Section("summary", "Summary", blocks)


def _tiles(study: Study, winner: Winner, steps: list[str]) -> list[Tile]:
    aim = f"{metric_label(study.metric)}, {'lower' if study.mode == 'min' else 'higher'} is better"
    named = winner.name or "none yet"
    level = _level_names(study, winner)
    first = "Leading setting, not shown to be the best"
    if winner.status == "confirmed":
        first = "Leading setting, shown to be better than the baseline" if level else "Best setting"
    told = f" · not told apart from {', '.join(level)}" if level else ""
    advice = steps[0] if steps else "Nothing is open."
    return [
        Tile(first, named, " · ".join([*_values(study, winner), f"{STATUS[winner.status]}{told}", aim])),
        _gain_tile(study, winner),
        cost_tile(study, winner),
        Tile("Next", advice.partition(":")[0], advice.partition(":")[2].strip()[:160]),
    ]  # fmt: skip


def _values(study: Study, winner: Winner) -> list[str]:
    """What a search's leading trial has set, by the last part of each name, or by all of it if that is not unique."""
    if study.type != "search" or winner.trial is None:
        return []
    paths = [path for path in study.searched if path in winner.trial.params][:SHOWN_VALUES]
    last = Counter(path.rpartition(".")[2] for path in study.searched)
    names = [short_name if last[short_name := path.rpartition(".")[2]] == 1 else path for path in paths]
    pairs = zip(names, paths, strict=True)
    more = len(study.searched) - len(paths)
    shown = [f"{name} {parameter_cell(winner.trial.params[path]).text}" for name, path in pairs]
    return [", ".join([*shown, *([f"{more} more"] if more > 0 and shown else [])])] if shown else []


def _gain_tile(study: Study, winner: Winner) -> Tile:
    row = winner.comparison
    if winner.difference is not None:
        gap = winner.difference
        sure = interval(winner.metric, gap.low, gap.high)
        detail = f"against {winner.against}, {f'95 % interval {sure}' if sure else 'no interval: too few seeds'}"
        return Tile(f"Gain, {metric_label(winner.metric)}", points(winner.metric, gap.mean), detail)
    if row is not None and row.difference is not None:
        sure = interval(study.metric, row.difference.low, row.difference.high)
        detail = (
            f"over {study.baseline}, {f'95 % interval {sure}, Holm p {probability(row.p)}' if sure else 'one seed'}"
        )
        return Tile("Gain in the study", points(study.metric, row.difference.mean), detail)
    best, control = study.best, study.control
    if best and control:
        name = next((n for n in HEADLINE if best.value(n) is not None and control.value(n) is not None), study.metric)
        gap_value = gap_of(best, control, name)
        if gap_value is not None:
            return Tile(
                f"Gain, {metric_label(name)}", points(name, gap_value), "over the control, one seed: no interval"
            )
    return Tile("Gain over the baseline", "not known", "nothing to compare with")


def gap_of(best: Run | None, control: Run | None, name: str) -> float | None:
    """Best − control where both have the metric."""
    mine = best.value(name) if best else None
    other = control.value(name) if control else None
    return None if mine is None or other is None else mine - other


def _ran(study: Study) -> str:
    states = Counter(run.state for run in study.leaves)
    counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none recorded"
    aim = "lowest" if study.mode == "min" else "highest"
    label = metric_label(study.metric)
    if study.type == "runs":
        return f"{plural(len(study.leaves), 'run')} ({counted}) chosen from the store, shown by {label}."
    if study.type == "ablation":
        count = len({trial.label for trial in study.trials})
        return (
            f"Ablation {study.name} compares {plural(count, 'setting')} in {plural(len(study.leaves), 'run')} "
            f"({counted}), by {label}, {'lower' if study.mode == 'min' else 'higher'} is better."
        )
    space = study.run.params.get("study.space")
    return (
        f"Study {study.name} ran {plural(len(study.trials), 'trial')} ({counted}) over "
        f"{len(study.searched)} searched parameters{f' of {space}' if space else ''}, looking for the {aim} {label}."
    )


def _found(study: Study, winner: Winner) -> list[str]:
    if study.type == "runs":
        return []
    if study.type == "ablation":
        return [*_ablation(study), *_level(study, winner), curse_sentence(winner, study)]
    return [_leader(study), *_against_control(study), curse_sentence(winner, study)]


def _level(study: Study, winner: Winner) -> list[str]:
    """Who shares the lead: a higher mean alone is no order."""
    names = _level_names(study, winner)
    return [f"Not told apart from the leader {winner.name} by these seeds: {', '.join(names)}."] if names else []


def _level_names(study: Study, winner: Winner) -> list[str]:
    if winner.comparison is None or winner.comparison.verdict == "baseline":
        return []
    return level_with(study, winner.name)


def _ablation(study: Study) -> list[str]:
    rows = compare_settings(study)
    told = []
    for verdict in ("better", "worse"):
        found = [row for row in rows if row.verdict == verdict]
        shown = [
            f"{row.setting.name} ({points(study.metric, row.difference.mean)}, 95 % interval "
            f"{interval(study.metric, row.difference.low, row.difference.high)}, Holm p {probability(row.p)})"
            for row in found
            if row.difference
        ]
        if shown:
            told.append(f"{verdict.capitalize()} than {study.baseline}: {'; '.join(shown)}.")
    open_ = [row.setting.name for row in rows if row.verdict == "not distinguishable"]
    if open_:
        told.append(f"Not distinguishable from {study.baseline} with these seeds: {', '.join(open_)}.")
    judged = [row for row in rows if row.verdict in ("better", "worse", "not distinguishable", "equal")]
    if not judged:
        told.append("No setting can be judged yet: a comparison needs two seeds or more in common with the baseline.")
    elif not any(row.verdict == "better" for row in judged):
        told.append(f"No setting is shown to be better than {study.baseline}.")
    return told


def curse_sentence(winner: Winner, study: Study) -> str:
    """Whether the leader may be called the best, and if not, why not."""
    if winner.status == "none":
        return "Nothing is called best."
    if winner.status == "not repeated":
        return (
            f"{winner.name} was selected because it scored well, so its score is partly luck (the winner's curse). "
            "It has not been re-run with fresh seeds, so it is not called best."
        )
    gap = winner.difference
    seeds = plural(len(winner.fresh), "fresh seed")
    if gap is None:
        return (
            f"{winner.name} was re-run with {seeds}, but with nothing to hold it against, so it is not called best."
        )
    known = interval(winner.metric, gap.low, gap.high)
    figures = f"{points(winner.metric, gap.mean)} {metric_label(winner.metric)} against {winner.against}" + (
        f" (95 % interval {known})" if known else ""
    )
    level = ", ".join(_level_names(study, winner))
    told = "is confirmed" if level else "is the best"
    but = f" It is not called best, since the study's seeds do not tell it apart from {level}." if level else ""
    return {
        "confirmed": f"{winner.name} {told}: {seeds}, not used to select it, give {figures}.{but}",
        "contradicted": f"{winner.name} is not the best: {seeds} give {figures}, so its lead in the selection was "
        "luck.",
    }.get(
        winner.status,
        f"{winner.name} is not called best: {seeds} give {figures}, which does not exclude no gain at all.",
    )


def _leader(study: Study) -> str:
    trial = study.best_trial
    if trial is None:
        return "No completed trial with a value is known as the best one."
    value = metric_cell(study.metric, trial.metrics.get(study.metric)).text
    own = [f"{path} {parameter_cell(trial.params[path]).text}" for path in study.searched if path in trial.params]
    setting = f" ({', '.join(own[:SHOWN_VALUES])})" if own else ""
    text = f"The leading setting is that of trial {trial.label}{setting}, with {metric_label(study.metric)} {value}"
    if study.best is None:
        return f"{text}; it has not been trained again yet, so no test figures exist."
    steps = study.best.steps
    again = f"{steps:,} steps" if steps is not None else "a number of steps that is not recorded"
    return f"{text} in the search; it was then trained again for {again} (state: {study.best.state})."


def _against_control(study: Study) -> list[str]:
    best, control = study.best, study.control
    if best is None:
        return []
    if control is None:
        return ["There is no control run, so nothing shows what the setting itself contributes."]
    figures = []
    for name in HEADLINE:
        mine, other = (metric_cell(name, run.metrics.get(name)).text for run in (best, control))
        words = f"{mine} against {other}"
        gap = gap_of(best, control, name)
        figures.append(f"{metric_label(name)} {words}" + (f" ({points(name, gap)})" if gap is not None else ""))
    what = "control (trained without distillation)" if _undistilled(control) else "control"
    early = [
        f"The {run.kind} run is {run.state}, not completed: its figures are not final."
        for run in (best, control)
        if run.state != "completed"
    ]
    together = f"{_steps(best, control)}, the leading setting and the {what} reach: {'; '.join(figures)}."
    return [together, *early, *([] if study.confirms else [_one_seed(best, control)])]


def _steps(best: Run, control: Run) -> str:
    if best.steps is None or control.steps is None:
        shown = [MISSING if run.steps is None else f"{run.steps:,}" for run in (best, control)]
        return f"With steps not known for both (best: {shown[0]}, control: {shown[1]})"
    if best.steps == control.steps:
        return f"At the same number of optimizer steps (best {best.steps:,}, control {control.steps:,})"
    unequal = f"best {best.steps:,}, control {control.steps:,}"
    return f"At different numbers of optimizer steps ({unequal}), so not a fair comparison"


def _one_seed(best: Run, control: Run) -> str:
    seeds = [run.params.get("training.seed") for run in (best, control)]
    which = f" (seed {seeds[0]})" if seeds[0] is not None and seeds[0] == seeds[1] else ""
    return (
        f"Each was trained once, with one seed{which}: nothing here says how much of a difference is noise "
        "between seeds, and no claim is made about it."
    )


def _undistilled(run: Run) -> bool:
    weights = [run.params.get(f"loss.{name}") for name in DISTILLATION]
    try:
        return all(weight is not None and float(weight) == 0 for weight in weights)
    except ValueError:
        return False


def _teacher(study: Study) -> list[str]:
    teacher = study.teacher
    if teacher is None:
        return []
    figures = [f"{metric_label(name)} {metric_cell(name, teacher.metrics.get(name)).text}" for name in HEADLINE]
    steps = f"{teacher.steps:,} steps" if teacher.steps is not None else "steps not recorded"
    return [f"For reference, the teacher ({steps}, state: {teacher.state}): {'; '.join(figures)}."]
