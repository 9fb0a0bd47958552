"""A teacher as two functions, images → embeddings and texts → embeddings.

Shapes: B batch, D the teacher's widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from siclip.data.batch import Batch
from siclip.errors import UserError
from siclip.losses import Embeddings
from siclip.models.finite import finite, unit
from siclip.open_clip_models import OPEN_CLIP
from siclip.teachers import ModelTeacher, OpenClipTeacher, Teacher
from siclip.tokenizer import tokenize
from siclip_platform.storage.checkpoints import read_model

CLIP_CONTEXT = 77
Precision = Literal["fp32", "bf16"]


def load_teacher(name: str) -> ModelTeacher | OpenClipTeacher:
    """Load a teacher: a siclip checkpoint by path or URI, or ``open_clip:NAME:TAG`` with a pretrained tag or a path.

    Raises:
        UserError: there is no such teacher.
    """
    if not name.startswith(OPEN_CLIP):
        return ModelTeacher(read_model(name))
    model, colon, tag = name.removeprefix(OPEN_CLIP).partition(":")
    if not colon:
        raise UserError(f"teacher {name!r}: write open_clip:NAME:TAG, where TAG is a pretrained tag or a path")
    return OpenClipTeacher(model, tag)


class EmbeddingTeacher:
    """A teacher that embeds images or texts alone, with the same result as in training; it must be finite.

    Attributes:
        size: (height, width) of the images that it expects.
        context_length: of the captions, in tokens.
        identity: name and hash of the weights.
        widths: of its image and text embeddings.
        logit_scale: of the teacher.
    """

    def __init__(
        self, name: str, *, image_size: int | None = None, precision: Precision = "fp32", gpu: bool = False
    ) -> None:
        self.name = name
        self.device = torch.device("cuda" if gpu else "cpu")
        self.teacher: Teacher = load_teacher(name)
        self.context_length = CLIP_CONTEXT
        own: tuple[int, int]
        if isinstance(self.teacher, ModelTeacher):
            config = self.teacher.model.config
            own = (config.image.image_size, config.image.image_size)
            self.context_length = config.text.context_length
        else:
            assert isinstance(self.teacher, OpenClipTeacher)
            own = self.teacher.size
            if self.teacher.takes_our_ids:
                self.context_length = int(self.teacher.tokenizer.context_length)
        self.size = own if image_size is None else (image_size, image_size)
        self.identity = self.teacher.identity
        self.widths = self.teacher.widths
        self.precision = precision
        self.teacher.to(self.device)
        # Teachers expose their scale only with embeddings, so one empty caption is embedded.
        first = self._embed(self._no_images(1), self._tokens([""]))
        self.logit_scale = float(finite(first.logit_scale, f"the teacher {name}"))

    def images(self, pixels: np.ndarray) -> Tensor:
        """(B, height, width, 3) uint8 → unit embeddings (B, D) in fp32."""
        return self._embed(torch.from_numpy(pixels), self._tokens([""])).image.float().cpu()

    def texts(self, texts: Sequence[str]) -> Tensor:
        """B captions → unit embeddings (B, D) in fp32."""
        return self.tokens(self._tokens(texts))

    def tokens(self, tokens: Tensor) -> Tensor:
        """(B, `context_length`) ids of `siclip.tokenizer.tokenize` → unit embeddings (B, D) in fp32."""
        return self._embed(self._no_images(1), tokens).text.float().cpu()

    def _tokens(self, texts: Sequence[str]) -> Tensor:
        return tokenize(list(texts), self.context_length)

    def _no_images(self, count: int) -> Tensor:
        return torch.zeros(count, *self.size, 3, dtype=torch.uint8)

    def _embed(self, images: Tensor, tokens: Tensor) -> Embeddings:
        """Embed a batch; images and texts are embedded independently, so their numbers may differ."""
        ids = torch.zeros(0, dtype=torch.int64)
        batch = Batch(images=images, tokens=tokens, image_ids=ids, caption_ids=ids).to(self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            found = self.teacher.embed(batch, None)
        unit(found.image, f"the teacher {self.name}")
        unit(found.text, f"the teacher {self.name}")
        return found
