"""``siclip-platform tune`` and ``sync``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from siclip.errors import UserError
from siclip_platform.cli.experiments import (
    AddressOption,
    ArtifactsOption,
    DataOption,
    OutOption,
    PresetOption,
    RecipeOption,
    RegisterOption,
    SetOption,
    TeacherOption,
    TrackingOption,
    VerboseOption,
    read_recipe,
    where_to_keep,
)
from siclip_platform.cluster.resources import Backend

if TYPE_CHECKING:
    from siclip_platform.recipes.recipe import Recipe
    from siclip_platform.search.study import StudyResult
    from siclip_platform.studies.experiment import Experiment
    from siclip_platform.studies.options import Options
    from siclip_platform.studies.study_file import StudyFile

TRIALS = 8
SeedsOption = Annotated[int, typer.Option(min=1, help="Trainings of each setting; their mean is compared.")]
ConcurrentOption = Annotated[int | None, typer.Option(min=1, help="Trials at the same time; default: what fits.")]
RerunOption = Annotated[bool, typer.Option("--rerun", help="Train also what the MLflow store has finished.")]
DiskOption = Annotated[str | None, typer.Option(help="What a study's checkpoints may take, for example 20GB.")]
ConfirmOption = Annotated[int, typer.Option(min=0, help="Fresh seeds for the best trial and the recipe at the end.")]
ResumeOption = Annotated[str | None, typer.Option(metavar="STUDY", help="Go on with this study of --out.")]
SamplerOption = Annotated[str | None, typer.Option(help="tpe, random, grid, gp, cmaes; default: the space's.")]
SchedulerOption = Annotated[
    str | None, typer.Option(help="asha, hyperband, median, pbt, none; default: the space's.")
]
BackendOption = Annotated[str, typer.Option(help="process: trials in reused processes; train: each under Ray Train.")]


def tune(
    space: Annotated[str, typer.Option(help="A search space: a name in search_spaces/ or a file.")] = "wikd",
    recipe: RecipeOption = None,
    preset: PresetOption = None,
    data: DataOption = None,
    teacher: TeacherOption = None,
    changes: SetOption = None,
    trials: Annotated[int | None, typer.Option(min=1, help=f"Trials in all; default {TRIALS}.")] = None,
    sampler: SamplerOption = None,
    scheduler: SchedulerOption = None,
    seeds: SeedsOption = 1,
    concurrent: ConcurrentOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    backend: BackendOption = "process",
    rerun: RerunOption = False,
    register: RegisterOption = None,
    confirm: ConfirmOption = 0,
    disk_budget: DiskOption = None,
    resume: ResumeOption = None,
    out: OutOption = Path("runs/tune"),
    artifacts: ArtifactsOption = None,
    tracking_uri: TrackingOption = None,
    address: AddressOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Search a space around one recipe, or go on with a search that was stopped (--resume)."""
    from siclip_platform.spaces import load_space
    from siclip_platform.storage import as_path
    from siclip_platform.studies.options import Options, check_sharing, parse_bytes

    asked: dict[str, Any] = {"out": out.resolve(), "address": address, "verbose": verbose, "concurrent": concurrent}
    if resume and (sampler or scheduler):
        raise UserError("--resume goes on with the sampler and scheduler of the study: leave both options out")
    if resume:
        refuse_beside_resume(
            recipe=recipe, preset=preset, data=data, teacher=teacher, set=changes, register=register,
            disk_budget=disk_budget,
        )  # fmt: skip
        options, base = resumed(resume, trials, asked, tracking_uri)
    else:
        base = read_recipe(recipe, preset, data, teacher, changes)
        options = Options(
            **asked, tracking_uri=tracking_uri, trials=trials or TRIALS, seed=seed, seeds=seeds, space=space,
            backend=_backend(backend), rerun=rerun, register=register, data=as_path(base.data.path),
            disk_budget=parse_bytes(disk_budget) if disk_budget else None, sampler=sampler, scheduler=scheduler,
            **where_to_keep(None, artifacts),
        )  # fmt: skip
    check = check_sharing(base.model.name)
    chosen = load_space(options.space, check_value=check, sampler=options.sampler, scheduler=options.scheduler)
    _search(options, chosen, base, confirm)


