"""Run an ablation: dataset, teachers, then every setting of a study file with the same seeds.

python jobs/ablate_siclip.py paper_experiments
ray job submit -- python jobs/ablate_siclip.py wikd_ablation --out /shared/runs/ablate --seeds 5
"""

from __future__ import annotations

from typing import Annotated

from typer import Argument
from typer import Option as Opt

from siclip_platform.cli import experiments as cli
from siclip_platform.cli.guard import as_app, guarded
from siclip_platform.recipes.presets import STUDENT_STEPS, TEACHER_STEPS
from siclip_platform.report import write_report
from siclip_platform.spaces.ablation import load_ablation
from siclip_platform.studies.ablation import (
    begin_ablation,
    check_settings,
    print_ablation,
    run_ablation,
    train_teachers,
)
from siclip_platform.studies.options import Options, default_out
from siclip_platform.studies.session import open_experiment
from siclip_platform.studies.starting_point import starting_point


def ablate_siclip(
    study: Annotated[str, Argument(help="A study: a name in search_spaces/studies/ or a file.")],
    setting: Annotated[list[str] | None, Opt(help="Only this setting, with the baseline; may be repeated.")] = None,
    seeds: Annotated[int | None, Opt(min=1, help="Trainings of each setting; default: the study's.")] = None,
    recipe: cli.BaseRecipeOption = None,
    preset: cli.PresetOption = None,
    data: cli.BaseDataOption = None,
    teacher: cli.BaseTeacherOption = None,
    changes: cli.SetOption = None,
    out: cli.JobOutOption = None,
    steps: cli.StepsOption = STUDENT_STEPS,
    teacher_steps: cli.TeacherStepsOption = TEACHER_STEPS,
    concurrent: cli.ConcurrentOption = None,
    seed: Annotated[int, Opt(min=0, help="The first seed; the others follow it.")] = 0,
    rerun: Annotated[bool, Opt("--rerun", help="Train also what the MLflow store has finished.")] = False,
    confirm: Annotated[int, Opt(min=0, help="Fresh seeds for the leading setting and the baseline at the end.")] = 0,
    checkpoints: cli.CheckpointsOption = None,
    artifacts: cli.ArtifactsOption = None,
    tracking_uri: cli.TrackingOption = None,
    address: cli.AddressOption = None,
    verbose: cli.VerboseOption = False,
    resume: cli.StudyOption = None,
) -> None:
    """Train every setting of a study with the same seeds and compare them with its baseline."""
    chosen = load_ablation(study)
    settings = chosen.only(setting or [])
    asked = Options(
        out=(out or default_out().with_name("ablate_siclip")).resolve(), tracking_uri=tracking_uri, address=address,
        trials=len(settings), seeds=seeds or chosen.seeds, concurrent=concurrent, seed=seed, verbose=verbose,
        rerun=rerun, resume=resume, **cli.places(data, teacher), **cli.where_to_keep(checkpoints, artifacts),
    )  # fmt: skip
    given, values = cli.named_recipe(recipe, preset, data, teacher, changes), cli.set_values(changes)
    options, base, teaching = starting_point(asked, given, values, steps=steps, teacher_steps=teacher_steps)
    check_settings(settings, base, trains_teachers=teaching is not None)

    with open_experiment(options, chosen.name, *([teaching] if teaching else []), base) as experiment:
        experiment.dataset()
        begin_ablation(experiment, chosen, settings, base)
        teachers = train_teachers(experiment, chosen, settings, teaching)
        result = run_ablation(experiment, chosen, settings, base, teachers, confirm)

    report = write_report(experiment.tracker.uri, options.out, study=experiment.name)
    print_ablation(experiment, chosen, settings, result, report)


app = as_app(ablate_siclip)

if __name__ == "__main__":
    guarded(app)
