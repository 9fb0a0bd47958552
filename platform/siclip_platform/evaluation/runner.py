"""Run a suite on one or several models: each set is measured, or listed with the reason why not."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from siclip.errors import UserError
from siclip.evaluation.bootstrap import intervals, paired_differences
from siclip.evaluation.suite import SETS, average
from siclip_platform.evaluation.find import Found, open_set
from siclip_platform.evaluation.kept import KeptResults
from siclip_platform.evaluation.measure import Measured, Subject, measure
from siclip_platform.evaluation.results import STANDARD, Sampling, SetResult, SuiteResult
from siclip_platform.evaluation.sets import Data

MAIN = ("acc1", "mean_recall@1", "accuracy", "group_score", "mean_average_precision", "avg_jaccard_score")
"""The main metric of a set that is not one of the 38: the first of these that it has."""


def run_suite(
    subjects: Sequence[Subject],
    found: Sequence[Found],
    *,
    split: str,
    suite: bool,
    sampling: Sampling = STANDARD,
    progress: Callable[[SetResult], None] = lambda result: None,
    kept: KeptResults | None = None,
) -> SuiteResult:
    """Measure every set that was found. A set that cannot be measured, for whatever reason, does not stop the others.

    Args:
        subjects: the models.
        found: the sets.
        split: the split to measure.
        suite: whether the sets are DataComp's 38, which have an average.
        sampling: the bootstrap.
        progress: called with each set's result.
        kept: results of an earlier run, which are reused; new ones are added.

    Raises:
        UserError: the only requested set cannot be measured.
    """
    models = [subject.encoder.name for subject in subjects]
    results = []
    for each in found:
        earlier = kept.find(each) if kept and each.folder else None
        result = earlier or _run_set(subjects, each, split, sampling, alone=len(found) == 1)
        # a set that failed or is missing is tried again by the next run
        if kept and not earlier and result.state == "measured":
            kept.keep(each, result)
        progress(result)
        results.append(result)
    measured = [result for result in results if result.state == "measured"]
    averages = {}
    if suite and measured:
        for model in models:
            values = {result.name: result.main_value(model) for result in measured}
            averages[model] = average({name: value for name, value in values.items() if value is not None}, SETS)
    return SuiteResult(models, results, averages)


def _run_set(subjects: Sequence[Subject], found: Found, split: str, sampling: Sampling, alone: bool) -> SetResult:
    title = found.known.title if found.known else found.name
    if found.folder is None:
        expected = ", ".join(found.known.folders) if found.known else found.name
        result = SetResult(found.name, title, "missing", reason=f"no folder {expected}")
        if alone:
            raise UserError(f"set {found.name} does not exist: {result.reason} in the folder named by --data")
        return result
    started = time.perf_counter()
    try:
        result = SetResult(found.name, title, "measured")
        for data in open_set(found, split):
            _measure_part(subjects, data, found, sampling, result)
    except UserError as error:
        if alone:
            raise
        return SetResult(found.name, title, "failed", reason=str(error))
    # readers of foreign files raise errors of many types, and the hours that other sets take must not be lost
    except Exception as error:
        reason = f"{found.folder} cannot be read: {type(error).__name__}: {error}"
        if alone:
            raise UserError(f"{reason}; download the set again, or correct its files") from error
        return SetResult(found.name, title, "failed", reason=reason)
    names = next(iter(result.metrics.values()))
    chosen = [name for name in MAIN if name in names] or list(names)
    result.main = found.known.metric if found.known else chosen[0]
    if result.main not in names:
        reason = f"{title} is compared by {result.main}, but {found.folder} gives only {', '.join(names)}"
        if alone:
            raise UserError(reason)
        return SetResult(found.name, title, "failed", reason=reason)
    if found.known and found.known.images not in (0, result.units):
        result.note = f"{title} is commonly measured on {found.known.images:,} images, this one has {result.units:,}"
    result.seconds = time.perf_counter() - started
    return result


def _measure_part(
    subjects: Sequence[Subject], data: Data, found: Found, sampling: Sampling, result: SetResult
) -> None:
    """Add the metrics of one part of a set to its result."""
    outcomes: list[Measured] = []
    options = {"resamples": sampling.resamples, "confidence": sampling.confidence, "seed": sampling.seed}
    for subject in subjects:
        outcome = measure(subject, data, found.known)
        outcomes.append(outcome)
        drawn = intervals(outcome.statistics, outcome.units, **options)  # type: ignore[arg-type]
        result.metrics.setdefault(subject.encoder.name, {}).update(drawn)
    first = outcomes[0]
    for subject, outcome in zip(subjects[1:], outcomes[1:], strict=True):
        # every model skips the same unreadable images, so this happens only if files change during the run
        if outcome.keys != first.keys:
            raise UserError(f"{data.where}: the models were not measured on the same samples; did files change?")
        drawn = paired_differences(first.statistics, outcome.statistics, first.units, **options)  # type: ignore[arg-type]
        result.differences.setdefault(subject.encoder.name, {}).update(drawn)
    # a Parquet dataset has two parts, with the same images
    result.units = max(result.units, first.units)
    result.captions = max(result.captions, first.captions)
    result.unreadable = tuple(dict.fromkeys((*result.unreadable, *first.unreadable)))
    result.prompts = first.prompts or result.prompts
