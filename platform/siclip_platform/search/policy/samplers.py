"""Optuna's samplers over a search space: which of them can search it, and the settings of a finite one."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from siclip_platform.spaces.definition import SearchSpace
from siclip_platform.spaces.policy import SamplerConfig

if TYPE_CHECKING:
    import optuna


def make_sampler(config: SamplerConfig, space: SearchSpace, *, seed: int, trials: int) -> optuna.samplers.BaseSampler:
    """The sampler of one trial. ``trials``: how many the study is to have.

    TPE is multivariate, grouped by what is active together, and takes running trials for bad ones, so that trials
    side by side do not get the same setting. GP models the parameters that all trials share, CMA-ES the numeric ones
    among them; the others are drawn at random there, by TPE here. GP learns from complete trials alone. The settings
    of a grid are queued by the searcher; what is drawn beyond them is random.
    """
    import optuna
    from optuna.exceptions import ExperimentalWarning

    startup = config.startup_trials or max(3, trials // 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        tpe = optuna.samplers.TPESampler(
            multivariate=True, group=True, constant_liar=True, n_startup_trials=startup, seed=seed
        )
        if config.name == "tpe":
            return tpe
        if config.name == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        if config.name == "cmaes":
            return optuna.samplers.CmaEsSampler(
                seed=seed,
                n_startup_trials=startup,
                independent_sampler=tpe,
                consider_pruned_trials=True,
                warn_independent_sampling=False,
            )
    return optuna.samplers.RandomSampler(seed=seed)
