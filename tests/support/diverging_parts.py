"""A recipe whose training diverges at once, and the ids that it must leave."""

from __future__ import annotations

from pathlib import Path

import torch

from siclip.checkpoints.formats import load_model, save_checkpoint
from siclip_platform.recipes.digits import digits_student
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.training.build import prepare

BATCH, SKIPPED = 16, 2


def diverging_recipe(data: Path, teacher: Path, folder: Path) -> Recipe:
    """Distillation from a teacher with NaN weights, written to ``folder``: it gives up after `SKIPPED` steps."""
    broken = load_model(teacher)
    with torch.no_grad():
        broken.text_encoder.projection_layer.fill_(float("nan"))
    save_checkpoint(folder / "broken.pt", broken)
    return digits_student(data, teacher, steps=4).updated(
        {
            "training.batch_size": BATCH,
            "training.evaluate_every": 2,
            "training.max_skipped_steps": SKIPPED,
            "distil_from": [str(folder / "broken.pt")],
        }
    )


def assert_ids_are_written(recipe: Recipe, folder: Path) -> None:
    """``folder`` has one file, with step, image id and caption id of each sample of the skipped batches."""
    (file,) = folder.glob("*.csv")
    assert file.name == f"{recipe.hash}-diverged-at-{SKIPPED - 1}.csv"
    header, *rows = (line.split(",") for line in file.read_text().splitlines())
    assert header == ["step", "image_id", "caption_id"]
    expected = [
        [str(step), str(image), str(caption)]
        for step, batch in enumerate(prepare(recipe).batches(0, SKIPPED * BATCH))
        for image, caption in zip(batch.image_ids.tolist(), batch.caption_ids.tolist(), strict=True)
    ]
    assert rows == expected and len(rows) == SKIPPED * BATCH
