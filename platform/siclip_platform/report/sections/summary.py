"""The first screen: what leads, by how much and how certainly, what it costs, and what to try next.

Every number in the sentences was logged by a run or is computed from logged values.
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
from siclip_platform.report.judge.settings import compare_settings, indistinguishable_from
from siclip_platform.report.judge.statistics import Difference
from siclip_platform.report.judge.winner import Winner, find_winner
from siclip_platform.report.read.runs import HEADLINE, Run, Study, measured
from siclip_platform.report.sections.advice import next_steps
from siclip_platform.report.sections.cost import cost_of_leader, cost_of_study, cost_tile

DISTILLATION = ("feature_distillation", "contrastive_relational", "interactive_contrastive")
SHOWN_VALUES = 6
STATUS = {
    "confirmed": "confirmed with fresh seeds",
    "not confirmed": "not confirmed by fresh seeds",
    "contradicted": "contradicted by fresh seeds",
    "not repeated": "not repeated with fresh seeds",
    "none": "no lead shown",
}


def summary(study: Study) -> Section:
    """Tiles, sentences, next steps and notes."""
    winner, steps = find_winner(study), next_steps(study)
    sentences = [_ran(study), *_found(study, winner), *_teacher(study), *cost_of_leader(study, winner)]
    sentences.append(cost_of_study(study))
    blocks: list[Block] = [Tiles(_tiles(study, winner, steps)), *map(Text, sentences)]
    if steps:
        blocks.append(Text("What to try next: " + " ".join(steps)))
    if study.notes:
        blocks.append(Notes(study.notes))
    return Section("summary", "Summary", blocks)


def _tiles(study: Study, winner: Winner, steps: list[str]) -> list[Tile]:
    aim = f"{metric_label(study.metric)}, {'lower' if study.mode == 'min' else 'higher'} is better"
    rivals = _rivals(study, winner)
    claim = "Leading, unconfirmed"
    if winner.status == "confirmed":
        claim = "Leading, better than the baseline" if rivals else "Best setting"
    details = [*_values(study, winner), STATUS[winner.status]]
    if rivals:
        details.append(f"not distinguishable from {', '.join(rivals)}")
    step, _, reason = (steps[0] if steps else "No suggestion").partition(":")
    return [
        Tile(claim, winner.name or "none yet", " · ".join([*details, aim])),
        _gain_tile(study, winner),
        cost_tile(study, winner),
        Tile("Next", step, reason.strip()[:160]),
    ]


def _values(study: Study, winner: Winner) -> list[str]:
    """The leading trial's searched values, by the last part of each name or, if that is not unique, all of it."""
    if study.type != "search" or winner.trial is None:
        return []
    paths = [path for path in study.searched if path in winner.trial.params][:SHOWN_VALUES]
    # Two searched fields may end alike, such as image.width and text.width.
    last = Counter(path.rpartition(".")[2] for path in study.searched)
    names = [short_name if last[short_name := path.rpartition(".")[2]] == 1 else path for path in paths]
    pairs = zip(names, paths, strict=True)
    more = len(study.searched) - len(paths)
    shown = [f"{name} {parameter_cell(winner.trial.params[path]).text}" for name, path in pairs]
    return [", ".join([*shown, *([f"{more} more"] if more > 0 and shown else [])])] if shown else []


def _gain_tile(study: Study, winner: Winner) -> Tile:
    # From the strongest evidence to the weakest: fresh seeds, the study's own seeds, one run of best and control.
    row = winner.comparison
    if winner.difference is not None:
        gap = winner.difference
        known = interval(winner.metric, gap.low, gap.high)
        detail = f"against {winner.against}, {f'95 % interval {known}' if known else 'no interval: too few seeds'}"
        return Tile(f"Gain, {metric_label(winner.metric)}", points(winner.metric, gap.mean), detail)
    if row is not None and row.difference is not None:
        known = interval(study.metric, row.difference.low, row.difference.high)
        detail = (
            f"over {study.baseline}, {f'95 % interval {known}, Holm p {probability(row.p)}' if known else 'one seed'}"
        )
        return Tile("Gain in the study", points(study.metric, row.difference.mean), detail)
    best, control = study.best, study.control
    if best and control:
        # Test metrics before the study's own, on which best was selected.
        names = measured(HEADLINE, best, control)
        name = next((n for n in names if best.value(n) is not None and control.value(n) is not None), study.metric)
        gap_value = gap_of(best, control, name)
        if gap_value is not None:
            return Tile(
                f"Gain, {metric_label(name)}", points(name, gap_value), "over the control, one seed: no interval"
            )
    return Tile("Gain over the baseline", "not known", "nothing to compare with")


def gap_of(best: Run | None, control: Run | None, name: str) -> float | None:
    """Best − control; None unless both have the metric."""
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
        f"{len(study.searched)} searched parameters{f' of {space}' if space else ''} for the {aim} {label}."
    )


def _found(study: Study, winner: Winner) -> list[str]:
    if study.type == "runs":
        return []
    if study.type == "ablation":
        return [*_ablation(study), *_shared_lead(study, winner), claim_sentence(winner, study)]
    return [_leader(study), *_against_control(study), claim_sentence(winner, study)]


def _shared_lead(study: Study, winner: Winner) -> list[str]:
    names = _rivals(study, winner)
    text = f"Not distinguishable from the leader {winner.name} with these seeds: {', '.join(names)}."
    return [text] if names else []


def _rivals(study: Study, winner: Winner) -> list[str]:
    """Settings that may be as good as the leader: a higher mean alone does not rank them."""
    if winner.comparison is None or winner.comparison.verdict == "baseline":
        return []
    return indistinguishable_from(study, winner.name)


