"""Search WIKD settings: dataset, teacher, study, then the best setting against a control without distillation.

python jobs/tune_wikd.py
ray job submit -- python jobs/tune_wikd.py --out /shared/runs/wikd --trials 24
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from siclip_platform.cli.guard import guarded
from siclip_platform.confirmation import confirm as fresh_seeds
from siclip_platform.opening import open_experiment
from siclip_platform.options import Options, check_sharing, default_out
from siclip_platform.presets import STUDENT_STEPS, TEACHER_STEPS, digits_student, digits_teacher, without_distillation
from siclip_platform.report import write_report
from siclip_platform.search import load_space
from siclip_platform.summary import print_summary

Opt = typer.Option


def tune_wikd(
    out: Annotated[Path | None, Opt(help="Folder for everything that is written.")] = None,
    data: Annotated[Path | None, Opt(help="A dataset folder; default: digit scenes, built if missing.")] = None,
    teacher: Annotated[Path | None, Opt(help="A teacher's checkpoint; default: one is trained.")] = None,
    space: Annotated[str, Opt(help="A search space: a name in search_spaces/ or a file.")] = "wikd",
    trials: Annotated[int, Opt(min=1, help="Trials of the study.")] = 8,
    steps: Annotated[int, Opt(min=12, help="Steps of a trial, of best and of control.")] = STUDENT_STEPS,
    teacher_steps: Annotated[int, Opt(min=12, help="Steps of the teacher.")] = TEACHER_STEPS,
    concurrent: Annotated[int | None, Opt(min=1, help="Trainings at the same time; default: what fits.")] = None,
    seed: Annotated[int, Opt(min=0, help="Seed of data order, weights and search.")] = 0,
    tracking_uri: Annotated[str | None, Opt(help="MLflow store; default: sqlite in --out.")] = None,
    address: Annotated[str | None, Opt(help="A Ray cluster; default: RAY_ADDRESS, else one of our own.")] = None,
    verbose: Annotated[bool, Opt(help="Show what Ray says.")] = False,
    seeds: Annotated[int, Opt(min=1, help="Trainings of each setting; their mean is compared.")] = 1,
    confirm: Annotated[int, Opt(min=0, help="Fresh seeds that best and control are trained with at the end.")] = 0,
    register: Annotated[str | None, Opt(help="Name of the best model in MLflow's registry.")] = None,
    resume: Annotated[str | None, Opt(metavar="STUDY", help="Go on with this study; other options as then.")] = None,
) -> None:
    """Search WIKD settings and compare the best with a control."""
    out = (out or default_out()).resolve()
    teacher = teacher.resolve() if teacher else None
    options = Options(
        out=out, data=data, teacher=teacher, tracking_uri=tracking_uri, address=address, trials=trials, seeds=seeds,
        concurrent=concurrent, seed=seed, verbose=verbose, register=register, resume=resume, space=space,
    )  # fmt: skip
    teaching = digits_teacher(options.dataset_folder, steps=teacher_steps, seed=seed)
    base = digits_student(options.dataset_folder, teacher, steps=steps, seed=seed)
    wikd = load_space(space, check_value=check_sharing(base.model.name))

    with open_experiment(options, "wikd", teaching, base) as experiment:
        experiment.dataset()
        experiment.begin_study(wikd, base)

        checkpoint = teacher or experiment.train({"teacher": teaching})["teacher"].checkpoint
        study = experiment.search(wikd, base.updated({"teacher": str(checkpoint)}))

        best = study.best
        recipes = {"best": best.recipe, "control": without_distillation(best.recipe)}
        finished = experiment.train(recipes, best_trial=best.trial_id)
        fresh_seeds(experiment, recipes["best"], recipes["control"], confirm, best.trial_id)

    report = write_report(experiment.tracker.uri, out, study=experiment.name)
    print_summary(experiment, study, finished, report)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(tune_wikd)

if __name__ == "__main__":
    guarded(app)
