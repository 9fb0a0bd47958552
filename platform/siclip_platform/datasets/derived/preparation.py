"""What a preparation makes: the dataset, captions and embeddings that a recipe reads, or by default their names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from siclip.errors import UserError
from siclip_platform.recipes.recipe import Recipe

NAME = "coca"


@dataclass(frozen=True)
class Preparation:
    """The dataset's folder and the names of its caption set and of its embedding set; None: no embeddings.

    ``embedded``: the caption sets whose texts the teacher embeds.
    """

    folder: Path
    captions: str
    embeddings: str | None
    embedded: tuple[str, ...]
    teacher: str | None

    @classmethod
    def of(cls, recipe: Recipe | None, data: str | None, teacher: str | None) -> Preparation:
        """What ``recipe`` reads. Without one: captions, and embeddings where a teacher is named, called ``coca``.

        Raises:
            UserError: no folder of this machine is named, or embeddings without a teacher.
        """
        folder = recipe.data.path if recipe else data
        if not folder:
            raise UserError("name the dataset's folder with --data, or a recipe that has it with --recipe")
        if "://" in folder:
            raise UserError(f"{folder}: a dataset is made in a folder of this machine; name one with --data")
        if recipe is None:
            return cls(Path(folder), NAME, NAME if teacher else None, (NAME,), teacher)
        stored = recipe.data.teacher_embeddings
        if stored and not recipe.teacher:
            raise UserError(f"the recipe reads the embeddings {stored!r} and has no teacher: name it with --teacher")
        captions = recipe.data.captions or (NAME,)
        return cls(Path(folder), captions[0], stored, captions, recipe.teacher)

    @property
    def to_train(self) -> str:
        """What reads it, as options of a command."""
        named = f"--data {self.folder} --set data.captions=[{','.join(self.embedded)}]"
        return named + (f" --set data.teacher_embeddings={self.embeddings}" if self.embeddings else "")