def _ablation(study: Study) -> list[str]:
    rows = compare_settings(study)
    sentences = []
    for verdict in ("better", "worse"):
        found = [row for row in rows if row.verdict == verdict]
        shown = [
            f"{row.setting.name} ({points(study.metric, row.difference.mean)}, 95 % interval "
            f"{interval(study.metric, row.difference.low, row.difference.high)}, Holm p {probability(row.p)})"
            for row in found
            if row.difference
        ]
        if shown:
            sentences.append(f"{verdict.capitalize()} than {study.baseline}: {'; '.join(shown)}.")
    undecided = [row.setting.name for row in rows if row.verdict == "not distinguishable"]
    if undecided:
        sentences.append(
            f"Not distinguishable from the baseline ({study.baseline}) with these seeds: {', '.join(undecided)}."
        )
    judged = [row for row in rows if row.verdict in ("better", "worse", "not distinguishable", "equal")]
    if not judged:
        sentences.append(
            "No setting can be judged yet: a comparison requires at least two seeds that the baseline has."
        )
    elif not any(row.verdict == "better" for row in judged):
        sentences.append(f"No setting is shown to be better than {study.baseline}.")
    return sentences


def claim_sentence(winner: Winner, study: Study) -> str:
    """Whether the leading setting may be called the best, and if not, why."""
    if winner.status == "none":
        return "No setting is called the best."
    if winner.status == "not repeated":
        return (
            f"{winner.name} was selected because it scored well, so its score is partly luck (the winner's curse). "
            "It has not been re-run with fresh seeds, so it is not called the best."
        )
    seeds = plural(len(winner.fresh), "fresh seed")
    if winner.difference is None:
        return f"{winner.name} was re-run with {seeds}, but without a comparison, so it is not called the best."
    return _fresh_result(winner, winner.difference, seeds, _rivals(study, winner))


def _fresh_result(winner: Winner, gap: Difference, seeds: str, rivals: list[str]) -> str:
    known = interval(winner.metric, gap.low, gap.high)
    figures = f"{points(winner.metric, gap.mean)} {metric_label(winner.metric)} against {winner.against}"
    figures += f", 95 % interval {known}" if known else ""
    if winner.status == "contradicted":
        return f"{winner.name} is not the best: {seeds} give {figures}, so its lead in the selection was luck."
    if winner.status != "confirmed":
        return f"{winner.name} is not called the best: {seeds} give {figures}, which does not rule out a gain of 0."
    if not rivals:
        return f"{winner.name} is the best: {seeds}, not used to select it, give {figures}."
    return (
        f"{winner.name} is confirmed: {seeds}, not used to select it, give {figures}. It is not called the best, "
        f"because the study's seeds do not distinguish it from {', '.join(rivals)}."
    )


def _leader(study: Study) -> str:
    trial = study.best_trial
    if trial is None:
        return "No completed trial with a value is recorded as the best."
    value = metric_cell(study.metric, trial.metrics.get(study.metric)).text
    own = [f"{path} {parameter_cell(trial.params[path]).text}" for path in study.searched if path in trial.params]
    setting = f" ({', '.join(own[:SHOWN_VALUES])})" if own else ""
    text = f"The leading setting is that of trial {trial.label}{setting}, with {metric_label(study.metric)} {value}"
    if study.best is None:
        return f"{text}; it has not been retrained yet, so there are no test metrics."
    steps = study.best.steps
    length = f"{steps:,} steps" if steps is not None else "an unrecorded number of steps"
    return f"{text} in the search; it was then retrained for {length} (state: {study.best.state})."


def _against_control(study: Study) -> list[str]:
    best, control = study.best, study.control
    if best is None:
        return []
    if control is None:
        return ["There is no control run, so the contribution of the setting itself is not known."]
    figures = []
    for name in measured(HEADLINE, best, control):
        mine, other = (metric_cell(name, run.metrics.get(name)).text for run in (best, control))
        gap = gap_of(best, control, name)
        change = f" ({points(name, gap)})" if gap is not None else ""
        figures.append(f"{metric_label(name)} {mine} against {other}{change}")
    reference = "control (trained without distillation)" if _undistilled(control) else "control"
    early = [
        f"The {run.kind} run is {run.state}, not completed: its metrics are not final."
        for run in (best, control)
        if run.state != "completed"
    ]
    together = f"{_steps(best, control)}, the leading setting and the {reference} reach: {'; '.join(figures)}."
    return [together, *_no_test_split(best, control), *early, *([] if study.confirms else [_one_seed(best, control)])]


def _no_test_split(*runs: Run) -> list[str]:
    if all(run.tag("final_split") != "validation" for run in runs):
        return []
    return [
        "The dataset has no test split: these figures are of the validation split, by which the setting was chosen, "
        "so they are optimistic."
    ]


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
        f"Each was trained once, with one seed{which}, so the noise between seeds is not known and no claim is made "
        "about the difference."
    )


def _undistilled(run: Run) -> bool:
    # Only a recorded weight of 0 proves that a loss was off.
    weights = [run.params.get(f"loss.{name}") for name in DISTILLATION]
    try:
        return all(weight is not None and float(weight) == 0 for weight in weights)
    except ValueError:
        return False


def _teacher(study: Study) -> list[str]:
    teacher = study.teacher
    if teacher is None:
        return []
    figures = [
        f"{metric_label(name)} {metric_cell(name, teacher.metrics.get(name)).text}"
        for name in measured(HEADLINE, teacher)
    ]
    steps = f"{teacher.steps:,} steps" if teacher.steps is not None else "steps not recorded"
    return [f"For reference, the teacher ({steps}, state: {teacher.state}): {'; '.join(figures)}."]
