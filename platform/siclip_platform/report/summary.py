"""What the study found, in sentences: every figure in them was logged by a run."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from dataclasses import dataclass

from siclip_platform.report.query import Run, Study
from siclip_platform.report.tables import metric_label, total_seconds
from siclip_platform.report.values import MISSING, duration, metric_cell, points

HEADLINE = ("test/mean_recall@1", "test/image_retrieval_recall@1", "test/beats_all_negatives")
DISTILLATION = ("feature_distillation", "contrastive_relational", "interactive_contrastive")


@dataclass(frozen=True)
class Tile:
    """One figure of the first screen."""

    label: str
    best: str
    detail: str


def tiles(study: Study) -> list[Tile]:
    """Best against control on the headline metrics; none without a best run."""
    if study.best is None:
        return []
    shown = []
    for name in HEADLINE:
        best = study.best.metrics.get(name)
        control = study.control.metrics.get(name) if study.control else None
        detail = "no control run" if study.control is None else f"control {metric_cell(name, control).text}"
        gap = _gap(best, control)
        detail += f", {points(name, gap)}" if gap is not None else ""
        shown.append(Tile(metric_label(name), metric_cell(name, best).text, detail))
    return shown


def sentences(study: Study) -> list[str]:
    """The summary, most important last but one: what was searched, what won, against what, and how sure."""
    return [_search(study), _winner(study), *_against_control(study), *_teacher(study), _cost(study)]


def _search(study: Study) -> str:
    states = Counter(trial.state for trial in study.trials)
    counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none recorded"
    aim = "lowest" if study.mode == "min" else "highest"
    count = len(study.trials)
    space = study.run.params.get("study.space")
    return (
        f"Study {study.name} ran {count} {'trial' if count == 1 else 'trials'} ({counted}) over "
        f"{len(study.searched)} searched parameters{f' of {space}' if space else ''}, "
        f"looking for the {aim} {metric_label(study.metric)}."
    )


def _winner(study: Study) -> str:
    trial = study.best_trial
    if trial is None:
        return "No completed trial with a value is known as the best one."
    value = metric_cell(study.metric, trial.metrics.get(study.metric)).text
    text = f"The best setting is that of trial {trial.label}, with {metric_label(study.metric)} {value}"
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
        mine, other = best.metrics.get(name), control.metrics.get(name)
        gap = _gap(mine, other)
        words = f"{metric_cell(name, mine).text} against {metric_cell(name, other).text}"
        figures.append(f"{metric_label(name)} {words}" + (f" ({points(name, gap)})" if gap is not None else ""))
    what = "control (trained without distillation)" if _undistilled(control) else "control"
    together = f"{_steps(best, control)}, the best setting and the {what} reach: {'; '.join(figures)}."
    early = [
        f"The {run.kind} run is {run.state}, not completed: its figures are not final."
        for run in (best, control)
        if run.state != "completed"
    ]
    return [together, *early, _one_seed(best, control)]


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
    if study.teacher is None:
        return []
    figures = [f"{metric_label(name)} {metric_cell(name, study.teacher.metrics.get(name)).text}" for name in HEADLINE]
    steps = f"{study.teacher.steps:,} steps" if study.teacher.steps is not None else "steps not recorded"
    return [f"For reference, the teacher ({steps}, state: {study.teacher.state}): {'; '.join(figures)}."]


def _cost(study: Study) -> str:
    total, search = total_seconds(study.runs), total_seconds(study.trials)
    if total <= 0:
        return "No run has recorded what it cost."
    return (
        f"The runs took {duration(total)} together, {duration(search)} of it ({100 * search / total:.1f} %) "
        "in the search."
    )


def _gap(best: float | None, control: float | None) -> float | None:
    if best is None or control is None or not (math.isfinite(best) and math.isfinite(control)):
        return None
    return best - control


def command(study: Study) -> str:
    """Shell lines that repeat the study: the command it recorded, else one made from its parameters."""
    lines = []
    if commit := study.run.tags.get("siclip.git_commit"):
        lines.append(f"git checkout {shlex.quote(commit.removesuffix('-dirty'))}")
        if commit.endswith("-dirty"):
            lines.append("# the code that ran also had changes which no commit holds")
    words = ["siclip-platform", "tune"]
    for option in ("space", "trials", "seed"):
        value = study.run.params.get(f"study.{option}")
        words += [f"--{option}", value] if value is not None else []
    lines.append(study.run.tags.get("siclip.command") or shlex.join(words))
    return "\n".join(lines)
