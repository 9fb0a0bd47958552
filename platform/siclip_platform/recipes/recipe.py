"""A recipe is a whole experiment: data, model, teacher, loss, training, evaluation. Its hash is its identity."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from siclip.config import Config, FreezePolicy, ImageSasPConfig, LossConfig, SasPConfig, TrainingConfig, Weight
from siclip.data.config import AugmentConfig, CaptionPolicy
from siclip.errors import UserError
from siclip_platform.storage.hashing import canonical_hash

Share = Annotated[float, Field(ge=0, le=1)]


class MixedDataset(Config):
    """A dataset beside ``data.path``. ``weight``: how often each of its samples comes for one time that a sample of
    ``data.path`` does. ``limit``, ``captions``: as in the data section."""

    path: str
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    limit: int = Field(0, ge=0)
    captions: tuple[str, ...] = ()


class DataConfig(Config):
    """Where the pairs come from, which of them, and what a pair looks like.

    ``path`` is a dataset folder (see `siclip_platform.datasets`); validation and test come from it alone. ``mix``:
    further ones to train on. ``limit``: train on the first so many samples of a fixed order, in which a smaller
    limit's samples lie within a larger one's; 0: on all.

    ``captions``: names of caption sets that lie beside the dataset; theirs follow the dataset's own.
    ``teacher_embeddings``: name of an embedding set beside every dataset, read with the samples in the crops that it
    was made of.
    ``synthetic_share``, ``synthetic_captions`` and ``caption_weights`` are the `CaptionPolicy`. ``unique_captions``:
    rearrange samples within a window so that no batch has a caption twice. ``augment``: see `AugmentConfig`.
    ``scaled_decode``: a JPEG at least twice as large as needed is decoded at a lower scale (faster, pixels differ a
    little). ``reader``: what makes batches under Ray Train, threads of the training process or Ray Data tasks; both
    give the same. ``concurrent_reads``: so many of them. ``reader_nodes``: labels of the nodes that those tasks run
    on, of any if none is named.

    ``trunk_cache``: a folder where the outputs of a frozen trunk are kept; written by the first run that names it,
    read by all others of the same trunk and data. ``augmentations``: so many fixed random crops of each image are
    kept there; 1: the plain image. With ``teacher_embeddings`` the crops that they are of are kept.
    """

    path: str
    mix: tuple[MixedDataset, ...] = ()
    limit: int = Field(0, ge=0)
    captions: tuple[str, ...] = ()
    teacher_embeddings: str | None = None
    synthetic_share: Share = 0.5
    synthetic_captions: int = Field(0, ge=0, description="synthetic captions of a sample that are used; 0: all")
    caption_weights: dict[str, Weight] = Field({}, description="by the model that wrote a caption, or its source")
    unique_captions: bool = False
    augment: AugmentConfig = AugmentConfig()
    scaled_decode: bool = True
    window_row_groups: int = Field(8, ge=1, description="row groups shuffled together")
    reader: Literal["threads", "ray"] = "threads"
    concurrent_reads: int = Field(2, ge=1, description="threads or tasks that read and decode at the same time")
    reader_nodes: dict[str, str] = Field({}, description="by the label's name, as ray start --labels gives it")
    trunk_cache: str | None = None
    augmentations: int = Field(1, ge=1)

    @property
    def caption_policy(self) -> CaptionPolicy:
        return CaptionPolicy(
            synthetic_share=self.synthetic_share,
            synthetic_captions=self.synthetic_captions,
            weights=self.caption_weights,
        )

    @model_validator(mode="after")
    def _parts_agree(self) -> DataConfig:
        if self.unique_captions and self.mix:
            raise ValueError("unique_captions are arranged within one dataset: leave out unique_captions or mix")
        if self.trunk_cache and (self.mix or not self.augment.is_off):
            raise ValueError(
                "trunk_cache keeps features of one dataset, of plain images or fixed crops: leave out mix and augment"
            )
        if self.teacher_embeddings and self.augmentations > 1:
            raise ValueError(
                "teacher_embeddings bring their own crops, which a trunk cache keeps: leave out augmentations"
            )
        if self.reader_nodes and self.reader != "ray":
            raise ValueError("reader_nodes place the tasks of Ray Data: set reader to ray, or leave reader_nodes out")
        if self.teacher_embeddings and not self.augment.is_off:
            raise ValueError("teacher_embeddings are of stored crops, which are replayed: leave out augment")
        return self


class StudentConfig(Config):
    """The model to build, by registry name, and what it takes over from its teacher.

    ``image_sharing`` and ``text_sharing``: patterns, None for the model's default. ``image_sasp`` and ``text_sasp``:
    options of the SAS-P blocks. ``context_length``: tokens that the student sees, None for the model's own; a shorter
    one cuts captions and inherited positions, the teacher still sees its own.
    ``inherit``: copy the teacher's weights wherever the structure is the same.
    ``freeze``: which of them do not train: ``inherited`` all outside the SAS-P blocks, ``before_sasp`` only those
    before the first SAS-P block of each tower, ``none`` none; ``training.thaw_step`` ends it.
    ``block_regression_steps``: so many batches, before the first step, fit each SAS-P block to its teacher's block.
    """

    name: str
    image_sharing: str | None = None
    text_sharing: str | None = None
    image_sasp: ImageSasPConfig = ImageSasPConfig()
    text_sasp: SasPConfig = SasPConfig()
    context_length: int | None = Field(None, ge=8)
    inherit: bool = True
    freeze: FreezePolicy = "inherited"
    block_regression_steps: int = Field(0, ge=0)


class EvaluationConfig(Config):
    """The evaluations in training, every ``training.evaluate_every`` steps.

    ``validation_samples``: how many samples of the validation split they look at; 0 takes all. ``subset_seed``: which
    ones. ``max_share``: an evaluation that would bring them all above this share of the run's time is left out, and
    logged; the first and the last are always made. 1 leaves none out, as a study needs it.
    """

    validation_samples: int = Field(500, ge=0)
    subset_seed: int = Field(0, ge=0)
    max_share: float = Field(1.0, gt=0, le=1)


class Recipe(Config):
    """One experiment, complete: two runs with equal recipes compute the same.

    ``teacher``: what the student inherits from and, unless ``distil_from`` names others, is distilled from. Those are
    checkpoints of ours or ``open_clip:NAME:TAG``, TAG a pretrained tag or a path; several make an ensemble.
    """

    data: DataConfig
    model: StudentConfig
    teacher: str | None = Field(None, description="checkpoint of the teacher")
    distil_from: tuple[str, ...] = ()
    loss: LossConfig = LossConfig()
    training: TrainingConfig
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _inheritance_agrees(self) -> Recipe:
        if self.model.block_regression_steps and not self.model.inherit:
            raise ValueError("model.block_regression_steps needs model.inherit: set it to true, or the steps to 0")
        if self.training.thaw_step and (not self.model.inherit or self.model.freeze == "none"):
            raise ValueError(
                "training.thaw_step has nothing to thaw: it needs model.inherit true and model.freeze 'inherited' or "
                "'before_sasp'; or set it to 0"
            )
        late = [stage.step for stage in self.loss.schedule if stage.step >= self.training.steps]
        if late:
            raise ValueError(f"loss.schedule: step {late[0]} is not before training.steps {self.training.steps}")
        if self.data.trunk_cache:
            self._check_cached_trunk()
        elif self.data.augmentations > 1:
            raise ValueError("data.augmentations are crops kept in a trunk cache: set data.trunk_cache to a folder")
        return self

    def _check_cached_trunk(self) -> None:
        wrong = {
            "model.inherit true": not self.model.inherit,
            "model.freeze 'inherited' or 'before_sasp'": self.model.freeze == "none",
            "training.thaw_step 0": self.training.thaw_step > 0,
            "model.block_regression_steps 0": self.model.block_regression_steps > 0,
            "model.context_length null": self.model.context_length is not None,
            "distil_from to checkpoints of the same trunk": not self.data.teacher_embeddings
            and any(s.startswith("open_clip:") for s in self.distil_from),
        }
        needs = [what for what, problem in wrong.items() if problem]
        if needs:
            raise ValueError(f"data.trunk_cache keeps outputs of a trunk that never trains: set {', '.join(needs)}")

    @property
    def hash(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical JSON."""
        return canonical_hash(self.model_dump(mode="json"), digits=12)

    def flat(self) -> dict[str, Any]:
        """Dotted path → value, as MLflow parameters are named."""
        return flatten(self.model_dump(mode="json"))

    def updated(self, values: Mapping[str, Any]) -> Recipe:
        """A new recipe with the fields at these dotted paths replaced, validated again.

        Raises:
            UserError: a path does not exist or a value does not fit, with the field's name.
        """
        tree = self.model_dump(mode="json")
        for path, value in values.items():
            find_field(type(self), path)
            node = tree
            rest = path
            while "." in rest and rest not in node and rest.partition(".")[0] in node:
                key, _, rest = rest.partition(".")
                node = node[key]
            node[rest] = value
        return parse_recipe(tree, "recipe")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping → dotted paths."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat.update(flatten(value, f"{path}.") if isinstance(value, Mapping) else {path: value})
    return flat


