"""Run an ablation: dataset, teachers, then every setting of a study file with the same seeds.

python jobs/ablate_siclip.py paper_experiments
ray job submit -- python jobs/ablate_siclip.py wikd_ablation --out /shared/runs/ablate --seeds 5
python jobs/ablate_siclip.py --resume paper_experiments --out runs/ablate_siclip
"""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Argument
from typer import Option as Opt

from siclip_platform.cli import experiments as cli
from siclip_platform.cli.guard import as_app, guarded
from siclip_platform.cli.studies import new_study, resumed_study
from siclip_platform.spaces.ablation import load_ablation
from siclip_platform.studies.ablation import (
    begin_ablation,
    check_settings,
    named_ablation,
    print_ablation,
    run_ablation,
    train_teachers,
)
from siclip_platform.studies.options import default_out
from siclip_platform.studies.session import open_experiment
from siclip_platform.studies.summary import study_report


def ablate_siclip(
    context: typer.Context,
    ablation: Annotated[
        str | None, Argument(metavar="STUDY", help="A study: a name in search_spaces/studies/ or a file.")
    ] = None,
    settings: Annotated[
        list[str] | None, Opt("--setting", help="Only this setting, with the baseline; may be repeated.")
    ] = None,
    seeds: Annotated[int | None, Opt(min=1, help="Trainings per setting; default: the study's.")] = None,
    recipe: cli.BaseRecipeOption = None,
    data: cli.BaseDataOption = None,
    teacher: cli.BaseTeacherOption = None,
    changes: cli.SetOption = None,
    out: cli.JobOutOption = None,
    steps: cli.StepsOption = None,
    teacher_steps: cli.TeacherStepsOption = None,
    concurrent: cli.ConcurrentOption = None,
    seed: Annotated[int, Opt(min=0, help="The first seed; the others follow it.")] = 0,
    rerun: Annotated[bool, Opt("--rerun", help="Train again what the MLflow store has finished.")] = False,
    confirm: Annotated[int, Opt(min=0, help="Fresh seeds for the leading setting and the baseline at the end.")] = 0,
    checkpoints: cli.CheckpointsOption = None,
    artifacts: cli.ArtifactsOption = None,
    tracking_uri: cli.TrackingOption = None,
    address: cli.AddressOption = None,
    verbose: cli.VerboseOption = False,
    resume: cli.ResumeOption = None,
) -> None:
    """Train every setting of a study with the same seeds and compare them with its baseline."""
    folder = default_out("ablate_siclip")
    if resume:
        start = resumed_study(context, "ablation", folder)
    else:
        named = named_ablation(ablation)
        trials = len(named.only(settings or []))
        start = new_study(context, folder, seeds=seeds or named.seeds, trials=trials)
    study = load_ablation(start.definition)
    chosen, base = study.only([*start.options.settings]), start.base
    check_settings(chosen, base, trains_teachers=start.teaching is not None)

    with open_experiment(start.options, study.name, *start.recipes) as experiment:
        experiment.dataset()
        begin_ablation(experiment, study, chosen, base, start.teaching)
        teachers = train_teachers(experiment, study, chosen, start.teaching)
        result = run_ablation(experiment, study, chosen, base, teachers, start.options.confirm)

    print_ablation(experiment, study, chosen, result, study_report(experiment))


app = as_app(ablate_siclip)

if __name__ == "__main__":
    guarded(app)
