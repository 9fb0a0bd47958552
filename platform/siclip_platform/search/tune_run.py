"""A study under Ray Tune."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback, RunConfig, TuneConfig
from ray.tune.search import ConcurrencyLimiter, Searcher

from siclip.errors import UserError
from siclip_platform.cluster.interrupt import stopping_with
from siclip_platform.cluster.ray_patches import keep_secrets_from_metadata
from siclip_platform.search.conductor import Conductor
from siclip_platform.search.ledger.retention import TRAIN
from siclip_platform.search.population_conductor import PopulationConductor
from siclip_platform.search.result import StudyResult
from siclip_platform.search.study import StudyPlan
from siclip_platform.search.trial.ray_run import train_with_ray
from siclip_platform.search.trial.trial import run_trial


def run_study(plan: StudyPlan, recorder: Any, *, rerun: bool = False) -> StudyResult:
    """Run a study to its end, or resume a stopped one from the journal in its folder; Ray must be connected.

    Trials that have ended are not run again. Ctrl-C stops the study and leaves it resumable
    (``StudyResult.interrupted``); a second Ctrl-C raises KeyboardInterrupt at once.

    Args:
        plan: the study.
        recorder: a `siclip_platform.search.ledger.recorder.Recorder`.
        rerun: do not reuse completed trainings of the MLflow store.

    Raises:
        UserError: the recipe is not evaluated while it trains.
    """
    if not plan.base.training.evaluate_every:
        raise UserError("a study compares trials as they train: set training.evaluate_every above 0")
    return conduct((PopulationConductor if plan.population else Conductor)(plan, recorder, rerun))


class ConductorSearcher(Searcher):
    """The conductor as Ray Tune's searcher."""

    def __init__(self, conductor: Conductor) -> None:
        inner = conductor.plan.searcher
        super().__init__(metric=inner.metric, mode=inner.mode)
        self.conductor = conductor

    def __getstate__(self) -> dict[str, Any]:
        return {}  # a study resumes from its journal, not from what Tune saves

    def suggest(self, trial_id: str) -> Any:
        if self.conductor.stopping:  # while Ray Tune has no trial it takes no steps, and only asks for one
            raise KeyboardInterrupt
        return self.conductor.suggest(trial_id)

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        pass  # the callback reports every result; Tune reports none here that stops its trial

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        self.conductor.ended(trial_id, error)

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text("")

    def restore(self, checkpoint_path: str) -> None:
        raise UserError("Ray Tune does not restore a study; resume it with siclip-platform tune --resume STUDY")


class ConductorCallback(Callback):
    """The conductor as Ray Tune's callback."""

    def __init__(self, conductor: Conductor) -> None:
        self.conductor = conductor
        self._stopping = False

    def stop(self) -> None:
        """Stop Ray Tune before its next step."""
        self._stopping = self.conductor.stopping = True

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        # Between two steps nothing is half written. Tune's own stop would wait 10 s for the processes of trials.
        if self._stopping:
            raise KeyboardInterrupt
        self.conductor.listed = trials

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.conductor.started(trial)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.conductor.reported(trial.trial_id, result)


def conduct(conductor: Conductor) -> StudyResult:
    """See `siclip_platform.search.tune_run.run_study`."""
    _leave_failures_to_us()
    recorder = conductor.recorder
    try:
        conductor.catch_up()
        if conductor.remaining > 0:
            watch = ConductorCallback(conductor)
            with stopping_with(watch.stop):
                _tuner(conductor, watch).fit()
        interrupted = conductor.remaining > 0 and not conductor.exhausted
        if interrupted:
            recorder.interrupt()
        return conductor.result(interrupted)
    except BaseException:
        recorder.interrupt()
        raise
    finally:
        conductor.journal.close()


def _leave_failures_to_us() -> None:
    """Keep Ray Tune from printing a traceback per failed trial; the journal and MLflow have its last line."""
    logger = logging.getLogger("ray.tune")
    if logger.getEffectiveLevel() >= logging.ERROR:
        logger.setLevel(logging.CRITICAL)


def _tuner(conductor: Conductor, watch: ConductorCallback) -> tune.Tuner:
    plan = conductor.plan
    keep_secrets_from_metadata()
    trainable = tune.with_parameters(
        run_trial,
        recipe_json=plan.base.model_dump_json(),
        folder=str(plan.folder.resolve()),
        metric=plan.metric,
        seeds=plan.seed_numbers,
        run=plan.run or _run_of(plan),
    )
    # A new folder per start: the study resumes from its journal, not from what Tune saved earlier.
    starts = len(list((plan.folder / "tune").glob("start-*"))) if (plan.folder / "tune").is_dir() else 0
    return tune.Tuner(
        tune.with_resources(trainable, dict(plan.resources)),
        tune_config=TuneConfig(
            search_alg=ConcurrencyLimiter(ConductorSearcher(conductor), max_concurrent=plan.concurrent),
            scheduler=plan.scheduler,
            num_samples=conductor.starts,
            reuse_actors=plan.backend == "process",  # a stopped Ray Train thread ends only with its process
        ),
        run_config=RunConfig(
            name=f"start-{starts}",
            storage_path=str(plan.folder.resolve() / "tune"),
            callbacks=[watch],
            verbose=0,
        ),
    )


def _run_of(plan: StudyPlan) -> Any:
    """How trials train; None: in the trial's own process."""
    if plan.backend == "process":
        return None
    storage = str(plan.folder.resolve() / TRAIN)
    return functools.partial(train_with_ray, storage=storage, worker_cpus=plan.worker_cpus)
