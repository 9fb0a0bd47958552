"""Ray Tune searchers: Optuna over a search space, and a fixed list of settings for an ablation."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import optuna
from alembic.util.exc import CommandError
from optuna.exceptions import OptunaError, StorageInternalError
from optuna.trial import TrialState
from ray.tune.search import Searcher
from sqlalchemy.exc import SQLAlchemyError

from siclip.errors import UserError
from siclip_platform.recipes.recipe import DataConfig, Recipe, StudentConfig
from siclip_platform.search.policy.samplers import make_sampler
from siclip_platform.search.policy.storage import WaitingStorage
from siclip_platform.spaces.definition import SearchSpace
from siclip_platform.spaces.finite import check_sampler, shuffled_grid
from siclip_platform.spaces.policy import SamplerConfig
from siclip_platform.storage.databases import damage

STEP = "step"
TRIAL_ID = "trial_id"
SPACE_HASH = "space_hash"
LOCK_SECONDS = 60  # how long a write waits for another process that has the sqlite file locked, say a dashboard

StoppedState = Literal["pruned", "complete"]


@dataclass
class _Running:
    """A trial that has not ended: Optuna's handle, the scores that Optuna has by step, and the last step."""

    trial: optuna.Trial
    scores: dict[int, float]
    step: int


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What a searcher's suggestions depend on, besides the space and the results reported to it.

    Attributes:
        sampler: Optuna's sampler.
        seed: the root of every sampler's seed.
        trials: the trials planned for the study; they determine the sampler's random startup.
        max_steps: the step at which a trial is complete.
        stopped: the state that Optuna gets for a trial that ended before ``max_steps``.
    """

    sampler: SamplerConfig
    seed: int
    trials: int
    max_steps: int
    stopped: StoppedState = "pruned"


class StudySearch(Searcher):
    """Ray Tune's searcher over an Optuna study; only one process may use a study at a time.

    A trial ends as FAIL after an error or with a missing or non-finite score; as PRUNED, with its scores as
    intermediate values, if its last ``step`` is below ``max_steps``; otherwise as COMPLETE. With several objectives
    Optuna takes no intermediate values, so a stopped trial is PRUNED without any.

    The study's storage has the whole state, with each trial's name as a user attribute. A new searcher on the same
    storage therefore resumes a killed one: for a known name it returns the same values, and it ignores results of
    trials that have ended. A suggestion depends only on the seed, the trial's name and the results reported before.
    """

    def __init__(
        self, space: SearchSpace, study: optuna.Study, storage: optuna.storages.BaseStorage, config: SearchConfig
    ) -> None:
        _quiet()
        several = len(space.directions) > 1
        super().__init__(
            metric=list(space.directions) if several else space.metric,
            mode=list(space.directions.values()) if several else "max",
        )
        self.space = space
        self.study = study
        self._storage = storage
        self._config = config
        self._index()

    def _index(self) -> None:
        """Read names and numbers of all trials once; afterwards they are kept up to date in memory."""
        self._numbers: dict[str, int] = {}
        self._ended: set[str] = set()
        self._running: dict[str, _Running] = {}
        self._nameless: int | None = None
        for trial in self.study.get_trials(deepcopy=False):
            name = trial.user_attrs.get(TRIAL_ID)
            if name is not None:
                self._numbers[name] = trial.number
                if trial.state.is_finished():
                    self._ended.add(name)
            elif trial.state == TrialState.RUNNING:
                self._nameless = trial.number

    def knows(self, trial_id: str) -> bool:
        """Whether the storage has a trial of this name."""
        return trial_id in self._numbers

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if trial_id in self._ended:
            return dict(self._stored(self._numbers[trial_id]).params)
        # A sampler's state is lost with its process, so every trial gets a new one with a seed of its own.
        self.study.sampler = self._make_sampler(trial_id)
        running = self._find_running(trial_id)
        if running is None:
            if self._exhausted():
                return str(Searcher.FINISHED)
            running = self._ask()
        values = self.space.suggest(running.trial)
        # Last, so that a trial without a name was never returned and can be given to another name.
        running.trial.set_user_attr(TRIAL_ID, trial_id)
        self._running[trial_id] = running
        self._numbers[trial_id] = running.trial.number
        return values

    def _make_sampler(self, trial_id: str) -> optuna.samplers.BaseSampler:
        seed = int(np.random.SeedSequence([self._config.seed, *trial_id.encode()]).generate_state(1)[0])
        return make_sampler(self._config.sampler, self.space, seed=seed, trials=self._config.trials)

    def _ask(self) -> _Running:
        """A new trial, or the one that a kill left in the storage before it got its name."""
        if self._nameless is None:
            return _Running(self.study.ask(), {}, 0)
        number, self._nameless = self._nameless, None
        return self._reopen(number)

    def _exhausted(self) -> bool:
        if self._config.sampler.name != "grid" or self._nameless is not None:
            return False
        return not self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))

    def _stored(self, number: int) -> optuna.trial.FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def _find_running(self, trial_id: str) -> _Running | None:
        """None for a trial that has ended or was never suggested."""
        if trial_id in self._numbers and trial_id not in self._ended and trial_id not in self._running:
            self._running[trial_id] = self._reopen(self._numbers[trial_id])
        return self._running.get(trial_id)

    def _reopen(self, number: int) -> _Running:
        stored = self._stored(number)
        # `Study.tell` takes a number, but only a `Trial` can suggest and report, and its constructor wants the id.
        study_id = self._storage.get_study_id_from_name(self.study.study_name)
        trial = optuna.Trial(self.study, self._storage.get_trial_id_from_study_id_trial_number(study_id, number))
        scores = dict(stored.intermediate_values)
        return _Running(trial, scores, max(scores, default=stored.user_attrs.get(STEP, 0)))

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Report the score at the result's step to Optuna; a step reported again keeps its first score."""
        running = self._find_running(trial_id)
        if running is None or self.space.metric not in result:
            return
        step = int(result[STEP])
        running.step = max(step, running.step)
        if not self.space.objectives and step not in running.scores:
            running.scores[step] = float(result[self.space.metric])
            running.trial.report(running.scores[step], step)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how the trial ended. Without a result, the last reported score decides."""
        running = self._find_running(trial_id)
        if running is None:
            return
        if result:
            self.on_trial_result(trial_id, result)
        running.trial.set_user_attr(STEP, running.step)
        if self.space.objectives:
            values = [float((result or {}).get(metric, math.nan)) for metric in self.space.directions]
        else:
            values = [running.scores.get(running.step, math.nan)]
        self._tell(running, values, error or not self._set_constraints(running.trial, result or {}))
        self._ended.add(trial_id)
        del self._running[trial_id]

    def _tell(self, running: _Running, values: list[float], failed: bool) -> None:
        # Plain `OptunaSearch` would tell a stopped trial as COMPLETE, and TPE would learn from its early score.
        if failed or not all(map(math.isfinite, values)):
            self.study.tell(running.trial, state=TrialState.FAIL)
        elif running.step < self._config.max_steps and self._config.stopped == "pruned":
            self.study.tell(running.trial, state=TrialState.PRUNED)  # Optuna takes the last intermediate value
        else:
            self.study.tell(running.trial, values, state=TrialState.COMPLETE)

    def _set_constraints(self, trial: optuna.Trial, result: Mapping[str, Any]) -> bool:
        """Set by how much each bound is missed; returns whether every constrained metric is there."""
        violations = {c.metric: c.violation(float(result.get(c.metric, math.nan))) for c in self.space.constraints}
        if not all(map(math.isfinite, violations.values())):
            return False
        for metric, violation in violations.items():
            trial.set_constraint(metric, violation)
        return True

    def save(self, checkpoint_path: str) -> None:
        """Save the searcher; of a study in a file only the reference to it."""
        Path(checkpoint_path).write_bytes(pickle.dumps(self))

    def restore(self, checkpoint_path: str) -> None:
        """Become a saved searcher. Results that its storage received after the save count.

        Raises:
            UserError: the study is no longer in its storage.
        """
        _quiet()
        self.__dict__.update(pickle.loads(Path(checkpoint_path).read_bytes()).__dict__)
        try:
            self._index()
        except (StorageInternalError, KeyError) as error:
            raise UserError(
                f"study {self.study.study_name!r} is no longer in its storage ({error}); "
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
    stopped: StoppedState = "pruned",
) -> StudySearch:
    """A searcher over ``space`` that creates the study or resumes it.

    Queued points come first, each once per study: ``points_to_evaluate``, the space's points, the paper's defaults.

    Args:
        space: what is searched.
        seed: the root of all draws.
        num_trials: the trials planned for the study.
        max_steps: the step at which a trial is complete.
        study_name: the study's name in the storage.
        storage: an sqlite file, created if missing; None keeps the study in memory.
        points_to_evaluate: settings to try first; a point may leave parameters open, and
            ``space.restrict(recipe.flat())`` is the point of a recipe.
        sampler: used instead of the space's own.
        stopped: the state that Optuna gets for a trial that ended before ``max_steps``.

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
                f"cannot be suggested by search space {space.name!r}; omit it or widen the space"
            )
    database = _open(storage) if storage else optuna.storages.InMemoryStorage()
    _check_study(database, study_name, space, storage)
    # No pruner: Ray Tune's scheduler decides which trials stop.
    study = optuna.create_study(
        storage=database,
        pruner=optuna.pruners.NopPruner(),
        study_name=study_name,
        directions=["maximize" if mode == "max" else "minimize" for mode in space.directions.values()],
        load_if_exists=True,
    )
    study.set_user_attr(SPACE_HASH, space.hash)
    if sampler.name == "grid":
        whole = shuffled_grid(space, seed)
        points = [point for point in points if point in whole] + whole
    # A restart queues the same points again.
    for point in points:
        if point:
            study.enqueue_trial(dict(point), skip_if_exists=True)
    config = SearchConfig(sampler=sampler, seed=seed, trials=num_trials, max_steps=max_steps, stopped=stopped)
    return StudySearch(space, study, database, config)


