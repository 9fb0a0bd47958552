"""How a study searches: the sampler that suggests settings and the scheduler that stops trials early."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from siclip.config import LARGEST_COUNT, Config

SamplerName = Literal["tpe", "random", "grid", "gp", "cmaes"]
SchedulerName = Literal["asha", "hyperband", "median", "pbt", "none"]
SAMPLERS: tuple[str, ...] = get_args(SamplerName)
SCHEDULERS: tuple[str, ...] = get_args(SchedulerName)


class SamplerConfig(Config):
    """The sampler of a study.

    Attributes:
        name: ``tpe``: tree-structured Parzen estimators, multivariate and grouped; ``random``; ``grid``: every
            setting of a finite space, in random order; ``gp``: a Gaussian process; ``cmaes``: CMA-ES.
        startup_trials: trials drawn at random before the sampler learns; None: a third of the study, at least 3.
            ``grid`` and ``random`` have none.
    """

    name: SamplerName = "tpe"
    startup_trials: int | None = Field(None, ge=1, le=LARGEST_COUNT)


class SchedulerConfig(Config):
    """The scheduler of a study.

    Attributes:
        name: ``asha``: asynchronous successive halving (arXiv 1810.05934); ``hyperband``: the same in several
            brackets with later first rungs; ``median``: stops a trial below the median of the other trials' running
            means; ``pbt``: population based training of schedules of the loss weights (arXiv 1711.09846); ``none``.
        min_steps: no trial is stopped before this step; None: a trial's steps divided by ``reduction_factor``, for
            Hyperband by its square.
        reduction_factor: one in this many trials continues past a rung.
        min_trials: other trials that the median requires.
        perturbation_interval: steps of a population's generation; None: a quarter of a trial's steps.
        quantile: share of a population that is replaced by copies of as many of the best after a generation.
        resample: probability that a copy draws a weight again, instead of changing it by a fifth or a quarter.
    """

    name: SchedulerName = "asha"
    min_steps: int | None = Field(None, ge=1, le=LARGEST_COUNT)
    reduction_factor: int = Field(3, ge=2, le=LARGEST_COUNT)
    min_trials: int = Field(3, ge=1, le=LARGEST_COUNT)
    perturbation_interval: int | None = Field(None, ge=1, le=LARGEST_COUNT)
    quantile: float = Field(0.25, gt=0, le=0.5)
    resample: float = Field(0.25, ge=0, le=1)