def _backend(name: str) -> Backend:
    if name not in get_args(Backend):
        raise UserError(f"--backend {name!r}: {' or '.join(get_args(Backend))}")
    return cast(Backend, name)


def _search(options: Options, space: Any, base: Recipe, confirm: int) -> None:
    from siclip_platform.studies.confirmation import confirm_search
    from siclip_platform.studies.session import open_experiment

    with open_experiment(options, space.name, base) as experiment:
        experiment.dataset()
        experiment.begin_study(space, base)
        study = experiment.search(space, base)
        experiment.log_best(study)
        confirm_search(experiment, study, base, confirm)
    _say(experiment, study)


def _say(experiment: Experiment, study: StudyResult) -> None:
    from siclip_platform.search.population_conductor import RECIPES

    best = study.best
    say = experiment.display.say
    say(f"best of {len(study.trials)} trials: {study.metric} {best.value:.4f}")
    if best.recipe.loss.schedule:
        say(f"to train it: siclip-platform train --recipe {experiment.folder / RECIPES / best.trial_id}.yaml")
    else:
        say("to train it: add " + " ".join(f"--set {path}={value}" for path, value in best.values.items()))
    say(f"MLflow: {experiment.tracker.address}")


def refuse_beside_resume(**given: object) -> None:
    """Options, by name, that say anew what is known from then.

    Raises:
        UserError: one of them has a value.
    """
    if named := [f"--{name.replace('_', '-')}" for name, value in given.items() if value]:
        raise UserError(f"--resume goes on with the recipe and options of then: leave out {', '.join(named)}")


def resumed(
    name: str, trials: int | None, asked: dict[str, Any], tracking_uri: str | None, kind: str = "search"
) -> tuple[Options, Recipe]:
    """The options and the recipe of a study that was begun before; ``trials`` may be more than then.

    Raises:
        UserError: there is no such study, or it is of another kind.
    """
    from siclip_platform.storage import as_path
    from siclip_platform.studies.options import Options
    from siclip_platform.studies.study_file import FILE, SPACE, fetch_study, read_study

    folder = asked["out"] / name
    if asked.get("checkpoints") and not (folder / FILE).is_file():
        fetch_study(folder, asked["checkpoints"])
    study = read_study(folder)
    if study.kind != kind:
        raise UserError(f"{name!r} is a study of kind {study.kind}, not {kind}: go on with it by its own command")
    options = Options(
        **asked | {"concurrent": asked["concurrent"] or study.concurrent} | _kept(asked, study),
        tracking_uri=tracking_uri or study.tracking_uri, trials=trials or study.trials, seed=study.search_seed,
        seeds=study.seeds, space=str(folder / SPACE), backend=_backend(study.backend), rerun=study.rerun, resume=name,
        sampler=study.sampler, scheduler=study.scheduler, register=study.register_as,
        data=as_path(study.data) if study.data else None, disk_budget=study.disk_budget,
    )  # fmt: skip
    return options, study.base


def _kept(asked: dict[str, Any], study: StudyFile) -> dict[str, Any]:
    """Where checkpoints and files go, and among how many workers: as is asked for now, else as then."""
    then = where_to_keep(study.checkpoints, study.artifacts) | {"workers": study.options.get("workers", 1)}
    return {name: asked.get(name) or value for name, value in then.items()}


def sync(
    folder: Annotated[Path, typer.Argument(help="A study's folder, or an --out with several.")],
    tracking_uri: TrackingOption = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for the server.")] = 300,
) -> None:
    """Send to MLflow what could not be sent while a study ran."""
    from siclip_platform.tracking import sync as send

    waiting = 0
    for spool in send(folder.resolve(), tracking_uri, timeout):
        waiting += spool.waiting
        typer.echo(f"{spool.folder}: {spool.waited - spool.waiting} records sent, {spool.waiting} wait")
        for problem in spool.problems:
            typer.echo(f"  not taken by MLflow: {problem}")
    if waiting:
        raise UserError("the server stopped answering before all was sent: run this again when it is back")
