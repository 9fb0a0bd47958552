"""What a study starts from: its options, its recipe, and the recipe of a teacher that it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from siclip.errors import UserError
from siclip_platform.datasets.epochs import with_steps
from siclip_platform.recipes.digits import digits_student, digits_teacher
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.storage import absolute_model, as_path
from siclip_platform.studies.options import Options
from siclip_platform.studies.study_file import StudyFile


@dataclass(frozen=True)
class StartingPoint:
    """What a study starts from.

    Attributes:
        base: the recipe that the study is about.
        teaching: the recipe of the teacher, if the study trains one.
        definition: name or file of the space or ablation; of a resumed study the copy in its folder.
        earlier: see `StudyFile`.
    """

    options: Options
    base: Recipe
    teaching: Recipe | None = None
    definition: str = ""
    earlier: tuple[Recipe, ...] = ()

    @classmethod
    def new(
        cls, options: Options, base: Recipe, teaching: Recipe | None = None, *, definition: str = ""
    ) -> StartingPoint:
        """That of a new study; what its recipes say in epochs becomes steps.

        Raises:
            UserError: see `with_steps`.
        """
        return cls(options, with_steps(base), teaching and with_steps(teaching), definition)

    @classmethod
    def of(cls, study: StudyFile) -> StartingPoint:
        """That of a study that is resumed."""
        definition = str(study.definition or study.options.space)
        return cls(study.options, study.base, study.teaching, definition, study.earlier)

    @property
    def recipes(self) -> list[Recipe]:
        """The recipes that the study trains before its trials, and the base."""
        return [*([self.teaching] if self.teaching else []), self.base]

    def check_teacher(self) -> None:
        """Before anything is computed: a recipe that needs a teacher has one, or one will be trained.

        Raises:
            UserError: it has none.
        """
        base = self.base
        if self.teaching is None and not base.teacher and (base.model.inherit or base.loss.needs_teacher):
            raise UserError("the recipe needs a teacher and has none: name one with --teacher")


def starting_point(
    options: Options,
    given: Recipe | None,
    changes: Mapping[str, object],
    *,
    steps: int | None = None,
    teacher_steps: int | None = None,
) -> StartingPoint:
    """Where a new study starts. The options' dataset and teacher override the recipe's.

    Args:
        given: the recipe that was named; without one, the student of the digit scenes.
        changes: fields of that student, by dotted path.
        steps: of that student; None: its own.
        teacher_steps: of its teacher, which is trained if none is named; None: its own.

    Raises:
        UserError: a change does not fit.
    """
    if given is not None:
        teacher = options.teacher or (absolute_model(given.teacher) if given.teacher else None)
        data = options.data or as_path(given.data.path).resolve()
        options = options.model_copy(update={"data": data, "teacher": teacher})
    folder, teacher = options.dataset_folder, options.teacher
    base = given or digits_student(folder, steps=steps, seed=options.seed).updated(changes)
    base = base.updated({"data.path": str(folder), "teacher": teacher})
    trains = given is None and teacher is None
    teaching = digits_teacher(folder, steps=teacher_steps, seed=options.seed) if trains else None
    return StartingPoint.new(options, base, teaching, definition=options.ablation or options.space)