def find_field(model: type[Config], path: str) -> FieldInfo:
    """The field at a dotted path of a config class.

    Raises:
        UserError: there is none; the message lists what stands at that place.
    """
    head, _, rest = path.partition(".")
    field = model.model_fields.get(head)
    if field is None:
        raise UserError(f"no recipe field {path!r} in {model.__name__}: it has {', '.join(model.model_fields)}")
    if not rest:
        return field
    value_type = get_args(field.annotation)[1:] if get_origin(field.annotation) is dict else ()
    if value_type:  # a mapping: what follows is a key, which may hold dots
        return FieldInfo.from_annotation(value_type[0])
    if not (isinstance(field.annotation, type) and issubclass(field.annotation, Config)):
        raise UserError(f"recipe field {head!r} has no parts, so there is no {path!r}")
    return find_field(field.annotation, rest)


def parse_recipe(tree: Any, place: str) -> Recipe:
    """Validate a recipe; every error names the field and the place.

    Raises:
        UserError: with one line per wrong field.
    """
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(str(part) for part in item['loc']) or '(recipe)'}: {item['msg']}" for item in error.errors()
        ]
        raise UserError(f"{place} is not a valid recipe:\n" + "\n".join(lines)) from None


def load_recipe(path: Path) -> Recipe:
    """Read a recipe from a YAML or JSON file.

    Raises:
        UserError: the file is missing, is not YAML, or does not hold a valid recipe.
    """
    if not path.is_file():
        raise UserError(f"recipe {path} does not exist")
    try:
        tree = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path} is not YAML: {error}") from None
    return parse_recipe(tree, f"recipe {path}")