def paper_point(space: SearchSpace) -> dict[str, Any]:
    """The method's own defaults for the parameters that the space searches."""
    from siclip.config import TrainingConfig

    sharing = {"image_sharing": "qk:0-0", "text_sharing": "qk:0-0-1-1"}
    student = StudentConfig(name="siclip-s0", **sharing)
    recipe = Recipe(data=DataConfig(path="."), model=student, training=TrainingConfig(steps=1000))
    return space.restrict(recipe.flat())


def _open(path: Path) -> WaitingStorage:
    found = damage(path)
    if found:
        raise UserError(
            f"study storage {path} cannot be used, it is damaged or no database ({found}): move it away and resume "
            "the study, which writes it again from its journal"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return WaitingStorage(
            f"sqlite:///{quote(str(path.resolve()))}", engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}}
        )
    except (OSError, RuntimeError, CommandError, SQLAlchemyError, OptunaError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"study storage {path} cannot be used: {reason}; name a new file, or one written by Optuna, "
            "in a folder that can be written"
        ) from None


def _check_study(storage: Any, name: str, space: SearchSpace, path: Path | None) -> None:
    """Raises `UserError` if a study of this name has trials that were drawn from another space."""
    if name not in optuna.get_all_study_names(storage):
        return
    study = optuna.load_study(study_name=name, storage=storage)
    if study.get_trials(deepcopy=False) and study.user_attrs.get(SPACE_HASH) != space.hash:
        raise UserError(
            f"study {name!r} in {path} searched another space than {space.name!r} ({space.hash}) is now; "
            "give the new study another name or file"
        )


def _quiet() -> None:
    # At INFO Optuna logs a line per study and per told trial, in the middle of the progress bars.
    optuna.logging.set_verbosity(optuna.logging.WARNING)


class SettingsSearch(Searcher):
    """The searcher of an ablation: ``trial-000`` gets the first setting, ``trial-001`` the second, and so on."""

    def __init__(self, settings: list[dict[str, Any]], metric: str) -> None:
        super().__init__(metric=metric, mode="max")
        self.settings = settings

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        number = int(trial_id.rpartition("-")[2])
        return dict(self.settings[number]) if number < len(self.settings) else str(Searcher.FINISHED)

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        pass  # results do not change which settings follow

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text(json.dumps(self.settings))

    def restore(self, checkpoint_path: str) -> None:
        self.settings = json.loads(Path(checkpoint_path).read_text())
