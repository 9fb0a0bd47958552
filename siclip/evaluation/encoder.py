"""One interface to the models that can be evaluated: siclip models and any open_clip model.

Everything runs in fp32 and eval mode. Images are Pillow images and pass through the model's own preprocessing. A
model that is not finite is refused by every encode step, see `siclip.models.finite`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from siclip.data.transforms import preprocess
from siclip.models.clip import Clip
from siclip.models.finite import unit
from siclip.tokenizer import tokenize

TEXTS_AT_ONCE = 256


class Encoder(Protocol):
    """Computes unit embeddings."""

    name: str
    device: torch.device
    image_size: tuple[int, int]

    def prepare(self, image: Image.Image) -> Tensor:
        """An image of any size and mode → (3, height, width) for this model."""

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Prepared images (B, 3, height, width) → unit embeddings (B, D) on the CPU.

        Raises:
            NotFinite: the model is not finite.
        """

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts → unit embeddings (len(texts), D) on the CPU; errors as `encode_images`."""

    def towers(self) -> tuple[nn.Module, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor]:
        """The model, its functions that encode images and token ids, and the token ids of one text."""


class _Base(ABC):
    model: Any
    device: torch.device
    name: str

    def __init__(self, model: nn.Module, name: str, device: torch.device) -> None:
        self.model = model.to(device).eval()
        self.name, self.device = name, device

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        encoded = self.model.encode_image(pixels.to(self.device)).float()
        return unit(F.normalize(encoded, dim=-1), self.name).cpu()

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        parts = [texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE)]
        encoded = [self.model.encode_text(self.tokens(part).to(self.device)).float() for part in parts]
        return unit(F.normalize(torch.cat(encoded), dim=-1), self.name).cpu()

    @abstractmethod
    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Texts → the model's token ids (len(texts), context length)."""

    def towers(self) -> tuple[nn.Module, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor]:
        return self.model, self.model.encode_image, self.model.encode_text, self.tokens(["a photo"])


class ClipEncoder(_Base):
    """A siclip model in its deployed form, with all branches fused."""

    def __init__(self, model: Clip, name: str, device: torch.device) -> None:
        super().__init__(model.reparameterize(), name, device)
        size = model.config.image.image_size
        self.image_size = (size, size)
        self.context_length = model.config.text.context_length
        self.prepare = preprocess(train=False, size=size)

    def tokens(self, texts: Sequence[str]) -> Tensor:
        return tokenize(texts, self.context_length)


class OpenClipEncoder(_Base):
    """An open_clip model with its own preprocessing and tokenizer.

    Args:
        model: the model.
        transform: its preprocessing for evaluation.
        tokenizer: its tokenizer.
        name: of the model.
        device: on which it runs.
    """

    def __init__(
        self,
        model: nn.Module,
        transform: Callable[[Image.Image], Tensor],
        tokenizer: Callable[[Sequence[str]], Tensor],
        name: str,
        device: torch.device,
    ) -> None:
        super().__init__(model, name, device)
        size = self.model.visual.image_size
        self.image_size = tuple(size) if isinstance(size, Sequence) else (size, size)
        self.prepare = transform
        self.tokenizer = tokenizer

    def tokens(self, texts: Sequence[str]) -> Tensor:
        return self.tokenizer(list(texts))


def check_encoder(encoder: Encoder) -> None:
    """Encode a grey image and a short text, before a whole set is read.

    Raises:
        NotFinite: the model is not finite.
    """
    encoder.encode_images(encoder.prepare(Image.new("RGB", encoder.image_size[::-1], "grey")).unsqueeze(0))
    encoder.encode_texts(["a photo"])


def fingerprint(encoder: Encoder) -> str:
    """16 hex digits of the SHA-256 of a model's weights, modules and tokenizer: a key for cached embeddings."""
    model, _, _, tokens = encoder.towers()
    digest = hashlib.sha256(f"{model!r} {tokens.tolist()}".encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
