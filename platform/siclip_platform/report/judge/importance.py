"""Importance of the searched parameters, by Optuna's evaluators on the trials of a store."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from siclip_platform.report.judge.numbers import is_log, number, numeric_range
from siclip_platform.report.read.runs import Run, Study

if TYPE_CHECKING:
    import optuna

MIN_TRIALS = 8  # below this fANOVA's forest has too little to split
MAX_TRIALS = 400  # bounds the time of fANOVA's random forest


@dataclass(frozen=True)
class Importance:
    """Importance by two evaluators: parameter → share of the importance, largest first.

    Attributes:
        fanova: Shares of the variation between all trials (fANOVA).
        ped_anova: Shares of what separates the best tenth from the rest (PED-ANOVA).
        trials: Completed trials used.
        omitted: Searched parameters that did not vary or are absent from some trial.
    """

    fanova: Mapping[str, float]
    ped_anova: Mapping[str, float]
    trials: int
    omitted: Sequence[str]


def importance(study: Study) -> Importance | None:
    """Return the importance of the searched parameters over completed trials.

    None with fewer than `MIN_TRIALS` completed trials, without a parameter that varies, or if all trials have the
    same value. Of more than `MAX_TRIALS` trials it uses an even sample by rank.
    """
    # Pruned trials stopped at smaller budgets, so their values are not comparable.
    ranked = study.ranked
    if len(ranked) < MIN_TRIALS or len({run.value(study.metric) for run in ranked}) < 2:
        return None
    stride = max(1.0, len(ranked) / MAX_TRIALS)
    runs = [ranked[int(index * stride)] for index in range(int(len(ranked) / stride))]
    varying = [path for path in study.searched if len({run.params.get(path) for run in runs} - {None}) > 1]
    complete = [path for path in varying if all(path in run.params for run in runs)]
    if not complete:
        return None
    built = optuna_study(study, runs, complete)
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator

    return Importance(
        # fANOVA fits a random forest: a fixed seed gives a report of the same runs the same shares.
        fanova=_shares(built, FanovaImportanceEvaluator(seed=0)),
        ped_anova=_shares(built, PedAnovaImportanceEvaluator()),
        trials=len(runs),
        omitted=[path for path in study.searched if path not in complete],
    )


def optuna_study(study: Study, runs: Sequence[Run], paths: Sequence[str]) -> optuna.Study:
    """The runs as completed trials of an in-memory Optuna study.

    A parameter is a float if it is a number in all runs, else categorical.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction = "maximize" if study.higher_is_better else "minimize"
    built = optuna.create_study(direction=direction)
    ranges = {path: numeric_range(runs, path) for path in paths}
    distributions = {path: _distribution(runs, path, ranges[path]) for path in paths}
    for run in runs:
        values = {path: number(run.params[path]) if ranges[path] else run.params[path] for path in paths}
        value = run.metrics[study.metric]
        built.add_trial(optuna.trial.create_trial(params=values, distributions=distributions, value=value))
    return built


def _distribution(runs: Sequence[Run], path: str, bounds: tuple[float, float] | None) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if bounds is None:
        return CategoricalDistribution(sorted({run.params[path] for run in runs}))
    # The store does not record whether a number was an integer or had a step.
    return FloatDistribution(*bounds, log=is_log(*bounds))


def _shares(built: optuna.Study, evaluator: Any) -> dict[str, float]:
    import warnings

    from optuna.importance import get_param_importances

    # PED-ANOVA warns if few distinct values make its quantiles equal: a property of the data, not an error.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_param_importances(built, evaluator=evaluator)
    return {path: share if math.isfinite(share) else 0.0 for path, share in found.items()}
