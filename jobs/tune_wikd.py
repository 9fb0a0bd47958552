"""Search WIKD settings: dataset, teacher, study, then the best setting against a control without distillation.

python jobs/tune_wikd.py
ray job submit -- python jobs/tune_wikd.py --out /shared/runs/wikd --trials 24
python jobs/tune_wikd.py --resume wikd --out runs/tune_wikd
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option as Opt

from siclip_platform.cli import experiments as cli
from siclip_platform.cli.guard import as_app, guarded
from siclip_platform.cli.studies import new_study, resumed_study
from siclip_platform.recipes.control import without_distillation
from siclip_platform.spaces import load_space
from siclip_platform.studies.confirmation import confirm as fresh_seeds
from siclip_platform.studies.items import log_items, starting_checkpoint
from siclip_platform.studies.options import check_sharing, default_out
from siclip_platform.studies.session import open_experiment
from siclip_platform.studies.summary import print_summary, study_report


def tune_wikd(
    context: typer.Context,
    recipe: cli.BaseRecipeOption = None,
    data: cli.BaseDataOption = None,
    teacher: cli.BaseTeacherOption = None,
    changes: cli.SetOption = None,
    out: cli.JobOutOption = None,
    space: Annotated[str, Opt(help="A search space: a name in search_spaces/ or a file.")] = "wikd",
    trials: Annotated[int, Opt(min=1, help="Trials of the study.")] = 8,
    steps: cli.StepsOption = None,
    teacher_steps: cli.TeacherStepsOption = None,
    concurrent: cli.ConcurrentOption = None,
    seed: Annotated[int, Opt(min=0, help="Seed of data order, weights and search.")] = 0,
    checkpoints: cli.CheckpointsOption = None,
    artifacts: cli.ArtifactsOption = None,
    tracking_uri: cli.TrackingOption = None,
    address: cli.AddressOption = None,
    verbose: cli.VerboseOption = False,
    seeds: Annotated[int, Opt(min=1, help="Trainings per setting; their mean is compared.")] = 1,
    confirm: Annotated[int, Opt(min=0, help="Fresh seeds for best, control and recipe at the end.")] = 0,
    register_as: cli.RegisterOption = None,
    resume: cli.ResumeOption = None,
) -> None:
    """Search WIKD settings and compare the best with a control."""
    folder = default_out("tune_wikd")
    start = resumed_study(context, "demo", folder) if resume else new_study(context, folder)
    start.check_teacher()
    base, teaching = start.base, start.teaching
    wikd = load_space(start.definition, check_value=check_sharing(base.model.name))

    with open_experiment(start.options, "wikd", *start.recipes) as experiment:
        experiment.dataset()
        experiment.begin_search("demo", wikd, base, teaching)

        if teaching:
            base = base.updated({"teacher": str(experiment.train({"teacher": teaching})["teacher"].checkpoint)})
        study = experiment.search(wikd, base)

        best = study.best
        recipes = {"best": best.recipe, "control": without_distillation(best.recipe)}
        finished = experiment.train(recipes, best_trial=best.trial_id)
        models: dict[str, Path | None] = {
            "leading": finished["best"].checkpoint,
            "control": finished["control"].checkpoint,
        }
        models["teacher"] = Path(base.teacher) if teaching and base.teacher else None
        log_items(experiment, best.trial_id, models | {"start": starting_checkpoint(study, base)})
        fresh_seeds(experiment, recipes["best"], recipes["control"], start.options.confirm, best.trial_id, start=base)

    print_summary(experiment, study, finished, study_report(experiment))


app = as_app(tune_wikd)

if __name__ == "__main__":
    guarded(app)
