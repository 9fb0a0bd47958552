"""What captioning does to a dataset."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from siclip.config import Config

COCA = "coca_ViT-L-14"
TAG = "mscoco_finetuned_laion2B-s13B-b90k"


class Sampling(Config):
    """How the next token is drawn: from the smallest set of tokens that holds ``top_p`` of the probability (nucleus
    sampling, arXiv 1904.09751) at ``temperature``; 0 takes the likeliest. ``min_tokens`` and ``max_tokens``: of a
    caption, without start and end. ``seed``: with the image's id and the caption's number it decides every draw.
    """

    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    min_tokens: int = Field(4, ge=0)
    max_tokens: int = Field(30, ge=1)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _lengths_agree(self) -> Sampling:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}")
        return self


class CleanRules(Config):
    """What becomes of a generated text. Special tokens are always cut, white space made single and the space before
    punctuation taken away.

    ``cut_at_stop``: keep what stands before the first full stop. Captions of fewer than ``min_words`` or more than
    ``max_words`` words (0: any) are left out, and those with one of ``without`` in them. Two captions of an image are
    near-equal when difflib's ratio over their words, in order and without case, is ``near_equal`` or more; the later
    one is left out, the dataset's own count as earlier. 1: only equal words; 0: keep all.
    """

    cut_at_stop: bool = True
    lower_case: bool = False
    min_words: int = Field(3, ge=1)
    max_words: int = Field(0, ge=0)
    without: tuple[str, ...] = ()
    near_equal: float = Field(0.9, ge=0, le=1)

    @field_validator("without")
    @classmethod
    def _not_blank(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        if any(not part.strip() for part in parts):
            raise ValueError("an empty text stands in every caption")
        return parts


class SimilarityFilter(Config):
    """Leave out captions whose embedding by ``teacher`` has a cosine below ``min_similarity`` with their image's."""

    teacher: str
    min_similarity: float = Field(ge=-1, le=1)


class CaptionConfig(Config):
    """``model``: an open_clip name, or a JSON file with a model's config. ``pretrained``: a tag or a checkpoint.
    ``batch_size``: images that are captioned together."""

    model: str = COCA
    pretrained: str = TAG
    per_image: int = Field(3, ge=1)
    sampling: Sampling = Sampling()
    rules: CleanRules = CleanRules()
    similarity: SimilarityFilter | None = None
    batch_size: int = Field(64, ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"
