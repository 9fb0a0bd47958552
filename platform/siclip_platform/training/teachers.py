"""The teacher that a recipe is distilled from: one model, several, or embeddings stored beside the data."""

from __future__ import annotations

from collections.abc import Sequence

from siclip.errors import UserError
from siclip.teachers import StoredTeacher, Teacher, TeacherEnsemble
from siclip_platform.datasets.derived.embeddings.layout import EmbeddingLayout
from siclip_platform.datasets.derived.embeddings.teacher import load_teacher
from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.datasets.sidecar import Sidecar, open_sidecar
from siclip_platform.recipes.control import DISTILLATION
from siclip_platform.recipes.recipe import Recipe


def teacher_source(recipe: Recipe) -> Teacher | None:
    """Return the teacher that a recipe names other than the one to inherit from; None if it names or needs none.

    With ``data.teacher_embeddings`` it is the teacher that computed them. If ``distil_from`` names one too, it must
    be the same.

    Raises:
        UserError: a teacher cannot be loaded, or the embeddings are missing or of another teacher.
    """
    if not recipe.loss.needs_teacher:
        return None
    if not recipe.data.teacher_embeddings:
        return _combined([load_teacher(name) for name in recipe.distil_from])
    stored = _stored(recipe)
    # naming the teacher as well is harmless if it is the same, and a mistake otherwise
    if recipe.distil_from:
        named = _combined([load_teacher(name) for name in recipe.distil_from])
        assert named is not None
        if named.identity != stored.name:
            raise UserError(
                f"data.teacher_embeddings {recipe.data.teacher_embeddings!r} are of the teacher {stored.name!r}, and "
                f"distil_from names {named.identity!r}: remove distil_from, or embed with that teacher"
            )
    return stored


def check_teachers_are_used(recipe: Recipe) -> None:
    """Refuse a teacher that has no effect.

    Raises:
        UserError: the recipe names one, with what to change.
    """
    needed, embeddings = recipe.loss.needs_teacher, recipe.data.teacher_embeddings
    unused = "no part of the loss uses a teacher"
    weights = ", ".join(f"loss.{name}" for name in DISTILLATION)
    for name, given in (("distil_from", recipe.distil_from), ("data.teacher_embeddings", embeddings)):
        if given and not needed:
            raise UserError(f"{name} has no effect: {unused}; set one of {weights} above 0, or remove it")
    # a student may inherit from a teacher without being distilled from it
    other = "distil_from" if recipe.distil_from else "data.teacher_embeddings" if embeddings else None
    if recipe.teacher and not recipe.model.inherit and (other or not needed):
        why = f"{other} names what to distil from" if other else unused
        raise UserError(f"teacher has no effect: {why}, and model.inherit is false; remove teacher, or inherit")


def _combined(teachers: Sequence[Teacher]) -> Teacher | None:
    """One as it is, several as an ensemble."""
    if not teachers:
        return None
    return teachers[0] if len(teachers) == 1 else TeacherEnsemble(teachers)


def _stored(recipe: Recipe) -> StoredTeacher:
    """The one teacher of the embeddings beside every dataset of a recipe."""
    name = recipe.data.teacher_embeddings
    assert name
    folders = [recipe.data.path, *(part.path for part in recipe.data.mix)]
    sidecars = [open_sidecar(open_dataset(folder), "embeddings", name) for folder in folders]
    first, *others = (_made_by(sidecar) for sidecar in sidecars)
    for sidecar, made_by in zip(sidecars[1:], others, strict=True):
        if made_by != first:
            raise UserError(
                f"embeddings {name!r}: those in {sidecars[0].folder} are of the teacher {first[0]!r} (widths "
                f"{first[1]}), those in {sidecar.folder} of {made_by[0]!r} (widths {made_by[1]}): embed every "
                "dataset with the same teacher"
            )
    identity, widths, logit_scale = first
    return StoredTeacher(widths, logit_scale, identity)


def _made_by(sidecar: Sidecar) -> tuple[str, tuple[int, int], float]:
    layout = EmbeddingLayout.of(sidecar.manifest)
    return layout.teacher, layout.widths, layout.logit_scale
