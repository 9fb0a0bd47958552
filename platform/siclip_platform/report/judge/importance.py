"""Which searched parameters matter: Optuna's evaluators on the store's trials, as an Optuna study in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from siclip_platform.report.judge.numbers import is_log, number, numeric_range
from siclip_platform.report.read.runs import Run, Study

if TYPE_CHECKING:
    import optuna

MIN_TRIALS = 8
MAX_TRIALS = 400


@dataclass(frozen=True)
class Importance:
    """Parameter → share of the variation it accounts for, the largest first, by each evaluator.

    ``trials``: completed trials that took part. ``left_out``: parameters that did not vary.
    """

    fanova: Mapping[str, float]
    ped_anova: Mapping[str, float]
    trials: int
    left_out: Sequence[str]


def importance(study: Study) -> Importance | None:
    """None with fewer than `MIN_TRIALS` completed trials, no parameter that varies, or one value in all trials.

    Pruned trials stopped at other budgets, so they are left out. Of more than `MAX_TRIALS` an even sample by rank.
    """
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
        fanova=_shares(built, FanovaImportanceEvaluator(seed=0)),
        ped_anova=_shares(built, PedAnovaImportanceEvaluator()),
        trials=len(runs),
        left_out=[path for path in study.searched if path not in complete],
    )


def optuna_study(study: Study, runs: Sequence[Run], paths: Sequence[str]) -> optuna.Study:
    """The runs as completed trials of an Optuna study in memory; a parameter is a number if it is one in all."""
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
    return FloatDistribution(*bounds, log=is_log(*bounds))


def _shares(built: optuna.Study, evaluator: Any) -> dict[str, float]:
    import warnings

    from optuna.importance import get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_param_importances(built, evaluator=evaluator)
    return {path: share if math.isfinite(share) else 0.0 for path, share in found.items()}
