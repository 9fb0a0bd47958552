"""Run an ablation: dataset, teachers, then every setting of a study file with the same seeds.

python jobs/ablate_siclip.py paper_experiments
ray job submit -- python jobs/ablate_siclip.py wikd_ablation --out /shared/runs/ablate --seeds 5
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from siclip_platform.cli.guard import guarded
from siclip_platform.opening import open_experiment
from siclip_platform.options import Options, default_out
from siclip_platform.presets import STUDENT_STEPS, TEACHER_STEPS
from siclip_platform.report import write_report
from siclip_platform.search.ablation import load_ablation
from siclip_platform.search.ablation_run import (
    begin_ablation,
    check_settings,
    print_ablation,
    run_ablation,
    starting_point,
    train_teachers,
)

Opt = typer.Option


def ablate_siclip(
    study: Annotated[str, typer.Argument(help="A study: a name in search_spaces/studies/ or a file.")],
    setting: Annotated[list[str] | None, Opt(help="Only this setting, with the baseline; may be repeated.")] = None,
    seeds: Annotated[int | None, Opt(min=1, help="Trainings of each setting; default: the study's.")] = None,
    out: Annotated[Path | None, Opt(help="Folder for everything that is written.")] = None,
    recipe: Annotated[Path | None, Opt(help="A recipe that the settings change; default: digits-student.")] = None,
    data: Annotated[Path | None, Opt(help="A dataset folder; default: digit scenes, built if missing.")] = None,
    teacher: Annotated[Path | None, Opt(help="A teacher's checkpoint; default: one is trained.")] = None,
    steps: Annotated[int, Opt(min=12, help="Steps of a training; a recipe has its own.")] = STUDENT_STEPS,
    teacher_steps: Annotated[int, Opt(min=12, help="Steps of the teacher.")] = TEACHER_STEPS,
    concurrent: Annotated[int | None, Opt(min=1, help="Trainings at the same time; default: what fits.")] = None,
    seed: Annotated[int, Opt(min=0, help="The first seed; the others follow it.")] = 0,
    rerun: Annotated[bool, Opt("--rerun", help="Train also what the MLflow store has finished.")] = False,
    confirm: Annotated[int, Opt(min=0, help="Fresh seeds for the leading setting and the baseline at the end.")] = 0,
    tracking_uri: Annotated[str | None, Opt(help="MLflow store; default: sqlite in --out.")] = None,
    address: Annotated[str | None, Opt(help="A Ray cluster; default: RAY_ADDRESS, else one of our own.")] = None,
    verbose: Annotated[bool, Opt(help="Show what Ray says.")] = False,
    resume: Annotated[str | None, Opt(metavar="STUDY", help="Go on with this study; other options as then.")] = None,
) -> None:
    """Train every setting of a study with the same seeds and compare them with its baseline."""
    chosen = load_ablation(study)
    settings = chosen.only(setting or [])
    asked = Options(
        out=(out or default_out().with_name("ablate_siclip")).resolve(), data=data, teacher=teacher,
        tracking_uri=tracking_uri, address=address, trials=len(settings), seeds=seeds or chosen.seeds,
        concurrent=concurrent, seed=seed, verbose=verbose, rerun=rerun, resume=resume,
    )  # fmt: skip
    options, base, teaching = starting_point(asked, recipe, steps, teacher_steps)
    check_settings(settings, base, trains_teachers=teaching is not None)

    with open_experiment(options, chosen.name, *([teaching] if teaching else []), base) as experiment:
        experiment.dataset()
        begin_ablation(experiment, chosen, settings, base)
        teachers = train_teachers(experiment, chosen, settings, teaching)
        result = run_ablation(experiment, chosen, settings, base, teachers, confirm)

    report = write_report(experiment.tracker.uri, options.out, study=experiment.name)
    print_ablation(experiment, chosen, settings, result, report)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(ablate_siclip)

if __name__ == "__main__":
    guarded(app)
