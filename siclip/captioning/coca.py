"""open_clip's CoCa (arXiv 2205.01917) as a captioner: images → texts by nucleus sampling.

open_clip's own ``CoCa.generate`` needs classes that transformers 5 removed, draws from torch's global generator,
encodes an image once per caption and keeps nothing from token to token. Here (seed, image id, caption number, token
number) determine every draw, an image is encoded once, and the decoders have caches.

Shapes: B images, C captions of each.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from siclip.captioning.captioner import Pixels, Prepare
from siclip.captioning.decoder import CachedDecoders, check_decoders
from siclip.captioning.generate import Ids, SpecialTokens, generate
from siclip.captioning.sampling import Draws, Sampling, draws
from siclip.errors import UserError
from siclip.models.hashing import weights_hash
from siclip.open_clip_models import check_config, open_model, read_config, register

CaptionPrecision = Literal["fp32", "tf32", "bf16"]
CPU_BATCH, GPU_BATCH = 32, 512
"""Images in the decoders at a time where none is named: on a GPU the largest tried, halved until it fits."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resized:
    """The part of an open_clip transform that gives uint8 pixels: resizing, cropping, conversion to RGB."""

    steps: tuple[Any, ...]

    def __call__(self, pixels: Pixels) -> Pixels:
        image = Image.fromarray(pixels)
        for step in self.steps:
            image = step(image)
        return np.asarray(image)


