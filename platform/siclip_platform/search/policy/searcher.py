"""Optuna as Ray Tune's searcher, told the truth about trials that were stopped early or failed."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import optuna
from alembic.util.exc import CommandError
from optuna.exceptions import OptunaError, StorageInternalError
from optuna.trial import TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from sqlalchemy.exc import SQLAlchemyError

from siclip.errors import UserError
from siclip_platform.recipes.recipe import DataConfig, Recipe, StudentConfig
from siclip_platform.search.policy.samplers import make_sampler
from siclip_platform.spaces.definition import SearchSpace
from siclip_platform.spaces.finite import check_sampler, shuffled_grid
from siclip_platform.spaces.policy import SamplerConfig

STEP = "step"
TRIAL_ID = "trial_id"
SPACE_HASH = "space_hash"


class StudySearch(OptunaSearch):
    """`OptunaSearch` over a `SearchSpace`; one process searches a study at a time.

    ``OptunaSearch`` tells a trial stopped by a scheduler as COMPLETE with its low-budget score, so that TPE learns
    from wrong values. Here a trial whose last scored ``step`` is below ``max_steps`` is PRUNED, with its scores as
    intermediate values by step; an error, a missing or a non-finite score is FAIL; the rest is COMPLETE. With several
    objectives Optuna takes no intermediate values; a trial that was stopped is PRUNED without any.

    All that is known lies in the study's storage, a trial under the name that it was asked for with. So a new
    searcher on the same storage goes on where an old one was killed: asked for a name again, it gives the setting it
    gave then; of a trial that is over it ignores all further news. What it suggests follows from the seed, the
    trial's name and what was told before.
    """

    def __init__(
        self, space: SearchSpace, *, max_steps: int, sampler: SamplerConfig, seed: int, trials: int, **options: Any
    ) -> None:
        """``options`` go to `OptunaSearch`; metrics and modes are the space's. See `make_searcher`."""
        _quiet()
        self.space = space
        self._max_steps = max_steps
        self._config = sampler
        self._root = seed
        self._planned = trials
        several = len(space.directions) > 1
        metric, mode = (
            (list(space.directions), list(space.directions.values())) if several else (space.metric, space.mode)
        )
        super().__init__(space.suggest, metric=metric, mode=mode, sampler=self._sampler_of("study"), **options)

    @property
    def study(self) -> optuna.Study:
        return self._ot_study

    def _sampler_of(self, trial_id: str) -> optuna.samplers.BaseSampler:
        """A fresh sampler for each trial, so that a killed study draws what it would have drawn."""
        seed = int(np.random.SeedSequence([self._root, *trial_id.encode()]).generate_state(1)[0])
        return make_sampler(self._config, self.space, seed=seed, trials=self._planned)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        known = self._find(trial_id)
        if known is not None and known.state.is_finished():
            return dict(known.params)
        self.study.sampler = self._sampler_of(trial_id)
        if known is not None:
            self._ot_trials[trial_id] = optuna.Trial(self.study, known._trial_id)
        elif self._exhausted():
            return str(Searcher.FINISHED)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Define-by-run function")  # on a busy machine it takes its time
            config: dict[str, Any] | None = super().suggest(trial_id)
        self._ot_trials[trial_id].set_user_attr(TRIAL_ID, trial_id)
        return config

    def _find(self, trial_id: str) -> optuna.trial.FrozenTrial | None:
        """The trial of this name; one that a kill left nameless is given to the next name that is new."""
        nameless = None
        for trial in self.study.get_trials(deepcopy=False):
            name = trial.user_attrs.get(TRIAL_ID)
            if name == trial_id:
                return trial
            if name is None and trial.state == TrialState.RUNNING:
                nameless = trial
        return nameless

    def _exhausted(self) -> bool:
        if self._config.name != "grid":
            return False
        return not self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))

    def _running(self, trial_id: str) -> optuna.Trial | None:
        """The trial, if it is not over."""
        known = self._find(trial_id)
        if known is None or known.user_attrs.get(TRIAL_ID) != trial_id or known.state.is_finished():
            return None
        if trial_id not in self._ot_trials:
            self._ot_trials[trial_id] = optuna.Trial(self.study, known._trial_id)
        return self._ot_trials[trial_id]

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Record the score at the result's step; a step that is reported again keeps its first score."""
        trial = self._running(trial_id)
        if trial is None or self.space.metric not in result:
            return
        step = int(result[STEP])
        if self.space.objectives:
            trial.set_user_attr(STEP, max(step, trial.user_attrs.get(STEP, 0)))
        elif step not in self.study._storage.get_trial(trial._trial_id).intermediate_values:
            trial.report(float(result[self.space.metric]), step)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how the trial ended. Without a result, the last score reported decides."""
        trial = self._running(trial_id)
        if trial is None:
            return
        if result:
            self.on_trial_result(trial_id, result)
        scores = self.study._storage.get_trial(trial._trial_id).intermediate_values
        step = max(scores, default=trial.user_attrs.get(STEP, 0))
        trial.set_user_attr(STEP, step)
        if self.space.objectives:
            values = [float((result or {}).get(metric, math.nan)) for metric in self.space.directions]
        else:
            values = [scores.get(step, math.nan)]
        self._tell(trial, step, values, error or not self._constrain(trial, result or {}))
        self._completed_trials.add(trial_id)

    def _tell(self, trial: optuna.Trial, step: int, values: list[float], failed: bool) -> None:
        if failed or not all(map(math.isfinite, values)):
            self.study.tell(trial, state=TrialState.FAIL)
        elif step < self._max_steps:
            self.study.tell(trial, state=TrialState.PRUNED)  # Optuna takes the last intermediate value
        else:
            self.study.tell(trial, values, state=TrialState.COMPLETE)

    def _constrain(self, trial: optuna.Trial, result: Mapping[str, Any]) -> bool:
        """Tell by how much each bound is missed; whether all figures are there."""
        violations = {c.metric: c.violation(float(result.get(c.metric, math.nan))) for c in self.space.constraints}
        if not all(map(math.isfinite, violations.values())):
            return False
        for metric, violation in violations.items():
            trial.set_constraint(metric, violation)
        return True

    def restore(self, checkpoint_path: str) -> None:
        """Take over a saved searcher; what the storage learned after that save counts.

        Raises:
            UserError: the study's storage is gone.
        """
        _quiet()
        super().restore(checkpoint_path)
        self._ot_trials.clear()
        try:
            self.study.get_trials(deepcopy=False)
        except (StorageInternalError, KeyError) as error:
            raise UserError(
                f"study {self._study_name!r} is not in its storage any more ({error}); "
                "put the file back or start a new study"
            ) from None


def make_searcher(
    space: SearchSpace,
    *,
    seed: int,
    num_trials: int,
    max_steps: int,
    study_name: str,
    storage: Path | None = None,
    points_to_evaluate: Sequence[Mapping[str, Any]] = (),
    sampler: SamplerConfig | None = None,
) -> StudySearch:
    """A searcher over ``space`` with its sampler, or another.

    ``max_steps`` is the step at which a trial is complete. ``storage``: an sqlite file, made if missing, in which the
    study ``study_name`` is created or continued; None keeps the study in memory. ``points_to_evaluate`` come first,
    then the space's points, then the paper's defaults, each once per study; a point may leave parameters open, and
    ``space.restrict(recipe.flat())`` makes one of a recipe.

    Raises:
        UserError: a point lies outside the space, the sampler cannot search it, the storage cannot be used, or the
            study in it searched another space.
    """
    _quiet()
    sampler = sampler or space.sampler
    check_sampler(sampler, space)
    points = [*map(dict, points_to_evaluate), *map(dict, space.points), paper_point(space)]
    for point in points:
        outside = sorted(set(point) - set(space.restrict(point)))
        if outside:
            raise UserError(
                f"starting point of study {study_name!r}: {', '.join(f'{p}={point[p]!r}' for p in outside)} "
                f"cannot be suggested by search space {space.name!r}; leave it out or widen the space"
            )
    database = _open(storage) if storage else optuna.storages.InMemoryStorage()
    _check_study(database, study_name, space, storage)
    search = StudySearch(
        space, max_steps=max_steps, sampler=sampler, seed=seed, trials=num_trials, study_name=study_name,
        storage=database,
    )  # fmt: skip
    search.study.set_user_attr(SPACE_HASH, space.hash)
    if sampler.name == "grid":
        whole = shuffled_grid(space, seed)
        points = [point for point in points if point in whole] + whole
    for point in points:
        if point:
            search.study.enqueue_trial(dict(point), skip_if_exists=True)
    return search


def paper_point(space: SearchSpace) -> dict[str, Any]:
    """The method's own defaults, as far as the space searches them."""
    from siclip.config import TrainingConfig

    sharing = {"image_sharing": "qk:0-0", "text_sharing": "qk:0-0-1-1"}
    student = StudentConfig(name="siclip-s0", **sharing)
    recipe = Recipe(data=DataConfig(path="."), model=student, training=TrainingConfig(steps=1000))
    return space.restrict(recipe.flat())


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


def _check_study(storage: Any, name: str, space: SearchSpace, path: Path | None) -> None:
    """Raises `UserError` where a study of this name has trials that were drawn from another space."""
    if name not in optuna.get_all_study_names(storage):
        return
    study = optuna.load_study(study_name=name, storage=storage)
    if study.get_trials(deepcopy=False) and study.user_attrs.get(SPACE_HASH) != space.hash:
        raise UserError(
            f"study {name!r} in {path} searched another space than {space.name!r} ({space.hash}) is now; "
            "give the new study another name or file"
        )


def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


class SettingsSearch(Searcher):
    """Ray Tune's searcher for an ablation: ``trial-000`` gets the first setting, ``trial-001`` the second, …"""

    def __init__(self, settings: list[dict[str, Any]], metric: str, mode: str) -> None:
        super().__init__(metric=metric, mode=mode)
        self.settings = settings

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        number = int(trial_id.rpartition("-")[2])
        return dict(self.settings[number]) if number < len(self.settings) else str(Searcher.FINISHED)

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        pass  # what was found does not change what comes next

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text(json.dumps(self.settings))

    def restore(self, checkpoint_path: str) -> None:
        self.settings = json.loads(Path(checkpoint_path).read_text())
