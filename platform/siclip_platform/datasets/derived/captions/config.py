"""Settings of captioning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from siclip.captioning.sampling import Sampling
from siclip.config import LARGEST_BATCH, LARGEST_COUNT, Config
from siclip.errors import UserError

COCA = "coca_ViT-L-14"
TAG = "mscoco_finetuned_laion2B-s13B-b90k"


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
        model: a name in open_clip, a JSON file with a model's config, or ``transformers:`` and a folder or a name.
        pretrained: a tag of the model, or a checkpoint; not used with ``transformers:``.
        prompt: what a model of transformers is told; empty: a captioner's own task, or for a model of dialogues a
            request for one sentence.
        per_image: captions generated per image.
        sampling: how tokens are drawn.
        rules: how texts are cleaned and filtered.
        similarity: an additional filter by a teacher.
        batch_size: images that are captioned together; 0: chosen by the captioner, on a GPU what fits.
        precision: of the model; ``auto``: bf16 on a GPU, fp32 on the CPU. ``tf32`` is fp32 with matrix products in
            TF32, for a GPU.
    """

    model: str = COCA
    pretrained: str = TAG
    prompt: str = ""
    per_image: int = Field(3, ge=1, le=1024)
    sampling: Sampling = Sampling()
    rules: CleanRules = CleanRules()
    similarity: SimilarityFilter | None = None
    batch_size: int = Field(0, ge=0, le=LARGEST_BATCH)
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"

    def on(self, gpu: bool) -> CaptionConfig:
        """Return the settings with the precision of the device.

        Raises:
            UserError: TF32 is requested of a CPU.
        """
        if self.precision == "tf32" and not gpu:
            raise UserError("--precision tf32 is a format of GPUs and this is a CPU: use fp32")
        precision = ("bf16" if gpu else "fp32") if self.precision == "auto" else self.precision
        return self.model_copy(update={"precision": precision})
