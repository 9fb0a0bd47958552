"""What is rehearsed: the recipe of the whole job, its source, and the small recipe that is trained instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from siclip.config import Config
from siclip_platform.datasets.derived.captions.config import COCA, TAG
from siclip_platform.datasets.importing.parts import ImportConfig
from siclip_platform.datasets.importing.sources.find import ImportSource
from siclip_platform.recipes.recipe import Recipe

DATASET = "data"
TRUNK_CACHE = "trunk-cache"
CPU_BATCH = 32
"""The batch size on a machine without a GPU, where a step of the whole batch could take minutes."""


class Rehearsal(Config):
    """One rehearsal; ``FOLDER/rehearsal.json`` hands it to the processes of the stages.

    Attributes:
        recipe: of the whole job, its length in steps.
        named: the recipe's name or file, as the user gave it.
        changes: to that recipe, each PATH=VALUE; they are in ``recipe``.
        sources: of the whole job, as the user gave them.
        import_options: of the whole import, as words of a command line.
        sample: the rows of the sources that are taken.
        importing: how they are imported.
        whole_rows: of the sources, about.
        folder: the scratch folder.
        steps: of the training.
        on_gpu: whether stages compute on a GPU, where the training keeps the recipe's batch size.
        max_bad_share: of the rows.
        captioner: the model that writes the caption sets that the recipe reads.
        pretrained: its tag or checkpoint.
        per_image: captions per image.
        given_captions: options of `data captions`, which then makes the caption sets instead; empty: none.
        augmentations: crops per image that the teacher embeds.
    """

    recipe: Recipe
    named: str
    changes: tuple[str, ...] = ()
    sources: tuple[str, ...]
    import_options: tuple[str, ...] = ()
    sample: ImportSource
    importing: ImportConfig
    whole_rows: int = Field(ge=1)
    folder: Path
    steps: int = Field(12, ge=4, le=10_000)
    on_gpu: bool = False
    max_bad_share: float = Field(0.01, ge=0, le=1)
    captioner: str = COCA
    pretrained: str = TAG
    per_image: int = Field(3, ge=1, le=1024)
    given_captions: tuple[str, ...] = ()
    augmentations: int = Field(10, ge=1, le=1024)

    @property
    def beside(self) -> str | None:
        """The caption set and embedding set that the import writes (DataCompDR)."""
        return self.importing.beside.name if self.importing.beside else None

    @property
    def dataset(self) -> Path:
        return self.folder / DATASET

    @property
    def needs_teacher(self) -> bool:
        embedded = self.beside is not None and self.recipe.data.teacher_embeddings == self.beside
        return self.recipe.model.inherit or (self.recipe.loss.needs_teacher and not embedded)

    @property
    def batch_size(self) -> int:
        whole = self.recipe.training.batch_size
        return whole if self.on_gpu else min(whole, CPU_BATCH)

    def small_recipe(self) -> Recipe:
        """The recipe on the scratch dataset, of a few steps that each save a checkpoint.

        Everything that happens late in the whole job happens within these steps too: the stages of a loss schedule
        follow each other step by step, and weights that thaw do so halfway.
        """
        recipe, size = self.recipe, self.batch_size
        training = recipe.training
        values: dict[str, Any] = {
            "data.path": str(self.dataset),
            "data.limit": 0,
            "training.steps": self.steps,
            "training.warmup_steps": 1,
            "training.batch_size": size,
            "training.log_every": 1,
            "training.checkpoint_every": 1,
            "training.evaluate_every": self.steps // 2,
        }
        if recipe.data.trunk_cache:
            values["data.trunk_cache"] = str(self.folder / TRUNK_CACHE)
        if training.thaw_step:
            values["training.thaw_step"] = self.steps // 2
        if recipe.model.block_regression_steps:
            values["model.block_regression_steps"] = 2
        if recipe.loss.schedule:
            stages = recipe.loss.schedule[-(self.steps - 2) :]
            values["loss.schedule"] = [
                stage.model_dump(mode="json") | {"step": number} for number, stage in enumerate(stages, 1)
            ]
        if isinstance(training.micro_batch_size, int) and training.micro_batch_size and size < training.batch_size:
            values["training.micro_batch_size"] = size // 2
        if training.cooldown_steps:
            values["training.cooldown_share"] = 0.25
        return recipe.updated(values)
