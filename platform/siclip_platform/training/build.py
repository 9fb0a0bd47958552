"""Build a recipe: its model, teachers, trainer, stream and evaluation.

Training here and under Ray Train build the same trainer and feed it the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from siclip.data.batch import Batch
from siclip.errors import UserError
from siclip.evaluation.cost import latency
from siclip.evaluation.evaluate import evaluate
from siclip.models.clip import Clip, count_parameters
from siclip.teachers import ModelTeacher
from siclip.training.block_regression import check_blocks
from siclip.training.setup import make_trainer
from siclip.training.trainer import Trainer
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.recipes.student import recipe_model
from siclip_platform.storage import as_path
from siclip_platform.storage.checkpoints import read_model
from siclip_platform.stream import Stream, validation_set
from siclip_platform.stream.reading import IN_PROCESS, Reader, stream_batches
from siclip_platform.stream.trunk_features import CachedStream, build_trunk_cache
from siclip_platform.training.budget import Budgeted
from siclip_platform.training.teachers import check_teachers_are_used, teacher_source

CHECKPOINT = "checkpoint.pt"
Log = Callable[[int, Mapping[str, float]], None]
"""Takes (step, metrics): a tracker, a display."""


@dataclass(frozen=True)
class Prepared:
    """A recipe, built and ready to train.

    Attributes:
        recipe: what was built.
        trainer: the model, its teacher, losses and optimizer.
        stream: where the training's batches come from.
        evaluate: a model's metrics on the validation split, named ``validation/METRIC``.
    """

    recipe: Recipe
    trainer: Trainer
    stream: Stream | CachedStream
    evaluate: Callable[[Clip], dict[str, float]]

    def batches(
        self, start: int, stop: int, rank: int = 0, workers: int = 1, *, default: Reader = IN_PROCESS
    ) -> Iterator[Batch]:
        """Read the batches of the positions start ≤ p < stop.

        Of each batch this is the ``rank``-th of ``workers`` contiguous shares. What reads them is decided as in
        `siclip_platform.stream.reading.stream_batches`; a trunk cache is read by this process.
        """
        size = self.trainer.config.batch_size
        if isinstance(self.stream, CachedStream):
            return self.stream.batches(size, start, stop, rank, workers)
        return stream_batches(self.stream, self.recipe.data, size, start, stop, rank, workers, default=default)

    def costs(self) -> dict[str, float]:
        """Return parameters, latency and steps, in the units of the report's cost table."""
        model = self.trainer.model
        return {
            "cost/parameters_trainable": count_parameters(model, trainable=True),
            "cost/parameters_image": count_parameters(model.image_encoder),
            "cost/parameters_text": count_parameters(model.text_encoder),
            "cost/latency_ms_batch_1": latency(model, self.trainer.device),
            "cost/steps": self.trainer.config.steps,
        }


def check(recipe: Recipe, with_data: bool) -> None:
    """Build what a recipe names and discard it, so that errors appear before anything is trained.

    A trial of a search may name a teacher that it does not use, since its loss weights may be 0; here that is an
    error.

    Args:
        recipe: what to check. A student that needs a teacher is not built while the recipe names no checkpoint for
            it: the teacher may still be trained.
        with_data: open the training and validation data too.

    Raises:
        UserError: a file is missing or of the wrong format, the parts do not fit each other, or a teacher has no
            effect.
    """
    model = recipe_model(recipe)
    check_teachers_are_used(recipe)
    if recipe.teacher or not (recipe.model.inherit or recipe.loss.needs_teacher):
        build_trainer(recipe)
    if with_data:
        Stream.of(recipe, model)
        validation_set(recipe, model)


def build_trainer(recipe: Recipe) -> Trainer:
    """Build a recipe's trainer; its teacher is loaded, and the student inherits from it if the recipe asks for it.

    Raises:
        UserError: the teacher's checkpoint is missing or does not fit.
    """
    model = recipe_model(recipe)
    teacher = read_model(recipe.teacher) if recipe.teacher else None
    # otherwise the mismatch would appear only in the regression, after the data has been opened
    if recipe.model.block_regression_steps and teacher is not None:
        check_blocks(model, teacher.config)
    return make_trainer(
        model,
        recipe.loss,
        recipe.training,
        teacher=teacher,
        inherit_weights=recipe.model.inherit,
        freeze=recipe.model.freeze,
        distil_from=teacher_source(recipe),
    )


def prepare(recipe: Recipe) -> Prepared:
    """Build everything that a recipe names; a trunk cache that does not exist is computed.

    Raises:
        UserError: a file is missing or of the wrong format, or the parts do not fit each other.
    """
    trainer = build_trainer(recipe)
    config = trainer.model.config
    validation = validation_set(recipe, config)

    def validate(model: Clip) -> dict[str, float]:
        name, head = f"the model at step {trainer.step}", trainer.objective.pair_matching_head
        metrics = evaluate(model, validation, device=trainer.device, name=name, pair_head=head)
        return {f"validation/{name}": value for name, value in metrics.items()}

    stream = _training_stream(recipe, trainer)
    # so that checkpoints store the position in the data
    trainer.cursor_of = stream.cursor
    budgeted = Budgeted(
        validate,
        max_share=recipe.evaluation.max_share,
        last_step=recipe.training.steps,
        now=lambda: (trainer.step, trainer.training_seconds),
    )
    return Prepared(recipe, trainer, stream, budgeted)


def _training_stream(recipe: Recipe, trainer: Trainer) -> Stream | CachedStream:
    """The recipe's stream of images or, with a trunk cache, of stored features."""
    stream = Stream.of(recipe, trainer.model.config)
    data = recipe.data
    if not data.trunk_cache:
        return stream
    # a shared trunk's features are in the cache; any other teacher would need the images
    for teacher in getattr(trainer.teacher, "teachers", [trainer.teacher]):
        if isinstance(teacher, ModelTeacher) and not all(teacher.shares.values()):
            raise UserError(
                f"the teacher {teacher.model.config.name!r} has another trunk than the student and needs images, "
                "which data.trunk_cache replaces: distil from the model that the student inherits from, or remove "
                "data.trunk_cache"
            )
    cache = build_trunk_cache(
        trainer.model,
        as_path(data.path),
        "train",
        Path(data.trunk_cache),
        augmentations=data.augmentations,
        captions=data.captions,
        crops=data.teacher_embeddings,
    )
    return CachedStream(stream, cache)
