"""Train one recipe under Ray Train, and measure it on the test split.

python jobs/train_siclip.py --preset digits-teacher --data data/digits
ray job submit -- python jobs/train_siclip.py --recipe /shared/siclip-s0.yaml --out /shared/runs/siclip-s0
python jobs/train_siclip.py --recipe siclip-s0.yaml --data s3://bucket/cc12m --checkpoints s3://bucket/runs
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from siclip_platform.cli import experiments as cli
from siclip_platform.cli.guard import as_app, guarded
from siclip_platform.cli.tune import ResumeOption, refuse_beside_resume, resumed
from siclip_platform.storage import as_path
from siclip_platform.studies.options import Options, default_out
from siclip_platform.studies.session import open_experiment


def train_siclip(
    recipe: cli.RecipeOption = None,
    preset: cli.PresetOption = None,
    data: cli.DataOption = None,
    teacher: cli.TeacherOption = None,
    changes: cli.SetOption = None,
    out: cli.JobOutOption = None,
    name: Annotated[str, typer.Option(help="Name of the run.")] = "train",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that share a batch, each with a GPU; default: 1.")
    ] = None,
    register: cli.RegisterOption = None,
    checkpoints: cli.CheckpointsOption = None,
    artifacts: cli.ArtifactsOption = None,
    resume: ResumeOption = None,
    tracking_uri: cli.TrackingOption = None,
    address: cli.AddressOption = None,
    verbose: cli.VerboseOption = False,
) -> None:
    """Train one recipe under Ray Train, track it in MLflow, keep its checkpoint, measure it on the test split."""
    asked: dict[str, Any] = cli.where_to_keep(checkpoints, artifacts) | {
        "out": (out or default_out().with_name("train")).resolve(), "address": address, "verbose": verbose,
        "concurrent": 1,
    }  # fmt: skip
    if resume:
        refuse_beside_resume(recipe=recipe, preset=preset, data=data, teacher=teacher, set=changes, register=register)
        options, chosen = resumed(resume, None, asked | {"workers": workers}, tracking_uri, kind="train")
    else:
        chosen = cli.read_recipe(recipe, preset, data, teacher, changes)
        options = Options(
            **asked,
            tracking_uri=tracking_uri,
            register=register,
            data=as_path(chosen.data.path),
            workers=workers or 1,
        )

    with open_experiment(options, name, chosen) as experiment:
        experiment.dataset()
        if not resume:
            experiment.keep(chosen, kind="train", workers=options.workers)
        finished = experiment.train({"train": chosen})["train"]

    for key, value in sorted(finished.metrics.items()):
        if key.startswith("test/"):
            experiment.display.say(f"{key}: {value:.4f}")
    experiment.display.say(f"checkpoint: {finished.checkpoint}\nMLflow: {experiment.tracker.address}")


app = as_app(train_siclip)

if __name__ == "__main__":
    guarded(app)
