"""Encode an evaluation set and compute its metrics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from siclip.data.batch import to_float_images
from siclip.evaluation.pair_head import pair_head_metrics
from siclip.evaluation.retrieval import beats_all_negatives, retrieval_metrics
from siclip.losses import PairMatchingHead
from siclip.models.clip import Clip
from siclip.models.finite import unit
from siclip.models.freezing import eval_mode
from siclip.models.fused_trunk import fused_trunk


@dataclass(frozen=True)
class EvaluationSet:
    """N images with their M captions and, if the dataset has them, K false captions per image.

    Attributes:
        images: (N, height, width, 3) uint8.
        tokens: token ids (M, T).
        negatives: token ids (N, K, T) of the false captions, or None.
        image_of_text: (M,), the index of each caption's image, ascending; None: caption i describes image i.
    """

    images: Tensor
    tokens: Tensor
    negatives: Tensor | None
    image_of_text: Tensor | None = None

    @property
    def first_tokens(self) -> Tensor:
        """Token ids (N, T) of each image's first caption."""
        return self.firsts(self.tokens)

    def firsts(self, per_caption: Tensor) -> Tensor:
        """The rows (M, …) of captions → those (N, …) of each image's first caption."""
        if self.image_of_text is None:
            return per_caption
        first = torch.searchsorted(self.image_of_text, torch.arange(len(self.images)))
        return per_caption[first.to(per_caption.device)]


@torch.no_grad()
def evaluate(
    model: Clip,
    data: EvaluationSet,
    *,
    device: torch.device,
    chunk: int = 128,
    name: str = "",
    pair_head: PairMatchingHead | None = None,
) -> dict[str, float]:
    """Retrieval recall over all captions and, with negatives, ``beats_all_negatives`` of the first, in fp32.

    With a head of pair matching also its accuracies on the first captions, see `pair_head_metrics`. A frozen image
    trunk runs in folded form, as in training.

    Args:
        model: its mode is preserved.
        data: the set.
        device: of the model.
        chunk: number of images or texts encoded at a time.
        name: names the model in errors; its config's name by default.
        pair_head: trained with the model.

    Raises:
        NotFinite: an embedding is not finite.
    """
    name = name or f"the model {model.config.name}"
    with eval_mode(model):
        image, text = embed(model, data, device=device, chunk=chunk, name=name)
        metrics = {
            name: value
            for name, value in retrieval_metrics(image, text, data.image_of_text).items()
            if "recall@" in name
        }
        negatives = None
        if data.negatives is not None:
            flat = unit(_encode_texts(model, data.negatives.flatten(0, 1), device, chunk), name)
            negatives = flat.view(*data.negatives.shape[:2], -1)
            metrics["beats_all_negatives"] = beats_all_negatives(image, data.firsts(text), negatives)
        if pair_head is not None:
            metrics |= pair_head_metrics(pair_head, image, data.firsts(text), negatives)
    return metrics


@torch.no_grad()
def embed(
    model: Clip, data: EvaluationSet, *, device: torch.device, chunk: int = 128, name: str = ""
) -> tuple[Tensor, Tensor]:
    """Unit embeddings of the images (N, D) and of all captions (M, D); arguments and errors as `evaluate`."""
    name = name or f"the model {model.config.name}"
    with eval_mode(model):
        pixels = torch.split(data.images, chunk)
        image = torch.cat([unit(_encode_images(model, to_float_images(x.to(device))), name) for x in pixels])
        text = unit(_encode_texts(model, data.tokens, device, chunk), name)
    return image, text


def _encode_images(model: Clip, images: Tensor) -> Tensor:
    if not model.trunk_is_frozen():
        return model.encode_image(images, normalize=True)
    features = fused_trunk(model.image_encoder, images)
    return F.normalize(model.image_encoder.head(features), dim=-1)


def _encode_texts(model: Clip, tokens: Tensor, device: torch.device, chunk: int) -> Tensor:
    return torch.cat([model.encode_text(x.to(device), normalize=True) for x in torch.split(tokens, chunk)])
