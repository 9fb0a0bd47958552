"""Configs of the library: frozen, keyword-only, unknown keys refused.

They are pydantic models: a config is rebuilt from the JSON in a checkpoint, and a dotted path such as
``loss.feature_distillation`` names the same field in a search space, on the command line and among the parameters
of a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

BlockKind = Literal["attention", "sasp"]
ContrastiveBase = Literal["clip", "siglip"]
MiningStrategy = Literal["sampled", "hardest", "semi_hard", "uniform", "teacher", "annealed"]
PairHead = Literal["product", "mlp"]
GeneratedColumns = Literal["none", "own", "batch"]
TeacherMask = Literal["auto", "on", "off"]
Precision = Literal["fp32", "bf16", "fp16"]
BlockNorm = Literal["tower", "batch", "layer", "rms"]
ImageFfn = Literal["conv", "plain"]
FreezePolicy = Literal["inherited", "before_sasp", "none"]
Schedule = Literal["cosine", "constant", "constant_cooldown"]
LARGEST = 1e32
"""The largest float of a config: products of a few of them with a gradient still fit into a float32."""
LARGEST_COUNT = 2**31 - 1
"""The largest number of steps or captions, which torch and databases keep in 32 bits."""
LARGEST_BATCH = 2**20
"""The similarities of one batch of this size are 4 TiB in fp32."""
LARGEST_WIDTH = 2**16
LARGEST_DEPTH = 1024
LARGEST_CONTEXT = 2**13

MicroBatch = Annotated[int, Field(ge=0, le=LARGEST_BATCH)] | Literal["auto"]
CheckpointEvery = Annotated[int, Field(ge=0, le=LARGEST_COUNT)] | Literal["auto"]
CHECKPOINT_SECONDS = 600.0
"""Training time between two checkpoints where ``checkpoint_every`` is ``auto``."""
# timm's FastViT hard-codes the head width of its attention blocks.
TIMM_HEAD_WIDTH = 32
Weight = Annotated[float, Field(ge=0, le=LARGEST)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Config(BaseModel):
    """Base of every config: immutable; an unknown key, NaN, infinity and a truth value for a number are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic would read true as 1.
        types = _types(cls.model_fields[str(info.field_name)].annotation)
        if bool not in types and types & {int, float} and _has_truth(value):
            raise ValueError("true and false are not numbers; write a number")
        return value


def _types(annotation: Any) -> set[Any]:
    """The types that an annotation is made of."""
    arguments = get_args(annotation)
    return (
        set().union(*map(_types, arguments)) if arguments else {annotation} if isinstance(annotation, type) else set()
    )


def _has_truth(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_truth, value.values()))
    return any(map(_has_truth, value)) if isinstance(value, list | tuple) else isinstance(value, bool)


class SasPConfig(Config):
    """Options of a tower's SAS-P blocks. The defaults are the method's; every other value is experimental.

    Attributes:
        first_value: the first block keeps a value matrix and an output projection, as in arXiv 2311.01906; both
            start as identities. Where a pattern shares whole blocks, the blocks that share the first one use its
            value matrix too.
        norm: ``tower`` is the tower's default (image: BatchNorm, text: LayerNorm).
        trainable_gains: False fixes α, β, γ, β_SA and β_FF at their initial values.
    """

    first_value: bool = False
    norm: BlockNorm = "tower"
    trainable_gains: bool = True


class ImageSasPConfig(SasPConfig):
    """`SasPConfig` of the image tower.

    Attributes:
        ffn: ``conv`` keeps the depthwise 7×7 convolution before the two linear layers, ``plain`` omits it.
    """

    ffn: ImageFfn = "conv"


def _check_sasp(block: BlockKind, sharing: str, options: SasPConfig) -> None:
    if block != "sasp" and (sharing != "none" or options != type(options)()):
        raise ValueError(f"sharing patterns and sasp options require block 'sasp', this is {block!r}")


