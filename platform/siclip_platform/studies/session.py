"""The beginning and the end of a study: everything is checked and connected first, and closed and reported last."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from siclip.errors import UserError
from siclip_platform.cluster.connect import Needs, ray_cluster
from siclip_platform.cluster.interrupt import Interrupted, leave, stopped_by
from siclip_platform.display import Display
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.storage import check_writable
from siclip_platform.studies import shortfall
from siclip_platform.studies.command_line import command_line
from siclip_platform.studies.experiment import Experiment
from siclip_platform.studies.options import WORKER_CPUS, Options, check_study_name, unused_name
from siclip_platform.studies.study_file import FILE, read_study
from siclip_platform.tracking import RunState, Tracker, check_tracking, default_tracking_uri
from siclip_platform.tracking.address import without_password
from siclip_platform.tracking.names import claim_name, names_in
from siclip_platform.tracking.store import EXPERIMENT, artifact_location, check_artifacts, open_store
from siclip_platform.training.build import check


@contextmanager
def open_experiment(options: Options, name: str, *recipes: Recipe) -> Iterator[Experiment]:
    """Check everything that can be checked, connect MLflow and Ray, and close both at the end.

    Ctrl-C and SIGTERM mark the study's run as interrupted, print the command that resumes the study, and end the
    process with exit code 130 or 143.

    Args:
        options: with ``resume``, that study is opened.
        name: of a new study; a number is appended if it is taken.
        recipes: those that will be trained. Their dataset need not exist yet if it is the digit scenes.

    Raises:
        UserError: see `Tracker`, `ray_cluster`, `siclip_platform.training.build.check`.
    """
    check_study_name(name)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"output folder {options.out} cannot be created: {error.strerror}; name another --out"
        ) from None
    if options.checkpoints:
        check_writable(options.checkpoints, "--checkpoints")
    if options.artifacts:
        check_artifacts(options.artifacts)
    for recipe in recipes:
        check(recipe, with_data=options.data is not None)
    uri = options.tracking_uri or default_tracking_uri(options.out)
    name = options.resume or _new_name(name, uri, options)
    tracker = Tracker(uri, artifacts=options.artifacts or options.out / "artifacts", spool=options.out / name)
    display = Display()
    needs = Needs(concurrent=options.trainings, worker_cpus=WORKER_CPUS, workers=options.workers)
    try:
        if options.resume:
            _repair(tracker, display, read_study(options.out / name).key)
        experiment = Experiment(options, display, tracker, name)
        cluster = ray_cluster(needs, options.address, options.verbose)
        with cluster, _leaving(tracker, display, options.out / name), display.live(), _ending(experiment):
            yield experiment
        experiment.timeline.write(options.out)
    except Interrupted:
        raise
    except BaseException:
        _close(tracker, display, options.out / name, 10)
        raise
    _close(tracker, display, options.out / name, 60)


def _repair(tracker: Tracker, display: Display, study: str) -> None:
    """Give MLflow and the spool of a study what they have lost."""
    done = tracker.reconcile(study)
    if done.sent_again:
        display.say(f"MLflow at {tracker.address} has lost {done.sent_again} runs of the study: they are sent again")
    if done.adopted:
        display.say(f"{done.adopted} runs of the study were found in MLflow at {tracker.address}")


@contextmanager
def _leaving(tracker: Tracker, display: Display, folder: Path) -> Iterator[None]:
    """End the process at Ctrl-C or SIGTERM."""
    try:
        yield
    except KeyboardInterrupt:
        # Short: the user waits for the prompt, and the spool keeps what is not sent.
        _close(tracker, display, folder, 5)
        display.say(f"stopped; {_how_to_resume(folder)}")
        # Before Ray is shut down: a thread that uses Ray meanwhile would end the process with another exit code.
        leave()


def _how_to_resume(folder: Path) -> str:
    """The command that resumes the study that this process stopped."""
    if not (folder / FILE).is_file():
        return f"nothing was begun; to start again: {command_line(sys.argv)}"
    return f"to resume: {read_study(folder).resume_command}"


def _new_name(name: str, uri: str, options: Options) -> str:
    """A name that no other study has, in the output folder and in the store; both have it from now on."""
    check_tracking(uri)
    client, experiment = open_store(
        uri, EXPERIMENT, artifact_location(options.artifacts or options.out / "artifacts", uri)
    )
    while True:
        unused = unused_name(name, names_in(client, experiment), options.out)
        folder = options.out / unused
        try:
            folder.mkdir()
        except FileExistsError:  # of a study that starts at the same moment
            continue
        if claim_name(client, experiment, unused):
            return unused
        folder.rmdir()
        time.sleep(random.uniform(0, 1))  # otherwise those who want the name would claim it together again


@contextmanager
def _ending(experiment: Experiment) -> Iterator[None]:
    """Close the study's run in the state in which the block ends."""

    def finish(state: RunState, reason: str = "") -> None:
        if experiment.study_run:
            experiment.study_run.finish(state, reason=reason)

    try:
        yield
    except KeyboardInterrupt:
        finish("interrupted", f"stopped by {stopped_by()}")
        raise
    except BaseException as error:
        finish("failed", f"{type(error).__name__}: {error}")
        raise
    finish("completed")


def _close(tracker: Tracker, display: Display, folder: Path, timeout_seconds: float) -> None:
    left = tracker.flush(timeout_seconds)
    problems, reason = tracker.spool.problems(), tracker.sender.reason
    tracker.close(0)
    if left:
        why = f" ({reason})" if reason else ""
        store = without_password(tracker.uri)
        display.say(f"{left} records wait for MLflow at {store}{why}: siclip-platform sync {folder} sends them")
    for problem in problems:
        display.say(f"MLflow refused a record: {problem}")
    if problems:
        display.say(f"{len(problems)} records are not in MLflow: siclip-platform sync {folder} sends them again")
    if left or problems:
        shortfall.note(str(folder))
