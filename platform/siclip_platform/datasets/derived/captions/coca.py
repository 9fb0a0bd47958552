"""open_clip's CoCa (arXiv 2205.01917) as a captioner: images → texts by nucleus sampling.

open_clip's own ``CoCa.generate`` needs classes that transformers 5 removed, draws from torch's global generator and
encodes an image once per caption. Here (seed, image id, caption number, token number) determine every draw, so a
caption does not depend on the rest of its batch, and an image is encoded once.

Shapes: B images, C captions of each, R = B·C rows, t tokens so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from siclip.data.captions import stable_id
from siclip.errors import UserError
from siclip.models.hashing import weights_hash
from siclip.open_clip_models import check_config, open_model, read_config, register
from siclip_platform.datasets.derived.captions.config import CaptionConfig, Sampling

LIKELIEST = 256  # tokens tried first: sorting the whole vocabulary takes longer
Draws = np.ndarray
"""(R, max_tokens) float64 in [0, 1)"""


class CoCaCaptioner:
    """A CoCa with its preprocessing and its tokenizer.

    Raises:
        UserError: open_clip has no such model or weights, the model is not a CoCa with CLIP's tokenizer, or it has
            fewer positions than the captions may have tokens.
    """

    def __init__(self, config: CaptionConfig, gpu: bool = False) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        name = _registered(config.model)
        try:
            model, tokenizer, self.transform = open_model(name, config.pretrained)
        except UserError:
            raise
        except Exception as error:
            # Parsers of weights and downloads raise errors of many unrelated classes.
            raise UserError(_not_loaded(name, config.pretrained, error)) from None
        if not hasattr(model, "text_decoder"):
            raise UserError(f"{name} is not a CoCa and cannot write captions: name one, such as coca_ViT-L-14")
        if not isinstance(tokenizer, SimpleTokenizer):
            raise UserError(f"{name} does not use CLIP's tokenizer: name a CoCa that does, such as coca_ViT-L-14")
        positions = int(model.context_length)
        if config.sampling.max_tokens + 1 > positions:
            raise UserError(
                f"{name} has {positions} positions, but the start token and {config.sampling.max_tokens} tokens need "
                f"more: lower --max-tokens to {positions - 1} or less"
            )
        self.device = torch.device("cuda" if gpu else "cpu")
        self.model = model.eval().requires_grad_(False)
        self.hash = weights_hash(self.model)
        self.model.to(self.device)
        self.tokenizer = tokenizer
        self.sampling = config.sampling
        self.autocast = config.precision == "bf16"
        is_file = Path(config.pretrained).is_file()
        # A local checkpoint has no public name, so its hash identifies it.
        self.name = f"{name}@{self.hash}" if is_file else f"{name}:{config.pretrained}"

    def captions(self, images: Sequence[np.ndarray], ids: Sequence[str], per_image: int) -> list[list[str]]:
        """Pixels (height, width, 3) uint8 and ids → ``per_image`` generated texts for each image."""
        pixels = torch.stack([self.transform(Image.fromarray(image)) for image in images]).to(self.device)
        tokens = self.tokens(pixels, draws(self.sampling, ids, per_image))
        texts = [self._text(row) for row in tokens.tolist()]
        return [texts[first : first + per_image] for first in range(0, len(texts), per_image)]

    @torch.no_grad()
    def tokens(self, pixels: Tensor, uniforms: Draws) -> Tensor:
        """Preprocessed images (B, 3, h, w) and draws (R, max_tokens) → token ids (R, 1 + max_tokens + 1).

        A row is: start, tokens, end, zeros. Row r is a caption of image r·B // R.
        """
        end = self.tokenizer.eot_token_id
        rows, longest = uniforms.shape
        out = torch.zeros(rows, longest + 2, dtype=torch.long, device=self.device)
        out[:, 0] = self.tokenizer.sot_token_id
        draw = torch.from_numpy(uniforms).to(self.device, torch.float32)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            encoded = self.model(pixels)
            image = torch.arange(rows, device=self.device) * len(pixels) // rows
            open_rows = torch.arange(rows, device=self.device)
            for position in range(1, longest + 1):
                logits = self._next_logits(encoded, image[open_rows], out[open_rows, :position])
                # The end token is excluded until the caption has its minimum length.
                if position <= self.sampling.min_tokens:
                    logits[:, end] = -torch.inf
                chosen = pick(logits, draw[open_rows, position - 1], self.sampling)
                out[open_rows, position] = chosen
                # Finished rows leave the batch, so that later steps cost less.
                open_rows = open_rows[chosen != end]
                if not len(open_rows):
                    break
            out[open_rows, longest + 1] = end
        return out

    def _next_logits(self, encoded: dict[str, Tensor], image: Tensor, tokens: Tensor) -> Tensor:
        output = self.model(
            None,
            tokens,
            image_latent=encoded["image_features"][image],
            image_embs=encoded["image_embs"][image],
            output_labels=False,
        )
        logits: Tensor = output["logits"][:, -1].float()
        return logits

    def _text(self, row: list[int]) -> str:
        end = row.index(self.tokenizer.eot_token_id)
        text: str = self.tokenizer.decode(row[1:end])
        return text.strip()


def draws(sampling: Sampling, ids: Sequence[str], per_image: int) -> Draws:
    """Return uniform numbers (len(ids) · per_image, max_tokens) that depend only on (seed, id, caption number)."""
    keys = (stable_id(f"caption/{sampling.seed}/{name}/{number}") for name in ids for number in range(per_image))
    return np.stack([np.random.default_rng(key).random(sampling.max_tokens) for key in keys])


def pick(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Tensor:
    """Logits (R, V), draws (R,) in [0, 1) → token ids (R,): the inverse distribution function of the nucleus."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    distribution = (logits / sampling.temperature).softmax(dim=-1)
    shares, order = distribution.topk(min(LIKELIEST, logits.shape[-1]), dim=-1)
    # The nucleus of some row has more tokens than were tried.
    if (shares.sum(dim=-1) < sampling.top_p).any():
        shares, order = distribution.sort(dim=-1, descending=True, stable=True)
    ends = shares.cumsum(dim=-1)
    # A token is in the nucleus while the more likely ones have less than top_p.
    nucleus = (ends - shares) < sampling.top_p
    mass = torch.where(nucleus, shares, 0).sum(dim=-1)
    index = (ends <= (uniforms * mass)[:, None]).sum(dim=-1)
    # Rounding of the cumulative sum can lead past the last token of the nucleus.
    index = torch.minimum(index, nucleus.sum(dim=-1) - 1)
    return order.gather(1, index[:, None])[:, 0]


def check_model(model: str) -> None:
    """Refuse a config file that is no architecture, before work is spent on what comes before the captions.

    Raises:
        UserError: names the field.
    """
    if model.endswith(".json"):
        check_config(read_config(Path(model).absolute()), model)


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
