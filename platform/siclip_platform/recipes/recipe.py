"""A recipe is a whole experiment: data, model, teacher, loss, training, evaluation. Its hash is its identity."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from siclip.config import (
    LARGEST_CONTEXT,
    LARGEST_COUNT,
    Config,
    FreezePolicy,
    ImageSasPConfig,
    LossConfig,
    SasPConfig,
    TrainingConfig,
    Weight,
    replaced_by,
)
from siclip.data.config import AugmentConfig, CaptionPolicy
from siclip.errors import UserError
from siclip.models.registry import base_of, list_models, model_config
from siclip.models.sharing import parse_pattern
from siclip.open_clip_models import OPEN_CLIP, OURS
from siclip_platform.recipes.problems import Problems, dotted, explain
from siclip_platform.storage.hashing import canonical_hash

Share = Annotated[float, Field(ge=0, le=1)]
LARGEST_LIMIT = 10**15
"""The largest number of samples, above every dataset; positions in the order of many epochs still fit in 64 bits."""


class MixedDataset(Config):
    """A dataset to train on in addition to ``data.path``.

    Attributes:
        path: the dataset, a folder or a URI.
        weight: how often each of its samples is drawn for each time that a sample of ``data.path`` is.
        limit: as ``data.limit``, of this dataset.
        captions: as ``data.captions``, beside this dataset.
    """

    path: str
    weight: float = Field(1.0, gt=0, le=1e6)
    limit: int = Field(0, ge=0, le=LARGEST_LIMIT)
    captions: tuple[str, ...] = ()


class DataConfig(Config):
    """Which samples to train on, and what each of them contains.

    Attributes:
        path: the dataset, a folder or a URI (see `siclip_platform.datasets`). Validation and test use it alone.
        mix: further datasets to train on.
        limit: train on the first N samples of a fixed order, so that a smaller limit's samples are among a larger
            one's; 0 trains on all.
        captions: names of caption sets stored beside the dataset; their captions follow the dataset's own.
        teacher_embeddings: name of an embedding set stored beside every dataset. Its embeddings are read with the
            samples, in the crops that they were computed from.
        negatives: name of a set of false captions stored beside every dataset (``data negatives``). They are read if
            a part of the loss uses them.
        negatives_per_sample: false captions that a sample brings along, drawn again in each epoch.
        synthetic_share: the probability of a synthetic caption, for a sample that has original ones too.
        synthetic_captions: how many synthetic captions of a sample are used; 0 uses all.
        caption_weights: weight of a caption among those of its source, by the model that wrote it or by its source.
        unique_captions: rearrange samples within a window so that no batch contains a caption twice.
        augment: how images are augmented.
        scaled_decode: decode a JPEG that is at least twice as large as needed at a lower scale: faster, and pixels
            differ slightly.
        window_row_groups: row groups that are shuffled together.
        reader: what reads row groups: Ray Data tasks, or threads of the training process. By default Ray Data reads
            under Ray Train, and threads read in a search's trials. Both give the same batches.
        decode: what decodes the images that Ray Data reads: threads of the training process, or the tasks, where
            the nodes that read have more cores than the one that trains.
        concurrent_reads: threads that read and decode at the same time; with Ray Data also the number of tasks.
        reader_nodes: labels of the nodes that Ray Data tasks run on, as ``ray start --labels`` sets them; empty for
            any node.
        trunk_cache: a folder for the outputs of a frozen trunk. The first run that names it writes it; all others
            with the same trunk and data read it.
        augmentations: fixed random crops of each image in the trunk cache; 1 caches the plain image. With
            ``teacher_embeddings`` the cache stores the crops of the embeddings.
    """

    path: str
    mix: tuple[MixedDataset, ...] = ()
    limit: int = Field(0, ge=0, le=LARGEST_LIMIT)
    captions: tuple[str, ...] = ()
    teacher_embeddings: str | None = None
    negatives: str | None = None
    negatives_per_sample: int = Field(1, ge=1, le=64)
    synthetic_share: Share = 0.5
    synthetic_captions: int = Field(
        0, ge=0, le=LARGEST_COUNT, description="synthetic captions of a sample that are used; 0: all"
    )
    caption_weights: dict[str, Weight] = Field({}, description="by the model that wrote a caption, or its source")
    unique_captions: bool = False
    augment: AugmentConfig = AugmentConfig()
    scaled_decode: bool = True
    window_row_groups: int = Field(8, ge=1, le=2**16, description="row groups shuffled together")
    reader: Literal["threads", "ray"] | None = None
    decode: Literal["trainer", "reader"] = "trainer"
    concurrent_reads: int = Field(
        2, ge=1, le=1024, description="threads or tasks that read and decode at the same time"
    )
    reader_nodes: dict[str, str] = Field({}, description="by the label's name, as ray start --labels gives it")
    trunk_cache: str | None = None
    augmentations: int = Field(1, ge=1, le=1024)

    @property
    def caption_policy(self) -> CaptionPolicy:
        return CaptionPolicy(
            synthetic_share=self.synthetic_share,
            synthetic_captions=self.synthetic_captions,
            weights=self.caption_weights,
        )

    @model_validator(mode="after")
    def _parts_agree(self) -> DataConfig:
        problems = Problems()
        if self.unique_captions and self.mix:
            problems.add(
                "unique_captions are arranged within one dataset: remove unique_captions or mix", "unique_captions"
            )
        if self.trunk_cache and (self.mix or not self.augment.is_off):
            problems.add(
                "trunk_cache stores features of one dataset, of plain images or fixed crops: remove mix and augment",
                "trunk_cache",
            )
        if self.teacher_embeddings and self.augmentations > 1:
            problems.add(
                "teacher_embeddings bring their own crops, which a trunk cache stores: remove augmentations",
                "augmentations",
            )
        if self.reader_nodes and self.reader == "threads":
            problems.add("reader_nodes place the tasks of Ray Data: remove this, or reader: threads", "reader_nodes")
        if self.decode == "reader" and self.reader == "threads":
            problems.add("the tasks of Ray Data are what decodes with 'reader': remove reader: threads", "decode")
        if self.teacher_embeddings and not self.augment.is_off:
            problems.add("teacher_embeddings are of stored crops, which are replayed: remove augment", "augment")
        problems.check()
        return self


class StudentConfig(Config):
    """The model to build, and what it inherits from its teacher.

    Attributes:
        name: the model's name in the registry.
        image_sharing: sharing pattern of the image tower; None for the model's default.
        text_sharing: sharing pattern of the text tower; None for the model's default.
        image_sasp: options of the image tower's SAS-P blocks.
        text_sasp: options of the text tower's SAS-P blocks.
        context_length: tokens that the student reads; None for the model's default. A shorter context cuts captions
            and inherited positions; the teacher keeps its own.
        inherit: copy the teacher's weights wherever the structure is the same.
        freeze: which inherited weights do not train, until ``training.thaw_step``: ``inherited`` all outside the
            SAS-P blocks, ``before_sasp`` those before each tower's first SAS-P block, ``none`` none.
        block_regression_steps: batches that fit each SAS-P block to its teacher's block before the first step.
    """

    name: str
    image_sharing: str | None = None
    text_sharing: str | None = None
    image_sasp: ImageSasPConfig = ImageSasPConfig()
    text_sasp: SasPConfig = SasPConfig()
    context_length: int | None = Field(None, ge=8, le=LARGEST_CONTEXT)
    inherit: bool = True
    freeze: FreezePolicy = "inherited"
    block_regression_steps: int = Field(0, ge=0, le=LARGEST_COUNT)

    @model_validator(mode="after")
    def _patterns_fit(self) -> StudentConfig:
        # Another name is refused with the list of models when the model is built.
        if self.name not in list_models():
            return self
        config = model_config(self.name)
        towers = (
            ("image_sharing", self.image_sharing, config.image.layers[-1]),
            ("text_sharing", self.text_sharing, config.text.layers),
        )
        problems = Problems()
        for field, pattern, blocks in towers:
            try:
                if pattern is not None:
                    parse_pattern(pattern, blocks)
            except UserError as error:
                problems.add(f"{error} of {self.name}, or null for the model's own pattern", field)
        problems.check()
        return self


class EvaluationConfig(Config):
    """Evaluations during training, every ``training.evaluate_every`` steps.

    Attributes:
        validation_samples: samples of the validation split to evaluate on; 0 uses all.
        subset_seed: seed that selects them.
        max_share: an evaluation that would raise the share of the run's time spent on evaluations above this is
            skipped and logged; the first and the last are never skipped. 1 skips none, as a study requires.
    """

    validation_samples: int = Field(500, ge=0, le=LARGEST_LIMIT)
    subset_seed: int = Field(0, ge=0, lt=2**32)
    max_share: float = Field(1.0, gt=0, le=1)


class Recipe(Config):
    """One experiment, complete: two runs with equal recipes compute the same.

    Attributes:
        teacher: what the student inherits from and, unless ``distil_from`` names others, is distilled from: a
            checkpoint of this project or ``open_clip:NAME:TAG``, where TAG is a pretrained tag or a path.
        distil_from: teachers to distill from instead; several form an ensemble.
    """

    data: DataConfig
    model: StudentConfig
    teacher: str | None = Field(None, description="checkpoint of the teacher")
    distil_from: tuple[str, ...] = ()
    loss: LossConfig = LossConfig()
    training: TrainingConfig
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _parts_agree(self) -> Recipe:
        problems = Problems()
        if self.model.block_regression_steps and not self.model.inherit:
            problems.add(
                "block regression needs model.inherit: set it to true, or the steps to 0",
                *("model", "block_regression_steps"),
            )
        if self.training.thaw_step and (not self.model.inherit or self.model.freeze == "none"):
            problems.add(
                "there is nothing to thaw: this needs model.inherit true and model.freeze 'inherited' or "
                "'before_sasp'; or set it to 0",
                *("training", "thaw_step"),
            )
        for index, stage in enumerate(self.loss.schedule):
            if 0 < self.training.steps <= stage.step:
                text = f"step {stage.step} is not before training.steps {self.training.steps}; lower it or remove it"
                problems.add(text, "loss", "schedule", index)
                break
        if self.loss.uses_generated and not self.data.negatives:
            text = (
                "a part of the loss uses generated false captions: name their set, as data negatives has written it"
            )
            problems.add(text, "data", "negatives")
        self._check_base(problems)
        if self.data.trunk_cache:
            self._check_cached_trunk(problems)
        elif self.data.augmentations > 1:
            text = "these are crops stored in a trunk cache: set data.trunk_cache to a folder"
            problems.add(text, "data", "augmentations")
        problems.check()
        return self

    def _check_base(self, problems: Problems) -> None:
        """What a checkpoint contains is known only when it is read; an open_clip name says it."""
        student = self.model.name
        if not (self.teacher or "").startswith(OPEN_CLIP) or not self.model.inherit or student not in list_models():
            return
        name = str(self.teacher).removeprefix(OPEN_CLIP).partition(":")[0]
        base = base_of(student)
        if OURS.get(name) != base:
            fitting = [theirs for theirs, ours in OURS.items() if ours == base]
            remedy = f"open_clip:{fitting[0]}:TAG" if fitting else f"a checkpoint of {base}"
            problems.add(f"{student} cannot inherit from open_clip's {name!r}; name {remedy}", "teacher")

    def _check_cached_trunk(self, problems: Problems) -> None:
        wrong = {
            "model.inherit true": not self.model.inherit,
            "model.freeze 'inherited' or 'before_sasp'": self.model.freeze == "none",
            "training.thaw_step 0": self.training.thaw_step > 0,
            "model.block_regression_steps 0": self.model.block_regression_steps > 0,
            "model.context_length null": self.model.context_length is not None,
            "distil_from to checkpoints of the same trunk": not self.data.teacher_embeddings
            and any(s.startswith(OPEN_CLIP) for s in self.distil_from),
        }
        needs = [what for what, is_wrong in wrong.items() if is_wrong]
        if needs:
            text = f"it stores outputs of a trunk that never trains: set {', '.join(needs)}"
            problems.add(text, "data", "trunk_cache")

    @property
    def hash(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical JSON."""
        return canonical_hash(self.model_dump(mode="json"), digits=12)

    def flat(self) -> dict[str, Any]:
        """Dotted path → value, as MLflow parameters are named."""
        return flatten(self.model_dump(mode="json"))

    def updated(self, values: Mapping[str, Any]) -> Recipe:
        """A new recipe with the fields at these dotted paths replaced, validated again.

        ``training.epochs`` replaces ``training.steps`` and the reverse; so do the other `siclip.config.ALTERNATIVES`.

        Raises:
            UserError: a path does not exist or a value does not fit, with the field's name.
        """
        tree = self.model_dump(mode="json")
        prefix = "training."
        given = {path.removeprefix(prefix): value for path, value in values.items() if path.startswith(prefix)}
        tree["training"] |= replaced_by(given)
        for path, value in values.items():
            find_field(type(self), path)
            node = tree
            rest = path
            # A key of a mapping may contain dots, so a key that is there is preferred to a longer path.
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


