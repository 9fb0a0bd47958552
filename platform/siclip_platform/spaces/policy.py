"""How a study searches: the sampler that suggests settings and the scheduler that stops trials early."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from siclip.config import Config

SamplerName = Literal["tpe", "random", "grid", "gp", "cmaes"]
SchedulerName = Literal["asha", "hyperband", "median", "pbt", "none"]
SAMPLERS: tuple[str, ...] = get_args(SamplerName)
SCHEDULERS: tuple[str, ...] = get_args(SchedulerName)


class SamplerConfig(Config):
    """``tpe``: tree-structured Parzen estimators, multivariate, in groups; ``random``; ``grid``: every setting of a
    finite space, in random order; ``gp``: a Gaussian process; ``cmaes``: CMA-ES.

    ``startup_trials``: trials that are drawn at random before the sampler learns; None: a third of the study, at
    least 3. Grid and random have none.
    """

    name: SamplerName = "tpe"
    startup_trials: int | None = Field(None, ge=1)


class SchedulerConfig(Config):
    """``asha``: asynchronous successive halving (arXiv 1810.05934); ``hyperband``: the same in several brackets with
    later first rungs; ``median``: a trial below the median of the others' running means is stopped; ``pbt``:
    population based training of schedules of the loss weights (arXiv 1711.09846); ``none``.

    ``min_steps``: no trial is stopped before; None: a ``reduction_factor``-th of a trial's steps, for Hyperband its
    square's. ``reduction_factor``: one in so many goes on at a rung. ``min_trials``: others that the median needs.
    ``perturbation_interval``: steps between two turns of a population; None: a quarter of a trial's steps.
    ``quantile``: the share that takes over from as many of the best at a turn. ``resample``: how often a weight is
    then drawn anew, and not changed by a fifth or a quarter.
    """

    name: SchedulerName = "asha"
    min_steps: int | None = Field(None, ge=1)
    reduction_factor: int = Field(3, ge=2)
    min_trials: int = Field(3, ge=1)
    perturbation_interval: int | None = Field(None, ge=1)
    quantile: float = Field(0.25, gt=0, le=0.5)
    resample: float = Field(0.25, ge=0, le=1)
