"""Train one recipe with Ray Train, and measure it on the test split.

python jobs/train_siclip.py --recipe digits-teacher --data data/digits
ray job submit -- python jobs/train_siclip.py --recipe /shared/my.yaml --out /shared/runs/my
python jobs/train_siclip.py --resume train --out runs/train
python jobs/train_siclip.py --resume train --out runs/train --set training.steps=20000
python jobs/train_siclip.py --recipe siclip-s0-cc12m-syn --data s3://bucket/cc12m --checkpoints s3://bucket/runs
"""

from __future__ import annotations

from shlex import quote
from typing import Annotated

import typer

from siclip_platform.cli import experiments as cli
from siclip_platform.cli.guard import as_app, guarded
from siclip_platform.cli.studies import options_of, resumed_study
from siclip_platform.studies.options import default_out
from siclip_platform.studies.session import open_experiment
from siclip_platform.studies.starting_point import StartingPoint


def train_siclip(
    context: typer.Context,
    recipe: cli.RecipeOption = None,
    data: cli.DataOption = None,
    teacher: cli.TeacherOption = None,
    changes: cli.SetOption = None,
    out: cli.JobOutOption = None,
    name: Annotated[str, typer.Option(help="Name of the run.")] = "train",
    workers: Annotated[int, typer.Option(min=1, help="Processes that share a batch, each with a GPU.")] = 1,
    register_as: cli.RegisterOption = None,
    checkpoints: cli.CheckpointsOption = None,
    artifacts: cli.ArtifactsOption = None,
    resume: cli.ResumeOption = None,
    tracking_uri: cli.TrackingOption = None,
    address: cli.AddressOption = None,
    verbose: cli.VerboseOption = False,
) -> None:
    """Train one recipe with Ray Train, track it in MLflow, keep its checkpoint, measure it on the test split.

    A dataset without a test split is measured on its validation split.
    """
    folder = default_out("train")
    if resume:
        start = resumed_study(context, "train", folder)
    else:
        named = cli.read_recipe(recipe, data, teacher, changes)
        options = options_of(context, folder, data=named.data.path, teacher=named.teacher, concurrent=1)
        start = StartingPoint.new(options, named)

    with open_experiment(start.options, name, start.base) as experiment:
        experiment.dataset()
        experiment.describe("train", start.base, earlier=start.earlier)
        finished = experiment.train({"train": start.base})["train"]

    for key, value in sorted(finished.metrics.items()):
        if key.startswith(f"{experiment.final_split}/"):
            experiment.display.say(f"{key}: {value:.4f}")
    experiment.display.say(f"checkpoint: {finished.checkpoint}\nMLflow: {experiment.tracker.address}")
    experiment.display.say(f"next: siclip-platform report --out {quote(str(start.options.out))}")


app = as_app(train_siclip)

if __name__ == "__main__":
    guarded(app)