def section_of(field: FieldInfo) -> type[Config] | None:
    """The config class of a field that is a section; None for a field with a value."""
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Config) else None


def leaf_paths(model: type[Config] = Recipe, prefix: str = "") -> Iterator[str]:
    """Every dotted path of a config class that ends in a value."""
    for name, field in model.model_fields.items():
        if section := section_of(field):
            yield from leaf_paths(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def find_field(model: type[Config], path: str) -> FieldInfo:
    """The field at a dotted path of a config class.

    Raises:
        UserError: there is none; the message names the nearest paths and the fields that exist.
    """
    return _find(model, path, path, list(leaf_paths(model)))


def _find(model: type[Config], path: str, whole: str, paths: list[str]) -> FieldInfo:
    head, _, rest = path.partition(".")
    field = model.model_fields.get(head)
    if field is None:
        leaf = whole.rpartition(".")[2]
        near = difflib.get_close_matches(whole, paths, n=2) or [p for p in paths if p.rpartition(".")[2] == leaf]
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        has = ", ".join(model.model_fields)
        raise UserError(f"no recipe field {path!r} in {model.__name__}: it has {has}{hint}")
    if not rest:
        return field
    value_type = get_args(field.annotation)[1:] if get_origin(field.annotation) is dict else ()
    if value_type:  # the rest is one key of a mapping, which may contain dots
        return FieldInfo.from_annotation(value_type[0])
    section = section_of(field)
    if section is None:
        raise UserError(f"recipe field {head!r} has no parts, so there is no {path!r}; end at {head!r}")
    return _find(section, rest, whole, paths)


def parse_recipe(tree: Any, where: str) -> Recipe:
    """Validate a recipe that was read from something else than a file of YAML.

    Args:
        tree: the recipe as nested mappings.
        where: names it in messages.

    Raises:
        UserError: with one line ``path: problem; remedy`` per problem.
    """
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        lines = [f"  {dotted(loc) or '(recipe)'}: {text}" for loc, text in explain(error, Recipe, tree)]
        raise UserError(f"{where} is not a valid recipe:\n" + "\n".join(lines)) from None
