"""Settings of captioning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from siclip.config import LARGEST_BATCH, LARGEST_CONTEXT, LARGEST_COUNT, Config

COCA = "coca_ViT-L-14"
TAG = "mscoco_finetuned_laion2B-s13B-b90k"


class Sampling(Config):
    """How the next token is drawn: nucleus sampling (arXiv 1904.09751).

    Attributes:
        top_p: draw from the smallest set of tokens with this probability.
        temperature: of the distribution; 0 takes the most likely token.
        min_tokens: of a caption, without start and end.
        max_tokens: of a caption, without start and end.
        seed: determines every draw together with the image's id and the caption's number.
    """

    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    temperature: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    min_tokens: int = Field(4, ge=0, le=LARGEST_CONTEXT)
    max_tokens: int = Field(30, ge=1, le=LARGEST_CONTEXT)
    seed: int = Field(0, ge=0, lt=2**64)

    @model_validator(mode="after")
    def _lengths_agree(self) -> Sampling:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}")
        return self


class CleanRules(Config):
    """How a generated text becomes a caption.

    Special tokens, repeated white space and spaces before punctuation are always removed.

    Attributes:
        cut_at_stop: keep only the text before the first full stop.
        lower_case: convert to lower case.
        min_words: drop captions with fewer words.
        max_words: drop captions with more words; 0: no limit.
        without: drop captions that contain one of these texts, ignoring case.
        near_equal: drop a caption if difflib's ratio over the words, ignoring case, with an earlier caption of the
            image is at least this; the dataset's own captions are earlier. 1: only equal words; 0: keep all.
    """

    cut_at_stop: bool = True
    lower_case: bool = False
    min_words: int = Field(3, ge=1, le=LARGEST_COUNT)
    max_words: int = Field(0, ge=0, le=LARGEST_COUNT)
    without: tuple[str, ...] = ()
    near_equal: float = Field(0.9, ge=0, le=1)

    @field_validator("without")
    @classmethod
    def _not_blank(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        if any(not part.strip() for part in parts):
            raise ValueError("every caption contains an empty text: remove it")
        return parts


class SimilarityFilter(Config):
    """Drop captions whose cosine with their image, by the embeddings of ``teacher``, is below ``min_similarity``."""

    teacher: str
    min_similarity: float = Field(ge=-1, le=1)


class CaptionConfig(Config):
    """Settings of captioning.

    Attributes:
        model: a name in open_clip, or a JSON file with a model's config.
        pretrained: a tag of the model, or a checkpoint.
        per_image: captions generated per image.
        sampling: how tokens are drawn.
        rules: how texts are cleaned and filtered.
        similarity: an additional filter by a teacher.
        batch_size: images that are captioned together.
        precision: of the model.
    """

    model: str = COCA
    pretrained: str = TAG
    per_image: int = Field(3, ge=1, le=1024)
    sampling: Sampling = Sampling()
    rules: CleanRules = CleanRules()
    similarity: SimilarityFilter | None = None
    batch_size: int = Field(64, ge=1, le=LARGEST_BATCH)
    precision: Literal["fp32", "bf16"] = "fp32"
