"""Whether the leading setting may be called the best.

The best of many settings is partly lucky (the winner's curse), so its score in the selection proves nothing. It is
confirmed only if runs with fresh seeds, trained after the selection, put it above the baseline: the 95 % interval of
that difference lies above 0. Only this one comparison is made, so it needs no correction for several.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from siclip_platform.report.judge.settings import Comparison, baseline_of, compare_settings, settings
from siclip_platform.report.judge.statistics import Difference, independent_difference, paired_difference
from siclip_platform.report.read.runs import Run, Study

Status = Literal["confirmed", "not confirmed", "contradicted", "not repeated", "none"]
Reference = Literal["start", "control", "baseline", ""]
START, CONTROL = "baseline", "control"
"""The tag ``siclip.setting`` of fresh runs of a search's starting recipe, and of its control."""


@dataclass(frozen=True)
class Winner:
    """The leading setting and what its fresh seeds show.

    Attributes:
        status: ``confirmed``: the interval of the gain lies above 0. ``contradicted``: it lies below 0.
            ``not confirmed``: it includes 0 or is not known. ``not repeated``: no run has a fresh seed. ``none``: no
            setting leads.
        name: Name of the leading setting.
        trial: A trial with this setting.
        metric: The metric of ``difference``.
        difference: Leading setting minus ``against`` on fresh seeds; None without such runs.
        against: What it is compared with.
        fresh: Its completed runs with fresh seeds.
        comparison: In an ablation, its comparison with the baseline on the study's own seeds.
        reference: What ``against`` is: of a search its starting recipe or the control, of an ablation the baseline.
            A lead over the control shows what distillation does, not what the search found.
    """

    status: Status
    name: str = ""
    trial: Run | None = None
    metric: str = ""
    difference: Difference | None = None
    against: str = ""
    fresh: tuple[Run, ...] = ()
    comparison: Comparison | None = None
    reference: Reference = ""

    @property
    def best(self) -> bool:
        """Whether fresh seeds show that what the study chose is better than what it began with."""
        return self.status == "confirmed" and self.reference in ("start", "baseline")


def find_winner(study: Study) -> Winner:
    """The setting that leads the study, and what its fresh seeds show."""
    if study.type == "runs":
        return Winner("none", metric=study.metric)
    compared = compare_settings(study) if study.type == "ablation" else []
    rivals, own = _split(study)
    name, trial = _selected(study, compared, own)
    comparison = next((row for row in compared if row.setting.name == name), None)
    if trial is None and not own:
        return Winner("none", metric=study.metric)
    if comparison is not None and comparison.verdict == "baseline":
        return Winner("none", name, trial, study.metric, comparison=comparison)
    if not own:
        status: Status = "none" if comparison and comparison.verdict != "better" else "not repeated"
        return Winner(status, name, trial, study.metric, comparison=comparison)
    return _confirm(study, name, trial, own, rivals, comparison)


def _confirm(
    study: Study, name: str, trial: Run | None, own: list[Run], rivals: list[Run], comparison: Comparison | None
) -> Winner:
    reference, against, others = _rivals(study, rivals)
    metric, difference = _compared(study, own, others)
    status: Status = "not confirmed"
    if difference is not None and not math.isnan(difference.low):
        low, high = sorted((study.gain(difference.low), study.gain(difference.high)))
        status = "confirmed" if low > 0 else "contradicted" if high < 0 else "not confirmed"
    # The same difference at every seed has an interval of width 0 but no p: it shows the metric's resolution.
    if difference is not None and (math.isnan(difference.p) or len(own) < 2):
        status = "not confirmed"
    return Winner(status, name, trial, metric, difference, against, tuple(own), comparison, reference)


def over_control(study: Study) -> tuple[str, Difference] | None:
    """The metric, and leading setting minus control on fresh seeds; None without fresh runs of both."""
    rivals, own = _split(study)
    controls = [run for run in rivals if _role(run) == CONTROL]
    metric, difference = _compared(study, own, controls) if own and controls else ("", None)
    return None if difference is None else (metric, difference)