class ImageTowerConfig(Config):
    """FastViT ``mci0`` (arXiv 2311.17049); the defaults are MobileCLIP-S0's. Tuples have one entry per stage.

    Attributes:
        image_size: height and width of the input in pixels.
        squeeze_excite_downsample: whether the downsampling at the start of a stage uses squeeze-and-excite.
        layer_scale: initial layer scale of the attention and RepMixer blocks.
        projection_bias: whether the projection has a bias, as in MobileCLIP2.
        sharing: a pattern over the blocks of the last stage (see `siclip.models.sharing`); requires
            ``block="sasp"``.
        sasp: options of the SAS-P blocks; other than the defaults they require ``block="sasp"``.
    """

    image_size: int = Field(256, ge=16, le=LARGEST_CONTEXT)
    layers: tuple[Annotated[int, Field(ge=1, le=LARGEST_DEPTH)], ...] = (2, 6, 10, 2)
    widths: tuple[Annotated[int, Field(ge=1, le=LARGEST_WIDTH)], ...] = (64, 128, 256, 512)
    squeeze_excite_downsample: tuple[bool, ...] = (False, False, True, True)
    mlp_ratio: float = Field(3.0, gt=0, le=1024)
    head_width: int = Field(32, ge=1, le=LARGEST_WIDTH)
    layer_scale: float = Field(1e-5, gt=0, le=LARGEST)
    projection_bias: bool = False
    block: BlockKind = "attention"
    sharing: str = "none"
    sasp: ImageSasPConfig = ImageSasPConfig()

    @model_validator(mode="after")
    def _stages_agree(self) -> ImageTowerConfig:
        if not len(self.layers) == len(self.widths) == len(self.squeeze_excite_downsample) >= 2:
            raise ValueError(
                "layers, widths and squeeze_excite_downsample need one entry per stage, and at least two stages"
            )
        if self.widths[-1] % self.head_width:
            raise ValueError(f"last width {self.widths[-1]} is not a multiple of head_width {self.head_width}")
        if self.block == "attention" and self.head_width != TIMM_HEAD_WIDTH:
            raise ValueError(
                f"attention blocks have a head_width of {TIMM_HEAD_WIDTH}; another one requires block 'sasp'"
            )
        _check_sasp(self.block, self.sharing, self.sasp)
        return self

    @property
    def heads(self) -> int:
        return self.widths[-1] // self.head_width


class TextTowerConfig(Config):
    """``mct``, MobileCLIP's text tower (arXiv 2311.17049): RepMixer, attention or SAS-P blocks, RepMixer.

    With ``mixer_kernel=0`` it is the plain transformer of MobileCLIP2 (arXiv 2508.20691): the blocks alone.
    ``layer_scale`` then has no effect.
    """

    context_length: int = Field(77, ge=8, le=LARGEST_CONTEXT)
    vocab_size: int = Field(49408, ge=1, le=2**24)
    width: int = Field(512, ge=1, le=LARGEST_WIDTH)
    heads: int = Field(8, ge=1, le=LARGEST_WIDTH)
    layers: int = Field(4, ge=1, le=LARGEST_DEPTH)
    mlp_ratio: float = Field(4.0, gt=0, le=1024)
    mixer_kernel: int = Field(
        11,
        ge=0,
        le=LARGEST_CONTEXT,
        description="odd, so that the window is centred on a token; 0: no RepMixers",
    )
    layer_scale: float = Field(1e-5, gt=0, le=LARGEST)
    block: BlockKind = "attention"
    sharing: str = "none"
    sasp: SasPConfig = SasPConfig()

    @model_validator(mode="after")
    def _heads_divide(self) -> TextTowerConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.has_mixers and self.mixer_kernel % 2 == 0:
            raise ValueError(
                f"mixer_kernel {self.mixer_kernel} is even: only an odd kernel keeps the sequence length"
            )
        _check_sasp(self.block, self.sharing, self.sasp)
        return self

    @property
    def has_mixers(self) -> bool:
        """Whether the blocks stand between two RepMixers."""
        return self.mixer_kernel > 0


class ModelConfig(Config):
    """Two towers into one embedding space. Contains everything needed to rebuild the model."""

    name: str
    embed_dim: int = Field(512, ge=1, le=LARGEST_WIDTH)
    image: ImageTowerConfig = ImageTowerConfig()
    text: TextTowerConfig = TextTowerConfig()


