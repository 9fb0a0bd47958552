"""Optuna's samplers over a search space."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from siclip_platform.spaces.definition import SearchSpace
from siclip_platform.spaces.policy import SamplerConfig

if TYPE_CHECKING:
    import optuna


def make_sampler(config: SamplerConfig, space: SearchSpace, *, seed: int, trials: int) -> optuna.samplers.BaseSampler:
    """The sampler of one trial.

    TPE is multivariate, in groups of parameters that are active together, and counts running trials as bad ones, so
    that concurrent trials get different settings. GP models the parameters that all trials share and draws the others
    at random; it learns from completed trials alone. CMA-ES moves the numeric parameters that all trials share; TPE
    draws the others. The settings of a grid are queued by the searcher; any further draws are random.

    Args:
        config: which sampler, and how many trials it draws at random first (default: a third, at least 3).
        space: what is searched.
        seed: of this sampler.
        trials: the trials planned for the study.
    """
    import optuna
    from optuna.exceptions import ExperimentalWarning

    startup = config.startup_trials or max(3, trials // 3)
    # Optuna warns of experimental options whenever a sampler is made, and every trial gets a new one.
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
