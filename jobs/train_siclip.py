"""Train one recipe under Ray Train, and measure it on the test split.

python jobs/train_siclip.py --preset digits-teacher --data data/digits
ray job submit -- python jobs/train_siclip.py --recipe /shared/siclip-s0.yaml --out /shared/runs/siclip-s0
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from siclip_platform.cli.experiments import (
    AddressOption,
    DataOption,
    PresetOption,
    RecipeOption,
    RegisterOption,
    SetOption,
    TeacherOption,
    TrackingOption,
    VerboseOption,
    read_recipe,
)
from siclip_platform.cli.guard import guarded
from siclip_platform.opening import open_experiment
from siclip_platform.options import Options, default_out


def train_siclip(
    recipe: RecipeOption = None,
    preset: PresetOption = None,
    data: DataOption = None,
    teacher: TeacherOption = None,
    changes: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder for everything that is written.")] = None,
    name: Annotated[str, typer.Option(help="Name of the run.")] = "train",
    workers: Annotated[int, typer.Option(min=1, help="Processes that share a batch, each with a GPU.")] = 1,
    register: RegisterOption = None,
    tracking_uri: TrackingOption = None,
    address: AddressOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Train one recipe under Ray Train, track it in MLflow, keep its checkpoint, measure it on the test split."""
    chosen = read_recipe(recipe, preset, data, teacher, changes)
    options = Options(
        out=(out or default_out().with_name("train")).resolve(), tracking_uri=tracking_uri, address=address,
        concurrent=1, workers=workers, verbose=verbose, register=register, data=Path(chosen.data.path),
    )  # fmt: skip

    with open_experiment(options, name, chosen) as experiment:
        experiment.dataset()
        finished = experiment.train({"train": chosen})["train"]

    for key, value in sorted(finished.metrics.items()):
        if key.startswith("test/"):
            experiment.display.say(f"{key}: {value:.4f}")
    experiment.display.say(f"checkpoint: {finished.checkpoint}\nMLflow: {experiment.tracker.address}")


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(train_siclip)

if __name__ == "__main__":
    guarded(app)
