"""What to do next. Each step is a rule that states the value it is based on, and has the command that does it."""

from __future__ import annotations

from dataclasses import dataclass

from siclip_platform.report.draw.values import metric_label, plural, points, short
from siclip_platform.report.judge.gain import start_leads
from siclip_platform.report.judge.numbers import number, numeric_range
from siclip_platform.report.judge.settings import (
    compare_settings,
    indistinguishable_from,
    seeds_to_separate,
    settings,
)
from siclip_platform.report.judge.statistics import t_interval
from siclip_platform.report.judge.winner import Winner, find_winner
from siclip_platform.report.read.runs import Curve, Run, Study
from siclip_platform.report.sections.commands import again, resume, train_leading
from siclip_platform.report.sections.schedules import is_population

FRESH_SEEDS = 5  # they detect a gain of 1.7 standard deviations of the paired difference with 80 % power
FAILED_SHARE = 0.2  # some failures are normal in a search, such as diverging learning rates
RISE = 0.02  # of a single run, whose noise is not known: a gain of a fiftieth counts as rising
LATE = 0.8  # where the last fifth of a training begins


@dataclass(frozen=True)
class Step:
    """One thing to do.

    Attributes:
        what: What to do.
        why: The reason, with its figures.
        command: Shell lines that do it; empty if no command does.
    """

    what: str
    why: str
    command: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.why}."


OTHERWISE = Step("Try other data or another teacher", "seeds cannot show what those would change")


def next_steps(study: Study) -> list[Step]:
    """What to do next, most useful first; empty for runs of no study."""
    if study.type == "runs":
        return []
    # A study that is unfinished or fails often makes all further advice premature, so these come first.
    steps = [
        *_unfinished(study),
        *_failures(study),
        *_further(study),
        *_confirm(study),
        *_separate(study),
        *_more_seeds(study),
    ]
    return [*steps, *_edges(study), *_rising(study)] or [OTHERWISE]


def _unfinished(study: Study) -> list[Step]:
    left = [run for run in study.runs if run.state in ("running", "interrupted")]
    if not left:
        return []
    why = f"{len(left)} of {plural(len(study.runs), 'run')} still running or interrupted"
    return [Step("Let it finish", why, resume(study) if study.run.state != "running" else "")]


def _failures(study: Study) -> list[Step]:
    failed = [run for run in study.leaves if run.state == "failed"]
    if not failed or len(failed) < FAILED_SHARE * len(study.leaves):
        return []
    why = f"{len(failed)} of {plural(len(study.leaves), 'run')} failed; their reasons are below"
    return [Step("Check the failures", why)]


def _further(study: Study) -> list[Step]:
    """More trials for a search whose starting recipe leads; a population cannot grow."""
    if study.type != "search" or is_population(study) or not start_leads(study, find_winner(study)):
        return []
    count = len(study.trials)
    why = f"none of {plural(count, 'trial')} is better than the starting recipe"
    return [Step("Search further", why, resume(study, "--trials", str(2 * count)))]


def _confirm(study: Study) -> list[Step]:
    """Fresh seeds for a lead that nothing has confirmed against what the study began with."""
    winner = find_winner(study)
    if study.type == "search" and (winner.trial is None or start_leads(study, winner)):
        return []
    base = "the starting recipe" if study.type == "search" else study.baseline or "the baseline"
    if winner.status == "not repeated" or (winner.fresh and winner.reference == "control"):
        return [_fresh(study, winner, base, FRESH_SEEDS)]
    if winner.status == "not confirmed":
        done = len(winner.fresh)
        why = f"{plural(done, 'fresh seed')} of {winner.name} decided nothing"
        return [Step("Add fresh seeds", why, resume(study, "--confirm", str(max(FRESH_SEEDS, 2 * done))))]
    if winner.status == "contradicted":
        return [Step(f"Drop {winner.name}", f"with fresh seeds it is worse than {winner.against}")]
    return []


def _fresh(study: Study, winner: Winner, base: str, seeds: int) -> Step:
    why = (
        f"{winner.name} was chosen by its score, so a part of the score is luck; {seeds} other seeds of it and of "
        f"{base} decide"
    )
    return Step("Confirm with fresh seeds", why, resume(study, "--confirm", str(seeds)))