class CoCaCaptioner:
    """A CoCa with its preprocessing and its tokenizer. See `siclip.captioning.captioner.Captioner`.

    Args:
        model: a name in open_clip, or a JSON file with a model's config.
        pretrained: a tag of the model, or a checkpoint.
        sampling: how tokens are drawn.
        precision: of the matrix products: bf16 with fp32 sums and norms, fp32, or fp32 rounded to TF32 on a GPU.
        batch_size: images in the decoders at a time; 0: 32 on the CPU, on a GPU the largest power of two up to 512
            that fits. Out of memory on a GPU halves it.
        gpu: compute on a GPU.

    Raises:
        UserError: open_clip has no such model or weights, the model is not a CoCa with CLIP's tokenizer, or it has
            fewer positions than the captions may have tokens.
    """

    def __init__(
        self,
        model: str,
        pretrained: str,
        sampling: Sampling,
        *,
        precision: CaptionPrecision = "fp32",
        batch_size: int = 0,
        gpu: bool = False,
    ) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        name = _registered(model)
        try:
            opened = open_model(name, pretrained)
        except UserError:
            raise
        except Exception as error:
            # Parsers of weights and downloads raise errors of many unrelated classes.
            raise UserError(_not_loaded(name, pretrained, error)) from None
        coca: Any = opened.model
        if not hasattr(coca, "text_decoder"):
            raise UserError(f"{name} is not a CoCa and cannot write captions: name one, such as coca_ViT-L-14")
        if not isinstance(opened.tokenizer, SimpleTokenizer):
            raise UserError(f"{name} does not use CLIP's tokenizer: name a CoCa that does, such as coca_ViT-L-14")
        check_decoders(coca, name)
        positions = min(int(coca.context_length), int(coca.text.context_length))
        if sampling.max_tokens + 1 > positions:
            raise UserError(
                f"{name} has {positions} positions, but the start token and {sampling.max_tokens} tokens need "
                f"more: lower --max-tokens to {positions - 1} or less"
            )
        self.device = torch.device("cuda" if gpu else "cpu")
        self.model = coca.eval().requires_grad_(False)
        self.hash = weights_hash(self.model)
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        if self.dtype != torch.float32:
            _convert_products(self.model, self.dtype)
        if gpu:
            # torch allows TF32 in convolutions by default.
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        self.model.to(self.device)
        self.tokenizer = opened.tokenizer
        self.special = SpecialTokens(self.tokenizer.sot_token_id, self.tokenizer.eot_token_id, int(coca.text.pad_id))
        self.sampling = sampling
        self.batch_size = batch_size or (GPU_BATCH if gpu else CPU_BATCH)
        *resizing, self._to_tensor, self._normalize = getattr(opened.transform, "transforms")  # noqa: B009
        self.prepare: Prepare = Resized(tuple(resizing))
        # A local checkpoint has no public name, so its hash identifies it.
        self.name = f"{name}@{self.hash}" if Path(pretrained).is_file() else f"{name}:{pretrained}"

    def captions(self, images: Sequence[Pixels], ids: Sequence[str], per_image: int) -> list[list[str]]:
        """Prepared images and their ids → ``per_image`` generated texts for each image."""
        if not images:
            return []
        rows = self.tokens(np.stack(images), draws(self.sampling, ids, per_image)).tolist()
        texts = [self._text(row) for row in rows]
        return [texts[first : first + per_image] for first in range(0, len(texts), per_image)]

    def tokens(self, pixels: Pixels, uniforms: Draws) -> Ids:
        """Prepared images (B, height, width, 3) and draws (B·C, max_tokens) → token ids (B·C, 1 + max_tokens + 1).

        A row is: start, tokens, end, zeros. Row r is a caption of image r // C.

        Raises:
            UserError: not even one image fits into the GPU's memory.
        """
        while True:
            try:
                return self._tokens(pixels, uniforms)
            except torch.OutOfMemoryError:
                pass
            # After the except block: inside it the traceback keeps the tensors alive, and nothing would be freed.
            torch.cuda.empty_cache()
            if self.batch_size == 1:
                raise UserError(
                    f"captioning of one image does not fit into the memory of {self.device}: end other processes on "
                    "it, lower --per-image, use --precision bf16, or name a smaller model"
                )
            self.batch_size //= 2
            log.warning("captioning does not fit into the memory of the GPU: %d images at a time", self.batch_size)

    def encode(self, pixels: Pixels) -> Tensor:
        """Prepared images (B, height, width, 3) → their embeddings (B, I, D) for the decoders."""
        # The transform's own last steps, so that the values are those of open_clip.
        floats = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).contiguous().float().div(255)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            embeddings: Tensor = self.model(self._normalize(floats))["image_embs"]
        return embeddings

    @torch.no_grad()
    def _tokens(self, pixels: Pixels, uniforms: Draws) -> Ids:
        slots = min(self.batch_size, len(pixels))
        per_image = len(uniforms) // len(pixels)
        decoders = CachedDecoders(self.model, slots, per_image, self.sampling.max_tokens, self.dtype)
        return generate(
            decoders,
            lambda first, stop: self.encode(pixels[first:stop]),
            uniforms,
            self.sampling,
            self.special,
        )

    def _text(self, row: list[int]) -> str:
        end = row.index(self.special.end)
        text: str = self.tokenizer.decode(row[1:end])
        return text.strip()


def check_model(model: str) -> None:
    """Refuse a config file that is no architecture, before work is spent on what comes before the captions.

    Raises:
        UserError: names the field.
    """
    if model.endswith(".json"):
        check_config(read_config(Path(model).absolute()), model)


def _convert_products(model: Any, dtype: torch.dtype) -> None:
    """Convert the weights of matrix products once; autocast would convert them at every step."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
    decoder = model.text_decoder
    decoder.text_projection.data = decoder.text_projection.data.to(dtype)


def _registered(model: str) -> str:
    """Return the name of a model in open_clip, after registering it if it is a config file."""
    return register(Path(model).absolute()) if model.endswith(".json") else model


def _not_loaded(name: str, pretrained: str, error: Exception) -> str:
    import open_clip

    if name not in open_clip.list_models():
        known = ", ".join(model for model in open_clip.list_models() if "coca" in model.lower())
        return f"open_clip has no model {name!r}: its CoCa models are {known}"
    if not Path(pretrained).is_file() and not open_clip.get_pretrained_cfg(name, pretrained):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        return f"{name}: {pretrained!r} is neither a file nor a tag of this model, which has {tags}"
    return f"{name}:{pretrained} cannot be loaded by open_clip: {str(error).partition('. ')[0][:200]}"
