"""The result of a study in a few sentences, the same on the page, in its Markdown twin and in the terminal.

Every number was logged by a run or is computed from logged values.
"""

from __future__ import annotations

import math

from siclip_platform.report.draw.values import (
    interval,
    metric_cell,
    metric_label,
    plural,
    points,
    probability,
)
from siclip_platform.report.judge.gain import Gain, Over, Tie, gains, start_leads, tie
from siclip_platform.report.judge.pools import pool_of
from siclip_platform.report.judge.settings import compare_settings, indistinguishable_from
from siclip_platform.report.judge.statistics import Difference
from siclip_platform.report.judge.winner import Winner, find_winner
from siclip_platform.report.read.runs import Run, Study

UNCONFIRMED = "Leading, unconfirmed"
"""The one name of what leads a study and is not shown to be best."""
NAMED = 4  # of a tie; the table of trials has all
DISTILLATION = ("feature_distillation", "contrastive_relational", "interactive_contrastive")


def statement(study: Study) -> list[str]:
    """What the study gained, what distillation adds, and what the figures were measured on."""
    winner = find_winner(study)
    if study.type == "runs":
        return []
    if study.type == "ablation":
        return [*_ablation(study), *_shared_lead(study, winner), claim_sentence(winner, study), *pools(study)]
    found = gains(study, winner)
    return [gained(study, winner, found), *_against_control(study, found), *pools(study)]


def gained(study: Study, winner: Winner, found: dict[Over, Gain]) -> str:
    """What a search gained over the recipe that it began with."""
    label, trial, gain = metric_label(study.metric), winner.trial, found.get("start")
    if trial is None:
        return "No completed trial has a value, so none leads."
    value = metric_cell(study.metric, trial.metrics.get(study.metric)).text
    together = tie(study, winner)
    words = [tie_words(study, together)]
    if start_leads(study, winner):
        first = f"The search found nothing better than its starting recipe: {winner.name} leads with {label} {value}."
    elif gain is None:
        first = f"{UNCONFIRMED}: {winner.name}, {label} {value}."
        words.append("The store does not have the starting recipe's trial, so what the search gained is not known.")
    elif winner.reference == "start":
        first, words = _confirmed(winner, gain), []
    elif no_gain(study, gain, together):
        first = f"The search shows no gain over its starting recipe: {winner.name} leads with {_figures(gain)}."
    else:
        first = f"{UNCONFIRMED}: {winner.name}, {_figures(gain)}."
    return " ".join(part for part in (first, *words) if part)


def _confirmed(winner: Winner, gain: Gain) -> str:
    """What fresh seeds of the leading setting and of the starting recipe show."""
    if winner.best:
        return f"{winner.name} is the best setting found: {_figures(gain)}."
    if winner.status == "contradicted":
        return f"{winner.name} is worse than its starting recipe: {_figures(gain)}. Its lead was luck."
    return f"{UNCONFIRMED}: {winner.name}, {_figures(gain)}: no gain is shown."


def _figures(gain: Gain) -> str:
    return f"{amount(gain)} over {gain.name}, {evidence(gain)}"


def no_gain(study: Study, gain: Gain, together: Tie) -> bool:
    """Whether the evidence does not separate the leading setting from the starting recipe."""
    known = gain.items is not None or math.isfinite(gain.low)
    return study.gain(gain.mean) <= 0 or study.start in together or (known and not gain.shown)


def amount(gain: Gain) -> str:
    """``+0.3 points validation mean R@1 (61.7 % against 61.3 %)``."""
    text = f"{points(gain.metric, gain.mean)} {metric_label(gain.metric)}"
    if gain.values is None:
        return text
    mine, theirs = (metric_cell(gain.metric, value).text for value in gain.values)
    return f"{text} ({mine} against {theirs})"


def evidence(gain: Gain) -> str:
    """What is known about the noise between seeds, and about the choice of items."""
    parts = [_over_seeds(gain)]
    if gain.items is not None:
        parts.append(over_items(gain))
    return "; ".join(parts)


def _over_seeds(gain: Gain) -> str:
    known = interval(gain.metric, gain.low, gain.high)
    if not known:
        return "one seed" if gain.seeds < 2 else f"no interval over {gain.seeds} seeds"
    chose = "" if gain.fresh else ", which also chose it" if gain.over == "start" else ""
    return f"95 % interval {known} over {plural(gain.seeds, 'fresh seed' if gain.fresh else 'seed')}{chose}"


def over_items(gain: Gain) -> str:
    """The interval over the items of the final split, with what it covers, and the difference there if it is news."""
    found = gain.items
    if found is None:
        return ""
    known = f"95 % interval {interval(gain.metric, found.low, found.high)}"
    where, covers = f"{found.images:,} {found.split} images", f"(covers {found.split} items, not seeds)"
    if gain.seeds < 2 and gain.metric.startswith(f"{found.split}/"):
        return f"{known} over {where} {covers}"
    seed = " with one seed" if gain.seeds > 1 else ""
    return f"{points(gain.metric, found.mean)} on {where}{seed}, {known} {covers}"


