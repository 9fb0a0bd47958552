"""Shared by all exports: an output path that appears only after success, and the comparison of outputs.

Shapes: B batch, S image size, T context length, D embed_dim.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from siclip.config import ModelConfig
from siclip.errors import UserError
from siclip.models.clip import Clip
from siclip.models.finite import check_finite

Encode = Callable[[Tensor], Tensor]
# Relative to the largest value: far above fp32 rounding through the network, far below any wrong weight.
LIMIT = 1e-4
# 1 is a special case for exporters, 2 is the batch of the traced example, 7 is neither.
BATCHES = (1, 2, 7)


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        files: the files written.
        largest_difference: of their outputs from the model's, relative to the largest value.
    """

    files: tuple[Path, ...]
    largest_difference: float


def check_new_output(path: Path) -> None:
    """Check, before anything is computed, that a new file or folder can be written; nothing is created.

    Raises:
        UserError: ``path`` exists, or the first folder above it that exists is not a writable folder.
    """
    if path.exists():
        raise UserError(f"{path} exists and is not overwritten: delete it or choose another name")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"{path} cannot be written: {above} is not a folder; choose another name")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written: {above} may not be written to; choose another folder")


@contextmanager
def new_output(path: Path) -> Iterator[Path]:
    """A temporary path for a file or folder, which is renamed to ``path`` when the block ends without an error.

    Missing folders above it are created.

    Raises:
        UserError: ``path`` exists, or its parent is not a writable folder.
    """
    check_new_output(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise UserError(f"cannot write in {path.parent}: {error.strerror}; choose another folder") from None
    try:
        yield temporary / path.name
        (temporary / path.name).rename(path)
    finally:
        shutil.rmtree(temporary)


def sample_images(config: ModelConfig, batch: int) -> Tensor:
    """Smooth random images (B, 3, S, S) in [0, 1], the same in every call."""
    coarse = torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch))
    return F.interpolate(coarse, size=(config.image.image_size,) * 2, mode="bilinear")


def sample_tokens(config: ModelConfig, batch: int) -> Tensor:
    """Random token ids (B, T), the same in every call: texts from the shortest to the longest, end, padding."""
    length, vocabulary = config.text.context_length, config.text.vocab_size
    generator = torch.Generator().manual_seed(batch)
    tokens = torch.randint(vocabulary, (batch, length), generator=generator)
    ends = torch.linspace(1, length - 1, batch).long()[:, None]
    positions = torch.arange(length)
    return tokens.masked_fill(positions == ends, vocabulary - 1).masked_fill(positions > ends, 0)


def largest_difference(model: Clip, encode_image: Encode, encode_text: Encode, what: str) -> float:
    """The largest of max|expected − found| / max|expected| over both towers and batches of 1, 2 and 7.

    Args:
        model: computes the expected embeddings (B, D); in eval mode, on the CPU.
        encode_image, encode_text: run the export on the same inputs.
        what: names the export in the error message.

    Raises:
        UserError: the difference is above 1e-4 or nan, or a shape differs.
        NotFinite: the model is not finite.
    """
    check_finite(model, f"the model {model.config.name}")
    towers = (
        ("image", sample_images, model.encode_image, encode_image),
        ("text", sample_tokens, model.encode_text, encode_text),
    )
    largest = 0.0
    for batch in BATCHES:
        for name, sample, encode, encode_exported in towers:
            inputs = sample(model.config, batch)
            with torch.no_grad():
                expected, found = encode(inputs), encode_exported(inputs)
            difference = float("inf")
            if found.shape == expected.shape:
                difference = float((expected - found).abs().max() / expected.abs().max())
            # Written so that nan is refused too.
            if not difference <= LIMIT:
                raise UserError(
                    f"{what} is refused, nothing was written: the {name} embeddings of a batch of {batch} differ "
                    f"from the model's by {difference:.1e} of the largest value, the limit is {LIMIT:.0e}; check "
                    "that the weights are finite, or try other versions of the libraries"
                )
            largest = max(largest, difference)
    return largest
