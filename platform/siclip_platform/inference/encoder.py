"""A checkpoint that embeds image files and texts.

Shapes: N inputs, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from siclip.data.batch import to_float_images
from siclip.data.images import decode_image
from siclip.data.transforms import fit_image
from siclip.models.clip import Clip
from siclip.models.finite import check_finite, unit
from siclip.models.hashing import weights_hash
from siclip.tokenizer import tokenize
from siclip_platform.storage import AnyPath
from siclip_platform.storage.checkpoints import read_model

Embeddings = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Encoder:
    """Unit embeddings from a reparameterized model in eval mode.

    Attributes:
        model: the reparameterized model.
        device: the GPU, if there is one, else the CPU.
        weights: `weights_hash` of the model as the checkpoint stores it.
        name: the checkpoint.
    """

    model: Clip
    device: torch.device
    weights: str
    name: str

    @classmethod
    def load(cls, checkpoint: str | AnyPath) -> Encoder:
        """Load a checkpoint that training wrote.

        Raises:
            UserError: it is missing, damaged or not such a checkpoint.
            NotFinite: the model is not finite.
        """
        model = read_model(checkpoint)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        fused = model if model.is_reparameterized else model.reparameterize()
        fused = fused.eval().requires_grad_(False).to(device)
        check_finite(fused, str(checkpoint))
        return cls(fused, device, weights_hash(model), str(checkpoint))

    @property
    def width(self) -> int:
        """The width D of the embeddings."""
        return self.model.config.embed_dim

    def pixels(self, file: bytes, where: str) -> npt.NDArray[np.uint8]:
        """Decode an image and resize it for the model: (size, size, 3) uint8.

        Args:
            file: an encoded image.
            where: where it comes from, for the error message.

        Raises:
            UserError: it cannot be decoded.
        """
        return fit_image(decode_image(file, where), self.model.config.image.image_size)

    @torch.no_grad()
    def images(self, pixels: Sequence[npt.NDArray[np.uint8]]) -> Embeddings:
        """Images from `pixels` → (N, D), unit length.

        Raises:
            NotFinite: an embedding is not finite.
        """
        batch = torch.from_numpy(np.stack(pixels)).to(self.device)
        return self._array(self.model.encode_image(to_float_images(batch), normalize=True))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Embeddings:
        """Texts → (N, D), unit length. A text that is longer than the model's context is truncated.

        Raises:
            NotFinite: an embedding is not finite.
        """
        tokens = tokenize(list(texts), self.model.config.text.context_length).to(self.device)
        return self._array(self.model.encode_text(tokens, normalize=True))

    def _array(self, embeddings: torch.Tensor) -> Embeddings:
        found: Embeddings = unit(embeddings.float(), self.name).cpu().numpy()
        return found
