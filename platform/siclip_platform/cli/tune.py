"""``siclip-platform tune`` and ``sync``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from siclip.errors import UserError
from siclip_platform.cli.experiments import (
    AddressOption,
    ArtifactsOption,
    DataOption,
    OutOption,
    RecipeOption,
    RegisterOption,
    ResumeOption,
    SetOption,
    TeacherOption,
    TrackingOption,
    VerboseOption,
    read_recipe,
)
from siclip_platform.cli.studies import options_of, resumed_study
from siclip_platform.cluster.resources import Backend

OUT = Path("runs/tune")
SeedsOption = Annotated[int, typer.Option(min=1, help="Trainings per setting; their mean is compared.")]
ConcurrentOption = Annotated[int | None, typer.Option(min=1, help="Trials at the same time; default: what fits.")]
RerunOption = Annotated[bool, typer.Option("--rerun", help="Train again what the MLflow store has finished.")]
DiskOption = Annotated[str | None, typer.Option(help="Disk space for a study's checkpoints, for example 20GB.")]
ConfirmOption = Annotated[int, typer.Option(min=0, help="Fresh seeds for the best trial and the recipe at the end.")]
SamplerOption = Annotated[str | None, typer.Option(help="tpe, random, grid, gp, cmaes; default: the space's.")]
SchedulerOption = Annotated[
    str | None, typer.Option(help="asha, hyperband, median, pbt, none; default: the space's.")
]
BackendOption = Annotated[
    Backend, typer.Option(help="process: trials in reused processes; train: each with Ray Train.")
]


def tune(
    context: typer.Context,
    space: Annotated[str, typer.Option(help="A search space: a name in search_spaces/ or a file.")] = "wikd",
    recipe: RecipeOption = None,
    data: DataOption = None,
    teacher: TeacherOption = None,
    changes: SetOption = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials in total.")] = 8,
    sampler: SamplerOption = None,
    scheduler: SchedulerOption = None,
    seeds: SeedsOption = 1,
    concurrent: ConcurrentOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    backend: BackendOption = "process",
    rerun: RerunOption = False,
    register_as: RegisterOption = None,
    confirm: ConfirmOption = 0,
    disk_budget: DiskOption = None,
    resume: ResumeOption = None,
    out: OutOption = OUT,
    artifacts: ArtifactsOption = None,
    tracking_uri: TrackingOption = None,
    address: AddressOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Search a space around one recipe, or resume a search that was stopped (--resume)."""
    from siclip_platform.spaces import load_space
    from siclip_platform.studies.confirmation import confirm_search
    from siclip_platform.studies.items import log_items, starting_checkpoint
    from siclip_platform.studies.options import check_sharing
    from siclip_platform.studies.session import open_experiment
    from siclip_platform.studies.starting_point import StartingPoint
    from siclip_platform.studies.summary import print_search

    if resume:
        start = resumed_study(context, "search", out)
    else:
        named = read_recipe(recipe, data, teacher, changes)
        options = options_of(context, out, data=named.data.path, teacher=named.teacher)
        start = StartingPoint.new(options, named, definition=space)
    options, base = start.options, start.base
    check = check_sharing(base.model.name)
    chosen = load_space(start.definition, check_value=check, sampler=options.sampler, scheduler=options.scheduler)

    with open_experiment(options, chosen.name, base) as experiment:
        experiment.dataset()
        experiment.begin_search("search", chosen, base)
        study = experiment.search(chosen, base)
        experiment.log_best(study)
        models = {"leading": study.best.checkpoint, "start": starting_checkpoint(study, base)}
        log_items(experiment, study.best.trial_id, models)
        confirm_search(experiment, study, base, options.confirm)
    print_search(experiment, study)


def sync(
    folder: Annotated[Path, typer.Argument(help="A study's folder, or an --out with several.")],
    tracking_uri: TrackingOption = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for the server.")] = 300,
) -> None:
    """Send to MLflow what could not be sent while a study ran."""
    from siclip_platform.display import echo
    from siclip_platform.tracking import sync as send

    waiting, refused = 0, 0
    for spool in send(folder.resolve(), tracking_uri, timeout):
        waiting += spool.waiting
        echo(f"{spool.folder}: {spool.sent} records sent, {spool.waiting} wait")
        refused += len(spool.problems)
        for problem in spool.problems:
            echo(f"  MLflow refused: {problem}")
    if waiting:
        raise UserError("the server stopped answering before everything was sent: run this again when it is back")
    if refused:
        raise UserError(
            f"MLflow refused {refused} records, which it lacks: remove the cause that is named and run this again"
        )