def _separate(study: Study) -> list[Step]:
    """Seeds that would separate the leading setting from an indistinguishable one; the pair that needs fewest."""
    winner = find_winner(study)
    # Only a leader that beats the baseline is worth the compute.
    if study.type != "ablation" or winner.comparison is None or winner.comparison.verdict != "better":
        return []
    values = {setting.name: setting.values(study.metric) for setting in settings(study)}
    needed = {
        name: seeds_to_separate(values[winner.name], values[name])
        for name in indistinguishable_from(study, winner.name)
    }
    known = {name: count for name, count in needed.items() if count}
    if not known:
        return []
    name = min(known, key=known.__getitem__)
    why = f"about {known[name]} more seeds of each if the measured gap is real"
    return [Step(f"Separate {winner.name} from {name}", why, _with_seeds(study, known[name]))]


def _more_seeds(study: Study) -> list[Step]:
    if study.type != "ablation":
        return []
    rows = [row for row in compare_settings(study) if row.verdict == "not distinguishable" and row.more]
    nearest = min(rows, key=lambda row: row.more or 0, default=None)
    if nearest is None:
        return []
    why = f"about {nearest.more} more would decide {nearest.setting.name} if its measured gain is real"
    return [Step("Add seeds", why, _with_seeds(study, nearest.more or 0))]


def _with_seeds(study: Study, more: int) -> str:
    """The study again with more seeds; a store reuses the trainings that it has."""
    have = max((len(setting.by_seed) for setting in settings(study)), default=0)
    return again(study, "--seeds", str(have + more))


def _rising(study: Study) -> list[Step]:
    """Whether the leader's metric still improved in the last fifth of its steps.

    With several seeds the interval of the gain must lie above 0; a single run must have gained by `RISE`.
    """
    winner = find_winner(study)
    by_name = {setting.name: setting for setting in settings(study)}
    if winner.name not in by_name:
        return []
    runs = list(by_name[winner.name].by_seed.values())
    curves = [run.curves.get(study.metric, ()) for run in runs]
    ends = [(curve[-1], gain) for curve in curves if (gain := late_gain(study, curve)) is not None]
    found = t_interval([gain for _, gain in ends])
    if not found.count:
        return []
    (last, value), _ = ends[0]
    rises = found.low > 0 if found.count > 1 else found.mean > RISE * abs(value)
    if not rises:
        return []
    why = (
        f"{metric_label(study.metric)} of {winner.name} still improved by "
        f"{points(study.metric, found.mean).lstrip('+')} in the last fifth of its {last:,} steps"
    )
    return [Step("Train longer", why, train_leading(study, 2 * last))]


def late_gain(study: Study, curve: Curve) -> float | None:
    """Gain within the last fifth of the steps; positive is better.

    The value at its beginning is interpolated between two evaluations. None without an evaluation before it and one
    inside it besides the last: a longer stretch would say nothing about it.
    """
    if not curve:
        return None
    begin = LATE * curve[-1][0]
    before = [point for point in curve if point[0] <= begin]
    inside = [point for point in curve[:-1] if point[0] >= begin]
    if not before or not inside:
        return None
    (left, low), (right, high) = before[-1], inside[0]
    share = (begin - left) / (right - left) if right > left else 0.0
    return study.gain(curve[-1][1] - (low + share * (high - low)))


def _edges(study: Study) -> list[Step]:
    """Searched numbers whose best value lies at an end of the range tried."""
    trial = study.best_trial
    if trial is None or len(study.ranked) < 5:
        return []
    found = [text for path in study.searched if (text := _edge(study, trial, path))]
    if not found:
        return []
    why = f"{'; '.join(found)}; copy the space to my_space.yaml, extend its range, and search again"
    return [Step("Widen the search", why, again(study, "--space", "my_space.yaml"))]


def _edge(study: Study, trial: Run, path: str) -> str | None:
    # Of fewer than five values, half or more lie at an end.
    value, bounds = number(trial.params.get(path)), numeric_range(study.trials, path)
    if value is None or bounds is None or len({run.params.get(path) for run in study.trials}) < 5:
        return None
    low, high = bounds
    for edge, side in ((low, "lowest"), (high, "highest")):
        if value == edge:
            return f"the leader has the {side} {path} tried ({short(edge)})"
    return None