def brief(gain: Gain) -> str:
    """The evidence in a few words: the interval of the figure itself, or that there is one seed."""
    if gain.seeds > 1 or gain.items is None or not gain.metric.startswith(f"{gain.items.split}/"):
        return _over_seeds(gain)
    known = interval(gain.metric, gain.items.low, gain.items.high)
    return f"95 % interval {known} over {gain.items.split} items, not seeds"


def tie_words(study: Study, together: Tie) -> str:
    """The trials that may be as good as the leading one, and why; empty if there are none."""
    if not together.trials:
        return ""
    if together.margin is None:
        why = "not separated by the seeds"
    elif together.margin < 1e-6:
        why = "same value"
    else:
        why = f"within one standard error, {points(study.metric, together.margin).lstrip('+')}"
    return f"Tied with it: {tied(study, together)} ({why})."


def tied(study: Study, together: Tie) -> str:
    """The names of a tie, the starting recipe first."""
    start = study.start
    first = [run for run in together.trials if start and run.run_id == start.run_id]
    others = [run for run in together.trials if run not in first]
    names = [f"{run.label} (the starting recipe)" for run in first] + [run.label for run in others]
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def pools(study: Study) -> list[str]:
    """How many images the figures choose from, chance, and what chose the setting."""
    names = dict.fromkeys((study.metric, study.metric.replace("validation/", "test/", 1)))
    measured = {name for run in (*study.runs, *study.trials) for name in run.metrics}
    found = [(name, pool) for name in names if name in measured and (pool := pool_of(study, name))]
    text = " ".join(f"{pool.split.capitalize()}: {pool.words(name)}." for name, pool in found)
    roles = [run for run in (study.best, study.control) if run]
    if any(run.tag("final_split") == "validation" for run in roles):
        text += " The dataset has no test split, so the figures of finished models are optimistic."
    return [text] if text else []


def _against_control(study: Study, found: dict[Over, Gain]) -> list[str]:
    best, control, gain = study.best, study.control, found.get("control")
    if best is None:
        return []
    if control is None or gain is None:
        return ["There is no control run, so what distillation adds is not known."]
    undistilled = _undistilled(control)
    reference = "the control (the same recipe without distillation)" if undistilled else "the control"
    text = f"Against {reference}: {amount(gain)}, {evidence(gain)}."
    if undistilled:
        text += " This is what distillation adds, not the search."
    if best.steps is not None and control.steps is not None and best.steps != control.steps:
        text += f" Not a fair comparison: leading {best.steps:,} steps, control {control.steps:,}."
    for run in (best, control):
        if run.state != "completed":
            text += f" The {run.label} run is {run.state}: its figures are not final."
    return [text]


def _undistilled(run: Run) -> bool:
    # Only a recorded weight of 0 proves that a loss was off.
    weights = [run.params.get(f"loss.{name}") for name in DISTILLATION]
    try:
        return all(weight is not None and float(weight) == 0 for weight in weights)
    except ValueError:
        return False


def rivals(study: Study, winner: Winner) -> list[str]:
    """Settings of an ablation that may be as good as the leader: a higher mean alone does not rank them."""
    if winner.comparison is None or winner.comparison.verdict == "baseline":
        return []
    return indistinguishable_from(study, winner.name)


def _shared_lead(study: Study, winner: Winner) -> list[str]:
    names = rivals(study, winner)
    text = f"Not distinguishable from the leader {winner.name} with these seeds: {', '.join(names)}."
    return [text] if names else []


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
    """Whether an ablation's leading setting may be called the best, and if not, why."""
    if winner.status == "none":
        return "No setting is called the best."
    if winner.status == "not repeated":
        return f"{UNCONFIRMED}: {winner.name}. Its score chose it, so a part of the score is luck."
    seeds = plural(len(winner.fresh), "fresh seed")
    if winner.difference is None:
        return f"{UNCONFIRMED}: {winner.name}. It has {seeds}, and nothing to compare them with."
    return _fresh_result(winner, winner.difference, seeds, rivals(study, winner))


def _fresh_result(winner: Winner, gap: Difference, seeds: str, others: list[str]) -> str:
    known = interval(winner.metric, gap.low, gap.high)
    figures = f"{points(winner.metric, gap.mean)} {metric_label(winner.metric)} against {winner.against}"
    figures += f", 95 % interval {known}" if known else ""
    if winner.status == "contradicted":
        return f"{winner.name} is not the best: {seeds} give {figures}, so its lead in the selection was luck."
    if winner.status != "confirmed":
        return f"{UNCONFIRMED}: {winner.name}. {seeds} give {figures}, which does not rule out a gain of 0."
    if not others:
        return f"{winner.name} is the best: {seeds}, not used to select it, give {figures}."
    return (
        f"{UNCONFIRMED}: {winner.name}. {seeds}, not used to select it, give {figures}, but the study's seeds do not "
        f"distinguish it from {', '.join(others)}."
    )
