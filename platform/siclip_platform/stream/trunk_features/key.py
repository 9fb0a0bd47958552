"""The key of a trunk cache: everything that the features depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain

import torch
from pydantic import Field

from siclip.config import Config
from siclip.data.transforms import TRAIN_SCALE
from siclip.errors import UserError
from siclip.models.clip import Clip
from siclip_platform.datasets.derived.embeddings.layout import EmbeddingLayout
from siclip_platform.datasets.manifest import Dataset
from siclip_platform.datasets.sidecar import Sidecar
from siclip_platform.storage.hashing import canonical_hash


def trunk_hash(model: Clip) -> str:
    """Return 16 hex digits of the SHA-256 of both trunks: names, shapes, types and bytes of parameters and buffers.

    The image size and the context length are part of it. BatchNorm's batch counters, the device, the memory format
    and everything from the attention blocks on are not, so a student has the hash of the teacher that it inherited
    from.
    """
    config = model.config
    digest = hashlib.sha256(f"{config.image.image_size} {config.text.context_length}".encode())
    for tower in (model.image_encoder, model.text_encoder):
        for index, module in enumerate(tower.trunk_modules()):
            for name, tensor in chain(module.named_parameters(), module.named_buffers()):
                # counts forward passes in train mode and has no effect on the output
                if not name.endswith("num_batches_tracked"):
                    digest.update(f"|{index} {name} {tuple(tensor.shape)} {tensor.dtype}|".encode())
                    flat = tensor.detach().cpu().contiguous().reshape(-1)
                    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


class TrunkCacheKey(Config):
    """What the features depend on; another key is another cache.

    Attributes:
        trunk: the hash of the weights, see `trunk_hash`.
        dataset: the hash of the dataset's manifest.
        split: the split's name.
        image_size: height and width of the trunk's images.
        context_length: tokens of the trunk's texts.
        augmentations: K. With K = 1 an image is fitted as for evaluation; with K > 1 it has K fixed random crops,
            drawn by (``augmentation_seed``, id, k).
        augmentation_seed: draws the crops.
        captions: the hashes of the caption sets beside the dataset whose texts are stored too.
        crops: the hash of an embedding set; images have the K crops of those embeddings.
        preprocessing: how images are prepared.
        tokenizer: how texts are prepared.
        dtype: the features' type.
        version: of the files and the computation.
    """

    trunk: str
    dataset: str
    split: str
    image_size: int
    context_length: int
    augmentations: int = Field(1, ge=1)
    augmentation_seed: int = 0
    captions: tuple[str, ...] = ()
    crops: str | None = None
    preprocessing: str = f"shorter side bilinear, centre crop; crops of {TRAIN_SCALE} of the area, bilinear"
    tokenizer: str = "CLIP byte pairs"
    dtype: str = "bfloat16"
    version: int = 2  # raise it whenever the same key would give other features or other files

    @classmethod
    def of(
        cls,
        model: Clip,
        dataset: Dataset,
        split: str,
        augmentations: int = 1,
        augmentation_seed: int = 0,
        captions: Sequence[Sidecar] = (),
        crops: Sidecar | None = None,
    ) -> TrunkCacheKey:
        """Return the key of a model's trunk for a split.

        Args:
            model: the model whose trunk is used.
            dataset: the dataset.
            split: its split.
            augmentations: K, unless ``crops`` decides it.
            augmentation_seed: draws the crops.
            captions: caption sets beside the dataset.
            crops: an embedding set beside the dataset.

        Raises:
            UserError: there is no such split, or ``augmentations`` is below 1.
        """
        dataset.entries(split)
        if crops is not None:
            augmentations, augmentation_seed = EmbeddingLayout.of(crops.manifest).augmentations, 0
        if augmentations < 1:
            raise UserError(f"augmentations is {augmentations}: an image needs at least 1 variant")
        return cls(
            trunk=trunk_hash(model),
            dataset=dataset.hash,
            split=split,
            image_size=model.config.image.image_size,
            context_length=model.config.text.context_length,
            augmentations=augmentations,
            augmentation_seed=augmentation_seed if augmentations > 1 else 0,
            captions=tuple(sidecar.hash for sidecar in captions),
            crops=None if crops is None else crops.hash,
        )

    @property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON."""
        return canonical_hash(self.model_dump(mode="json"))
