"""What a preparation builds: the dataset, captions and embeddings that a recipe reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from siclip.errors import UserError
from siclip_platform.recipes.recipe import Recipe

NAME = "coca"


@dataclass(frozen=True)
class Preparation:
    """The folder of a dataset and the names of what is built beside it.

    Attributes:
        folder: of the dataset.
        captions: name of the caption set.
        embeddings: name of the embedding set; None: no embeddings.
        embedded: the caption sets whose texts the teacher embeds.
        teacher: a checkpoint or ``open_clip:NAME:TAG``.
    """

    folder: Path
    captions: str
    embeddings: str | None
    embedded: tuple[str, ...]
    teacher: str | None

    @classmethod
    def of(cls, recipe: Recipe | None, data: str | None, teacher: str | None) -> Preparation:
        """Return what ``recipe`` reads, or without a recipe: captions, and embeddings if a teacher is given.

        Args:
            recipe: names the dataset, its captions and its embeddings.
            data: the dataset's folder, if there is no recipe. Captions and embeddings are then named ``coca``.
            teacher: if there is no recipe.

        Raises:
            UserError: no local folder is given, or the recipe reads embeddings but has no teacher.
        """
        folder = recipe.data.path if recipe else data
        if not folder:
            raise UserError("name the dataset's folder with --data, or a recipe that has it with --recipe")
        if "://" in folder:
            raise UserError(f"{folder}: a dataset is built in a local folder; name one with --data")
        if recipe is None:
            return cls(Path(folder), NAME, NAME if teacher else None, (NAME,), teacher)
        stored = recipe.data.teacher_embeddings
        if stored and not recipe.teacher:
            raise UserError(f"the recipe reads the embeddings {stored!r} and has no teacher: name it with --teacher")
        captions = recipe.data.captions or (NAME,)
        return cls(Path(folder), captions[0], stored, captions, recipe.teacher)

    @property
    def to_train(self) -> str:
        """The options of a training command that reads it."""
        named = f"--data {self.folder} --set data.captions=[{','.join(self.embedded)}]"
        return named + (f" --set data.teacher_embeddings={self.embeddings}" if self.embeddings else "")