LossTerm = Literal[
    "contrastive",
    "feature_distillation",
    "contrastive_relational",
    "relational_temperature",
    "interactive_contrastive",
    "pair_matching",
    "generated_hinge",
]


class LossStage(Config):
    """Weights (and τ) that apply after ``step`` completed optimizer steps; weights not named do not change.

    Attributes:
        step: completed optimizer steps after which the weights apply.
        weights: by the name of the loss's part, or ``relational_temperature``.
    """

    step: int = Field(ge=1, le=LARGEST_COUNT)
    weights: dict[LossTerm, Annotated[float, Field(gt=0, le=LARGEST)]]


class LossConfig(Config):
    """Weights of the objective's parts and their options. A part with weight 0 is not computed.

    Attributes:
        base: the contrastive loss, CLIP's softmax or SigLIP's sigmoid.
        contrastive: weight of the contrastive loss.
        feature_distillation: weight of FD, which brings the student's embeddings to the teacher's.
        contrastive_relational: weight of CRD, which brings the similarities within a batch to the teacher's.
        relational_temperature: τ of CRD.
        interactive_contrastive: weight of ICL, the contrastive loss between student and teacher.
        pair_matching: weight of PM, which tells matched pairs from similar mismatched ones.
        pair_matching_warmup: share of the training over which the weight of pair matching rises linearly from 0;
            0: full weight from the first step.
        pair_head: see `siclip.losses.PairMatchingHead`.
        negatives: mining strategy of pair matching, see `siclip.losses.mine_negatives`.
        false_negative_similarity: teacher text-text cosine above which a pair is not used as a negative.
        teacher_mask: whether that cosine masks pairs of pair matching, beside equal images and captions, which always
            do; ``auto``: unless generated false captions are used, whose one-word differences it would call equal.
        generated_columns: the false captions of ``data.negatives`` as further columns of the contrastive loss, for
            the image side: ``own`` each image's own, ``batch`` those of the whole batch.
        generated_hinge: weight of the hinge loss that keeps an image closer to its caption than to its false ones.
        generated_margin: by how much, as a difference of cosines.
        generated_share: the share of pair matching's negative texts that are false captions of ``data.negatives``;
            the others are mined.
        schedule: stages in ascending order of ``step``. A weight that is 0 at the start cannot be raised later,
            because its part is not built.
    """

    base: ContrastiveBase = "clip"
    contrastive: Weight = 1.0
    feature_distillation: Weight = 2000.0
    contrastive_relational: Weight = 1.0
    relational_temperature: float = Field(1.0, gt=0, le=LARGEST)
    interactive_contrastive: Weight = 1.0
    pair_matching: Weight = 0.0
    pair_matching_warmup: float = Field(0.0, ge=0, le=1)
    pair_head: PairHead = "product"
    negatives: MiningStrategy = "sampled"
    false_negative_similarity: float = Field(0.9, gt=0, le=1)
    teacher_mask: TeacherMask = "auto"
    generated_columns: GeneratedColumns = "none"
    generated_hinge: Weight = 0.0
    generated_margin: float = Field(0.2, gt=0, le=2)
    generated_share: float = Field(0.0, ge=0, le=1)
    schedule: tuple[LossStage, ...] = ()

    @model_validator(mode="after")
    def _schedule_fits(self) -> LossConfig:
        steps = [stage.step for stage in self.schedule]
        if steps != sorted(set(steps)):
            raise ValueError(f"schedule: steps {steps} do not increase; order the stages, at most one per step")
        absent = sorted({name for stage in self.schedule for name in stage.weights if not getattr(self, name)})
        if absent:
            raise ValueError(
                f"schedule: {', '.join(absent)} is 0 at the start, so the part is not built; set it above 0"
            )
        return self

    def at(self, step: int) -> LossConfig:
        """The weights that apply after ``step`` completed optimizer steps."""
        started = [stage for stage in self.schedule if stage.step <= step]
        changed = {str(name): weight for stage in started for name, weight in stage.weights.items()}
        return self.model_copy(update=changed) if changed else self

    @property
    def needs_teacher(self) -> bool:
        return self.distils or (self.pair_matching > 0 and self.negatives == "teacher")

    @property
    def uses_generated(self) -> bool:
        """Whether a part with a weight uses generated false captions."""
        columns = self.contrastive > 0 and self.generated_columns != "none"
        return columns or self.generated_hinge > 0 or (self.pair_matching > 0 and self.generated_share > 0)

    @property
    def masks_by_teacher(self) -> bool:
        """Whether the teacher's similarity masks pairs of pair matching."""
        return self.teacher_mask == "on" or (self.teacher_mask == "auto" and not self.uses_generated)

    @property
    def distils(self) -> bool:
        return (self.feature_distillation + self.contrastive_relational + self.interactive_contrastive) > 0