def _selected(study: Study, compared: list[Comparison], own: list[Run]) -> tuple[str, Run | None]:
    """What the fresh seeds repeat; without them the best trial, or an ablation's setting with the best mean."""
    if own:
        tag = own[0].tag("setting") or own[0].tag("best_trial") or own[0].label
        trial = next((t for t in study.trials if tag in (t.label, t.tag("trial"), t.run_id, t.name)), None)
        return (trial.label if trial else tag), trial
    if study.type != "ablation":
        best = study.best_trial
        return (best.label if best else ""), best
    known = [row for row in compared if math.isfinite(row.estimate.mean)]
    if not known:
        return "", None
    top = max(known, key=lambda row: study.gain(row.estimate.mean))
    return top.setting.name, top.setting.trial


def _split(study: Study) -> tuple[list[Run], list[Run]]:
    """Completed confirmations of the baseline or control, and those of the leading setting; fresh seeds only."""
    names = {START, CONTROL, study.baseline} - {"", None}
    used = {run.seed for run in study.leaves}
    # A seed of the selection would train the same run again, which is no new evidence.
    done = [run for run in study.confirms if run.state == "completed" and (run.seed is None or run.seed not in used)]
    rivals = [run for run in done if _role(run) in names]
    ids = {run.run_id for run in rivals}
    own = [run for run in done if run.run_id not in ids]
    repeated = _repeated(study, own)
    relevant = [run for run in rivals if run.tag("best_trial") in (repeated, None)]
    return relevant, [run for run in own if _target(run) == repeated]


def _target(run: Run) -> str | None:
    """The trial or setting that a confirmation repeats."""
    return run.tag("best_trial") or run.tag("setting")


def _repeated(study: Study, own: Sequence[Run]) -> str | None:
    """The trial or setting whose confirmations count.

    A study that was resumed with more trials may have confirmed an earlier leader. In a search only the best trial
    counts; in an ablation the setting confirmed last.
    """
    found = [_target(run) for run in own]
    leader = study.best_trial
    if study.type == "search" and leader is not None:
        names = [leader.tag("trial"), leader.run_id, leader.name, leader.label]
        return next((name for name in names if name in found), None)
    return found[-1] if found else None


def _role(run: Run) -> str | None:
    return run.tag("setting") or run.tag("role")


def _rivals(study: Study, rivals: list[Run]) -> tuple[Reference, str, list[Run]]:
    """What the fresh runs are compared with: the starting recipe's or baseline's fresh runs, else the control's.

    Without fresh rivals it is the baseline's own runs, else the control run.
    """
    kind: Reference = "start" if study.type == "search" else "baseline"
    controls = [run for run in rivals if _role(run) == CONTROL and study.baseline != CONTROL]
    first = [run for run in rivals if run not in controls]
    if first:
        name = "the starting recipe" if kind == "start" else _role(first[0])
        return kind, f"{name} (same fresh seeds)", first
    if controls:
        return "control", "control (same fresh seeds)", controls
    baseline = baseline_of(study, settings(study))
    if baseline is not None:
        done = [run for run in baseline.by_seed.values() if run.state == "completed"]
        return "baseline", f"{baseline.name} (the study's seeds)", done
    control = study.control
    if control and control.state == "completed":
        return "control", "the control run", [control]
    return "", "", []


def _compared(study: Study, own: Sequence[Run], others: Sequence[Run]) -> tuple[str, Difference | None]:
    metric = _metric(study, own, others)
    return metric, _difference(own, others, metric)


def _metric(study: Study, own: Sequence[Run], others: Sequence[Run]) -> str:
    """The study's metric, on the test split where both sides have it: no selection was made on that split."""
    test = study.metric.replace("validation/", "test/", 1)
    both = [*own, *others]
    return test if others and all(run.value(test) is not None for run in both) else study.metric


def _difference(own: Sequence[Run], others: Sequence[Run], metric: str) -> Difference | None:
    """Paired by seed where the sides share seeds, else between independent groups."""
    # A rival without a common seed, such as a control of one run, can only be compared unpaired.
    mine, theirs = ({run.seed: run.value(metric) for run in runs} for runs in (own, others))
    if mine.keys() & theirs.keys() - {None}:
        return paired_difference(
            {seed: value for seed, value in mine.items() if seed is not None and value is not None},
            {seed: value for seed, value in theirs.items() if seed is not None and value is not None},
        )
    values = [[value for run in runs if (value := run.value(metric)) is not None] for runs in (own, others)]
    return independent_difference(*values)
