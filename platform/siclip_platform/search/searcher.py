"""Optuna's TPE as Ray Tune's searcher, told the truth about trials that were stopped early or failed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
from alembic.util.exc import CommandError
from optuna.exceptions import ExperimentalWarning, OptunaError, StorageInternalError
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch
from sqlalchemy.exc import SQLAlchemyError

from siclip_platform.errors import UserError
from siclip_platform.search.definition import SearchSpace

STEP = "step"
SPACE_HASH = "space_hash"


class StudySearch(OptunaSearch):
    """`OptunaSearch` over a `SearchSpace`; one process searches a study at a time.

    ``OptunaSearch`` tells a trial stopped by a scheduler as COMPLETE with its low-budget score, so that TPE
    learns from wrong values. Here a trial whose last scored ``step`` is below ``max_steps`` is PRUNED, with its
    scores as intermediate values by step; an error, a missing or a non-finite score is FAIL; the rest is
    COMPLETE. A trial's user attributes hold Tune's ``trial_id`` and, at its end, its last ``step``.
    """

    def __init__(self, space: SearchSpace, *, max_steps: int, **options: Any) -> None:
        """``options`` go to `OptunaSearch`; metric and mode are the space's. See `make_searcher`."""
        _quiet()
        self._max_steps = max_steps
        self._scores: dict[str, dict[int, float]] = {}
        self._orphans_failed = False
        super().__init__(space.suggest, metric=space.metric, mode=space.mode, **options)

    @property
    def study(self) -> optuna.Study:
        return self._ot_study

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        if not self._orphans_failed:
            self._fail_orphans()
        config: dict[str, Any] | None = super().suggest(trial_id)
        self._scores.setdefault(trial_id, {})
        self._ot_trials[trial_id].set_user_attr("trial_id", trial_id)
        return config

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Record the score at the result's step; a step that is reported again keeps its first score."""
        if trial_id in self._completed_trials or self.metric not in result:
            return
        step, score = int(result[STEP]), float(result[self.metric])
        if step not in self._scores[trial_id]:
            self._scores[trial_id][step] = score
            self._ot_trials[trial_id].report(score, step)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how the trial ended. Without a result, the last score reported decides."""
        if trial_id in self._completed_trials:
            return
        if result:
            self.on_trial_result(trial_id, result)
        trial, scores = self._ot_trials[trial_id], self._scores[trial_id]
        step = max(scores, default=0)
        score = scores.get(step, math.nan)
        trial.set_user_attr(STEP, step)
        if error or not math.isfinite(score):
            self.study.tell(trial, state=TrialState.FAIL)
        elif step < self._max_steps:
            self.study.tell(trial, state=TrialState.PRUNED)  # Optuna takes the last intermediate value
        else:
            self.study.tell(trial, score, state=TrialState.COMPLETE)
        self._completed_trials.add(trial_id)

    def restore(self, checkpoint_path: str) -> None:
        """Take over a saved searcher, then what the storage learned after that save.

        Raises:
            UserError: the study's storage is gone.
        """
        _quiet()
        super().restore(checkpoint_path)
        try:
            recorded = {trial.number: trial for trial in self.study.get_trials(deepcopy=False)}
        except (StorageInternalError, KeyError) as error:
            raise UserError(
                f"study {self._study_name!r} is not in its storage any more ({error}); "
                "put the file back or start a new study"
            ) from None
        for trial_id, trial in self._ot_trials.items():
            stored = recorded[trial.number]
            self._scores[trial_id] = dict(stored.intermediate_values)
            if stored.state.is_finished():
                self._completed_trials.add(trial_id)
        self._fail_orphans()

    def _fail_orphans(self) -> None:
        """Mark as FAIL the trials which a killed driver left RUNNING and which nobody will finish."""
        ours = {trial.number for trial in self._ot_trials.values()}
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number not in ours:
                self.study.tell(trial.number, state=TrialState.FAIL)
        self._orphans_failed = True


def make_searcher(
    space: SearchSpace,
    *,
    seed: int,
    num_trials: int,
    max_steps: int,
    study_name: str,
    storage: Path | None = None,
    points_to_evaluate: Sequence[Mapping[str, Any]] = (),
) -> StudySearch:
    """A TPE searcher: multivariate, one group per set of parameters that are active together.

    The first third of ``num_trials`` (at least 3) is random. ``max_steps`` is the step at which a trial is
    complete. ``storage``: an sqlite file, made if missing, in which the study ``study_name`` is created or
    continued; None keeps the study in memory. ``points_to_evaluate`` come first, once per study; a point may
    leave parameters open, and ``space.restrict(recipe.flat())`` makes one of a recipe.

    Raises:
        UserError: a point lies outside the space, the storage cannot be used, or the study in it searched
            another space.
    """
    _quiet()
    for point in points_to_evaluate:
        outside = sorted(set(point) - set(space.restrict(point)))
        if outside:
            raise UserError(
                f"starting point of study {study_name!r}: {', '.join(f'{p}={point[p]!r}' for p in outside)} "
                f"cannot be suggested by search space {space.name!r}; leave it out or widen the space"
            )
    database = _open(storage) if storage else optuna.storages.InMemoryStorage()
    earlier = _check_study(database, study_name, space, storage)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            multivariate=True,
            group=True,
            constant_liar=True,  # trials running side by side do not get the same point
            n_startup_trials=max(3, num_trials // 3),
            seed=seed + earlier,  # a continued study does not repeat its random points
        )
    search = StudySearch(space, max_steps=max_steps, sampler=sampler, study_name=study_name, storage=database)
    search.study.set_user_attr(SPACE_HASH, space.hash)
    for point in points_to_evaluate:
        if point:
            search.study.enqueue_trial(dict(point), skip_if_exists=True)
    return search


def _open(path: Path) -> optuna.storages.RDBStorage:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return optuna.storages.RDBStorage(
            f"sqlite:///{quote(str(path.resolve()))}", engine_kwargs={"connect_args": {"timeout": 60}}
        )
    except (OSError, RuntimeError, CommandError, SQLAlchemyError, OptunaError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"study storage {path} cannot be used: {reason}; name a new file, or one written by Optuna, "
            "in a folder that can be written"
        ) from None


def _check_study(storage: Any, name: str, space: SearchSpace, path: Path | None) -> int:
    """How many trials a study of this name already has.

    Raises:
        UserError: they were drawn from another space.
    """
    if name not in optuna.get_all_study_names(storage):
        return 0
    study = optuna.load_study(study_name=name, storage=storage)
    trials = len(study.get_trials(deepcopy=False))
    if trials and study.user_attrs.get(SPACE_HASH) != space.hash:
        raise UserError(
            f"study {name!r} in {path} searched another space than {space.name!r} ({space.hash}) is now; "
            "give the new study another name or file"
        )
    return trials


def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