ALTERNATIVES = {"epochs": "steps", "warmup_share": "warmup_steps", "cooldown_share": "cooldown_steps"}
"""Fields of `TrainingConfig` that say the same in two ways. Of each pair one is 0: it is not used."""


def replaced_by(values: Mapping[str, Any]) -> dict[str, int]:
    """The fields of a `TrainingConfig` that become 0 because these values name their alternative instead."""
    pairs = [*ALTERNATIVES.items(), *((two, one) for one, two in ALTERNATIVES.items())]
    return {other: 0 for name, other in pairs if values.get(name) and other not in values}


class TrainingConfig(Config):
    """Optimisation of one run: ``steps`` optimizer steps of ``batch_size`` samples.

    Attributes:
        steps: their number; 0: they follow from ``epochs``.
        epochs: passes over the training data, instead of ``steps``, which follow from its rows and the batch size;
            they are rounded up.
        batch_size: samples per step, of all workers together.
        learning_rate: of AdamW, after the warm-up.
        weight_decay: of AdamW; biases, norms and gains have none.
        betas: of AdamW.
        schedule: the learning rate after the warm-up: ``cosine`` falls to 0 at the last step, ``constant`` stays, and
            ``constant_cooldown`` stays until the cool-down, in which it falls linearly to 0. A run at a constant
            rate can be extended by more steps: what it has computed does not depend on its length.
        warmup_steps: steps in which the learning rate rises linearly.
        warmup_share: the same as a share of the steps, instead of ``warmup_steps``.
        cooldown_steps: the last steps, in which the rate of ``constant_cooldown`` falls.
        cooldown_share: the same as a share of the steps, instead of ``cooldown_steps``.
        clip_norm: the norm to which longer gradients are scaled down.
        precision: bf16 autocast, fp16 autocast with a gradient scaler (CUDA only), or fp32.
        seed: of the data's order, the weights and every draw.
        threads: torch's CPU threads, part of the recipe because the result of a sum depends on them; 0: torch's
            default.
        micro_batch_size: samples whose activations are in memory at a time, a divisor of the batch size; 0: all;
            ``auto``: the largest of batch_size, /2, /4, … that fits on the GPU. It is measured on the first batch
            (of the thawed model, if there is a thaw) and again if the run resumes on a different card.
        batch_norm: ``eval`` fixes the statistics of every BatchNorm (one that has seen no data takes them from the
            first batch); micro-batches are then exact.
        inexact_batch_norm: accept that micro-batches or workers normalise by their own statistics.
        ema_decay: if above 0, the result of the run is the exponential moving average of its weights.
        compile: run the heads through torch.compile.
        max_skipped_steps: consecutive steps with a loss or gradient that is not finite before the run stops.
        log_every: steps between records of losses and speed.
        checkpoint_every: steps between checkpoints; ``auto``: ten minutes of training, however many steps they are;
            0: only after the last step. The trials of a search take ``auto`` as 0. It changes nothing that is
            computed.
    """

    steps: int = Field(0, ge=0, le=LARGEST_COUNT, description="0: they follow from epochs")
    epochs: float = Field(0, ge=0, le=1e6, description="passes over the training data, instead of steps")
    batch_size: int = Field(1536, ge=2, le=LARGEST_BATCH)
    learning_rate: float = Field(1e-3, gt=0, le=LARGEST)
    weight_decay: float = Field(0.1, ge=0, le=LARGEST)
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    schedule: Schedule = "cosine"
    warmup_steps: int = Field(100, ge=0, le=LARGEST_COUNT)
    warmup_share: float = Field(0, ge=0, lt=1, description="share of the steps, instead of warmup_steps")
    cooldown_steps: int = Field(0, ge=0, le=LARGEST_COUNT)
    cooldown_share: float = Field(0.2, ge=0, le=1, description="share of the steps, instead of cooldown_steps")
    clip_norm: float = Field(1.0, gt=0, le=LARGEST)
    precision: Precision = "bf16"
    seed: int = Field(0, ge=0, lt=2**32)
    threads: int = Field(0, ge=0, le=1024)
    thaw_step: int = Field(
        0, ge=0, le=LARGEST_COUNT, description="steps after which inherited, frozen weights train too; 0: never"
    )
    micro_batch_size: MicroBatch = 0
    batch_norm: Literal["train", "eval"] = "train"
    inexact_batch_norm: bool = False
    ema_decay: float = Field(0, ge=0, lt=1, description="0: no exponential moving average")
    compile: bool = False
    max_skipped_steps: int = Field(10, ge=1, le=LARGEST_COUNT)
    log_every: int = Field(10, ge=1, le=LARGEST_COUNT)
    evaluate_every: int = Field(0, ge=0, le=LARGEST_COUNT, description="0: only after the last step")
    checkpoint_every: CheckpointEvery = Field(
        "auto", description="steps; auto: ten minutes of training; 0: only after the last step"
    )

    @model_validator(mode="before")
    @classmethod
    def _default_gives_way(cls, values: Any) -> Any:
        return {**values, **replaced_by(values)} if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _fits_in_steps(self) -> Self:
        for one, two in ALTERNATIVES.items():
            if getattr(self, one) and getattr(self, two):
                here = f"{one} {getattr(self, one):g} and {two} {getattr(self, two)}"
                raise ValueError(f"{here} say the same in two ways; remove one")
        if not self.steps and not self.epochs:
            raise ValueError("lacks its length; add steps or epochs")
        if self.schedule == "constant_cooldown" and not (self.cooldown_steps or self.cooldown_share):
            raise ValueError("constant_cooldown lacks its cool-down; add cooldown_share or cooldown_steps")
        if self.steps:
            self._check_steps()
        micro = self.micro_batch_size
        if isinstance(micro, int) and micro and self.batch_size % micro:
            raise ValueError(f"micro_batch_size {micro} does not divide batch_size {self.batch_size}")
        return self

    def _check_steps(self) -> None:
        if self.warmup >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup} must be below the {self.steps} steps of the training")
        if self.warmup + self.cooldown > self.steps:
            raise ValueError(
                f"a warm-up of {self.warmup} and a cool-down of {self.cooldown} steps do not fit in the {self.steps} "
                "steps of the training: shorten one"
            )
        if self.thaw_step >= self.steps:
            raise ValueError(f"thaw_step {self.thaw_step} must be below the {self.steps} steps of the training")

    @property
    def warmup(self) -> int:
        """Steps of the warm-up."""
        return self.warmup_steps or round(self.warmup_share * self.steps)

    @property
    def cooldown(self) -> int:
        """Steps of the cool-down; 0 with a schedule that has none."""
        if self.schedule != "constant_cooldown":
            return 0
        return self.cooldown_steps or round(self.cooldown_share * self.steps)

    def with_steps(self, samples: int | Fraction) -> Self:
        """The same training with ``steps`` instead of ``epochs``, rounded up so that no sample is left out.

        Args:
            samples: of one epoch; datasets that are mixed in may make it a fraction.

        Raises:
            pydantic.ValidationError: the warm-up, the cool-down or the thaw step do not fit in so few steps, or there
                are too many.
        """
        if not self.epochs:
            return self
        # Exact: 0.1 · 30 is more than 3 in floats, and would be rounded up to 4.
        steps = math.ceil(Fraction(str(self.epochs)) * samples / self.batch_size)
        return self.model_validate(self.model_dump() | {"steps": steps, "epochs": 0})
