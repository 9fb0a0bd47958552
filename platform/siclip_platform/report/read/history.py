"""Choose which metric histories a report reads: each costs a query, so a large study is sampled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from siclip_platform.report.read.runs import TRAIN_LOSS, Run, Study
from siclip_platform.report.read.store import Store

# Each history is one query, so these limits bound the time that a report of thousands of trials spends reading.
MAX_TRIALS = 300
MAX_DETAILED = 90
TOP_TRIALS = 30
DETAILS = ("train/divergence/", "train/pair_")


def with_curves(store: Store, study: Study) -> Study:
    """Return the study with the curves that a report draws.

    The study's metric is read for up to `MAX_TRIALS` trials: the best ones and an even sample of the others. Loss,
    divergences and pair matching are read only for the runs that the report compares.
    """
    sampled = {run.run_id for run in _sample(study)}
    detailed = {run.run_id for run in _compared(study)[:MAX_DETAILED]}

    def read(run: Run) -> Run:
        names = [study.metric] if run.run_id in sampled | detailed else []
        if run.run_id in detailed:
            names += [name for name in run.metrics if name == TRAIN_LOSS or name.startswith(DETAILS)]
        curves = {name: store.curve(run, name) for name in names if name in run.metrics}
        return replace(run, curves={name: curve for name, curve in curves.items() if curve})

    def read_all(runs: Iterable[Run]) -> tuple[Run, ...]:
        return tuple(map(read, runs))

    return replace(
        study,
        trials=read_all(study.trials),
        seeds=read_all(study.seeds),
        confirms=read_all(study.confirms),
        teachers=read_all(study.teachers),
        best=read(study.best) if study.best else None,
        control=read(study.control) if study.control else None,
    )


def _sample(study: Study) -> list[Run]:
    leaves = list(study.leaves if study.type == "ablation" else study.trials)
    if len(leaves) <= MAX_TRIALS:
        return leaves
    top = study.ranked[:TOP_TRIALS]
    taken = {run.run_id for run in top}
    rest = [run for run in leaves if run.run_id not in taken]
    # Every stride-th trial in order of start, so that the sample covers the whole search.
    stride = len(rest) / (MAX_TRIALS - len(top))
    return [*top, *(rest[int(index * stride)] for index in range(MAX_TRIALS - len(top)))]


def _compared(study: Study) -> list[Run]:
    """Runs whose details the report plots."""
    single = [run for run in (study.best, study.control) if run]
    if study.type == "search":
        return [*single, *study.teachers, *study.confirms, *study.ranked[:8]]
    return [*single, *study.leaves, *study.confirms, *study.teachers]
