"""Search WIKD settings: dataset, teacher, study, then the best setting against a control without distillation.

python jobs/tune_wikd.py
ray job submit -- python jobs/tune_wikd.py --out /shared/runs/wikd --trials 24
"""

from __future__ import annotations

from typing import Annotated

from typer import Option as Opt

from siclip_platform.cli import experiments as cli
from siclip_platform.cli.guard import as_app, guarded
from siclip_platform.recipes.presets import STUDENT_STEPS, TEACHER_STEPS, without_distillation
from siclip_platform.report import write_report
from siclip_platform.spaces import load_space
from siclip_platform.studies.confirmation import confirm as fresh_seeds
from siclip_platform.studies.options import Options, check_sharing, default_out
from siclip_platform.studies.session import open_experiment
from siclip_platform.studies.starting_point import check_teacher, starting_point
from siclip_platform.studies.summary import print_summary


def tune_wikd(
    recipe: cli.BaseRecipeOption = None,
    preset: cli.PresetOption = None,
    data: cli.BaseDataOption = None,
    teacher: cli.BaseTeacherOption = None,
    changes: cli.SetOption = None,
    out: cli.JobOutOption = None,
    space: Annotated[str, Opt(help="A search space: a name in search_spaces/ or a file.")] = "wikd",
    trials: Annotated[int, Opt(min=1, help="Trials of the study.")] = 8,
    steps: cli.StepsOption = STUDENT_STEPS,
    teacher_steps: cli.TeacherStepsOption = TEACHER_STEPS,
    concurrent: cli.ConcurrentOption = None,
    seed: Annotated[int, Opt(min=0, help="Seed of data order, weights and search.")] = 0,
    checkpoints: cli.CheckpointsOption = None,
    artifacts: cli.ArtifactsOption = None,
    tracking_uri: cli.TrackingOption = None,
    address: cli.AddressOption = None,
    verbose: cli.VerboseOption = False,
    seeds: Annotated[int, Opt(min=1, help="Trainings of each setting; their mean is compared.")] = 1,
    confirm: Annotated[int, Opt(min=0, help="Fresh seeds that best and control are trained with at the end.")] = 0,
    register: cli.RegisterOption = None,
    resume: cli.StudyOption = None,
) -> None:
    """Search WIKD settings and compare the best with a control."""
    given, values = cli.named_recipe(recipe, preset, data, teacher, changes), cli.set_values(changes)
    asked = Options(
        out=(out or default_out()).resolve(), tracking_uri=tracking_uri, address=address, trials=trials, seeds=seeds,
        concurrent=concurrent, seed=seed, verbose=verbose, register=register, resume=resume, space=space,
        **cli.places(data, teacher), **cli.where_to_keep(checkpoints, artifacts),
    )  # fmt: skip
    options, base, teaching = starting_point(asked, given, values, steps=steps, teacher_steps=teacher_steps)
    check_teacher(base, teaching)
    wikd = load_space(space, check_value=check_sharing(base.model.name))

    with open_experiment(options, "wikd", *([teaching] if teaching else []), base) as experiment:
        experiment.dataset()
        experiment.begin_study(wikd, base)

        if teaching:
            base = base.updated({"teacher": str(experiment.train({"teacher": teaching})["teacher"].checkpoint)})
        study = experiment.search(wikd, base)

        best = study.best
        recipes = {"best": best.recipe, "control": without_distillation(best.recipe)}
        finished = experiment.train(recipes, best_trial=best.trial_id)
        fresh_seeds(experiment, recipes["best"], recipes["control"], confirm, best.trial_id)

    report = write_report(experiment.tracker.uri, options.out, study=experiment.name)
    print_summary(experiment, study, finished, report)


app = as_app(tune_wikd)

if __name__ == "__main__":
    guarded(app)
