"""Teachers: the embeddings that a student is distilled from. One interface, several sources.

Shapes: B batch, T context length, D a teacher's embed_dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from siclip.data.batch import Batch, TrunkFeatures, to_float_images
from siclip.errors import UserError
from siclip.losses import Embeddings
from siclip.models.clip import Clip
from siclip.models.fused_trunk import fused_trunk
from siclip.models.hashing import weights_hash
from siclip.models.image_tower import ImageTower
from siclip.models.placing import placed
from siclip.models.text_tower import TextTower
from siclip.open_clip_models import open_model
from siclip.tokenizer import decode


class Teacher(Protocol):
    """Gives unit embeddings of a batch. A teacher is never trained."""

    @property
    def identity(self) -> str:
        """Type, name and a hash of the weights: different teachers have different identities."""

    @property
    def widths(self) -> tuple[int, int]:
        """Widths of the image and the text embeddings."""

    def embed(self, batch: Batch, features: TrunkFeatures | None) -> Embeddings:
        """Unit embeddings (B, D).

        Args:
            batch: the student's batch.
            features: the student's trunk outputs for this batch, if its trunk is frozen.
        """

    def follow(self, student: Clip) -> None:
        """Recompute what is shared with the student, after the student froze or thawed parameters."""

    def to(self, device: torch.device) -> None:
        """Move the teacher's tensors to a device."""


class ModelTeacher:
    """A siclip model that is run on the student's batch.

    If the student inherited this teacher's trunk and keeps it frozen, both trunks are the same network: the teacher
    reuses the student's trunk output and computes only its own attention blocks and head. This is decided per tower
    in ``shares["image"]`` and ``shares["text"]``; a student with a shorter context still shares the image trunk.
    """

    def __init__(self, model: Clip, student: Clip | None = None) -> None:
        self.model: Clip = _frozen(model)
        self.widths = (model.config.embed_dim, model.config.embed_dim)
        self.shares = {"image": False, "text": False}
        if student is not None:
            self.follow(student)

    @cached_property
    def identity(self) -> str:
        return f"{self.model.config.name} {weights_hash(self.model)}"

    def follow(self, student: Clip) -> None:
        """Determine which trunks are shared; called at the start and whenever the student freezes or thaws."""
        self.shares = {
            tower: _is_same_frozen(getattr(self.model, f"{tower}_encoder"), getattr(student, f"{tower}_encoder"))
            for tower in ("image", "text")
        }

    def to(self, device: torch.device) -> None:
        placed(self.model, device)

    @torch.no_grad()
    def embed(self, batch: Batch, features: TrunkFeatures | None) -> Embeddings:
        tokens = fit_context(batch.tokens, self.model.config.text.context_length)
        image, text = (features.image, features.text) if features else (None, None)
        if image is None or not self.shares["image"]:
            if batch.images is None:
                raise UserError(
                    "the batch has stored trunk features but no images, and this teacher needs images because its "
                    "image trunk differs from the student's: train from images, or store the teacher's embeddings"
                )
            image = fused_trunk(self.model.image_encoder, to_float_images(batch.images))
        if text is None or not self.shares["text"]:
            text = self.model.text_encoder.trunk(tokens)
        image, text = self.model.head(TrunkFeatures(image, text), tokens)
        return Embeddings(image=image, text=text, logit_scale=self.model.scale().detach())


class OpenClipTeacher:
    """An open_clip model with its own preprocessing and tokenizer.

    It receives the student's pixels, resized to its own input size (antialiased, with its own interpolation) and
    normalised with its own mean and standard deviation. A teacher with CLIP's tokenizer receives the student's token
    ids, truncated or padded to its context length; for another tokenizer the caption is decoded and tokenized again.

    Args:
        name: an open_clip model name.
        pretrained: an open_clip tag or the path of a checkpoint.

    Raises:
        UserError: open_clip has no such model or tag, or cannot read the weights.
    """

    def __init__(self, name: str, pretrained: str) -> None:
        try:
            model, self.tokenizer, _ = open_model(name, pretrained)
        except UserError as error:
            raise UserError(f"the teacher {name}:{pretrained}".rstrip(":") + f": {error}") from None
        # Parsers of foreign bytes and downloads raise exceptions of every type.
        except Exception as error:
            raise UserError(_not_loaded(name, pretrained, error)) from None
        self.name = name
        self.model: Any = _frozen(model)
        own = model.visual.preprocess_cfg
        self.mean, self.std = (torch.tensor(own[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        self.interpolation = "bilinear" if own["interpolation"] == "bilinear" else "bicubic"
        size = model.visual.image_size
        self.size: tuple[int, int] = tuple(size) if isinstance(size, Sequence) else (size, size)
        # Measured, because open_clip's model classes have no common attribute for their widths.
        with torch.no_grad():
            image = model.encode_image(torch.zeros(1, 3, *self.size))
            text = model.encode_text(self.tokenizer(["a"]))
        self.widths = (image.shape[1], text.shape[1])
        self.takes_our_ids = _gives_clip_ids(self.tokenizer)

    @cached_property
    def identity(self) -> str:
        return f"open_clip {self.name} {weights_hash(self.model)}"

    def follow(self, student: Clip) -> None:
        """It shares nothing."""

    def to(self, device: torch.device) -> None:
        self.model.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)

    @torch.no_grad()
    def embed(self, batch: Batch, features: TrunkFeatures | None) -> Embeddings:
        if batch.images is None:
            raise UserError(
                "the batch has stored trunk features but no images, which an open_clip teacher needs: train from "
                "images, or store the teacher's embeddings"
            )
        images = to_float_images(batch.images)
        # Bicubic interpolation overshoots; the clamp keeps pixels in [0, 1], as for a decoded image.
        if images.shape[-2:] != self.size:
            images = F.interpolate(images, self.size, mode=self.interpolation, antialias=True).clamp(0, 1)
        image = self.model.encode_image((images - self.mean) / self.std, normalize=True)
        text = self.model.encode_text(self._tokens(batch.tokens), normalize=True)
        scale = self.model.logit_scale.exp().clamp(max=100)
        return Embeddings(image=image.float(), text=text.float(), logit_scale=scale.detach())

    def _tokens(self, tokens: Tensor) -> Tensor:
        if self.takes_our_ids:
            return fit_context(tokens, int(self.tokenizer.context_length))
        texts = [decode(row) for row in tokens.tolist()]
        own: Tensor = self.tokenizer(texts).to(tokens.device)
        return own


class StoredTeacher:
    """Embeddings that were computed in advance and are read with each sample.

    Args:
        widths: widths of the image and the text embeddings.
        logit_scale: the teacher's exponentiated logit scale.
        name: the identity of the teacher that computed them.
    """

    def __init__(self, widths: tuple[int, int], logit_scale: float, name: str = "") -> None:
        self.widths = widths
        self.name = name
        self.identity = f"stored {name} {widths} {logit_scale}"
        self.logit_scale = torch.tensor(logit_scale)

    def follow(self, student: Clip) -> None:
        """It shares nothing."""

    def to(self, device: torch.device) -> None:
        self.logit_scale = self.logit_scale.to(device)

    def embed(self, batch: Batch, features: TrunkFeatures | None) -> Embeddings:
        if batch.teacher_image is None or batch.teacher_text is None:
            raise UserError(
                "the recipe's teacher is stored embeddings, but this dataset has none: compute them first "
                "(siclip-platform data embed)"
            )
        found = (batch.teacher_image.shape[1], batch.teacher_text.shape[1])
        if found != self.widths:
            raise UserError(
                f"the batch's stored teacher embeddings have widths {found} (image, text), but the loss was built "
                f"for a teacher with widths {self.widths}: name the embeddings of that teacher"
            )
        # Normalised again, because storing them in bf16 or int8 rounded their length.
        image, text = (F.normalize(e.float(), dim=-1) for e in (batch.teacher_image, batch.teacher_text))
        return Embeddings(image=image, text=text, logit_scale=self.logit_scale)


class TeacherEnsemble:
    """Several teachers as one: their n unit embeddings concatenated and divided by √n.

    The result has unit length, and its cosine is the mean of the teachers' cosines. The logit scale is their
    geometric mean.
    """

    def __init__(self, teachers: Sequence[Teacher]) -> None:
        if not teachers:
            raise UserError("an ensemble of teachers needs at least one teacher")
        self.teachers = tuple(teachers)
        images, texts = zip(*(teacher.widths for teacher in teachers), strict=True)
        self.widths = (sum(images), sum(texts))

    @property
    def identity(self) -> str:
        return " + ".join(teacher.identity for teacher in self.teachers)

    def follow(self, student: Clip) -> None:
        for teacher in self.teachers:
            teacher.follow(student)

    def to(self, device: torch.device) -> None:
        for teacher in self.teachers:
            teacher.to(device)

    def embed(self, batch: Batch, features: TrunkFeatures | None) -> Embeddings:
        each = [teacher.embed(batch, features) for teacher in self.teachers]
        # 1/√n keeps the concatenation at unit length.
        share = 1 / math.sqrt(len(each))
        return Embeddings(
            image=torch.cat([e.image for e in each], dim=1) * share,
            text=torch.cat([e.text for e in each], dim=1) * share,
            logit_scale=torch.stack([e.logit_scale.log() for e in each]).mean().exp(),
        )


def fit_context(tokens: Tensor, length: int) -> Tensor:
    """Token ids (B, T) → (B, length): padded with zeros, or truncated with the end-of-text token kept."""
    if tokens.shape[1] <= length:
        return F.pad(tokens, (0, length - tokens.shape[1]))
    # End of text is the highest token id; a truncated text gets it back at its last position.
    cut = tokens[:, :length].clone()
    end = tokens.max(dim=1).values
    # Not by a mask as an index, whose number of rows only the device knows.
    too_long = cut.max(dim=1).values != end
    cut[:, -1] = torch.where(too_long, end, cut[:, -1])
    return cut


def _gives_clip_ids(tokenizer: object) -> bool:
    """Whether an open_clip tokenizer gives every text the ids of `siclip.tokenizer`, apart from their number."""
    from open_clip.tokenizer import SimpleTokenizer

    if not isinstance(tokenizer, SimpleTokenizer) or tokenizer.reduction_fn is not None:
        return False
    plain = SimpleTokenizer()
    return bool(tokenizer.clean_fn is plain.clean_fn and tokenizer.encoder == plain.encoder)


def _not_loaded(name: str, pretrained: str, error: Exception) -> str:
    """The error message: whether the name, the tag or the file is wrong."""
    import open_clip

    teacher, known = f"the teacher {name}:{pretrained}".rstrip(":"), open_clip.list_models()
    reason = shorten(str(error).partition(". ")[0], 200, placeholder=" …") or type(error).__name__
    # Names with a schema (hf-hub:, local-dir:) include their weights and are not in open_clip's lists.
    plain_name = name.replace("/", "-") if ":" not in name else ""
    if plain_name and plain_name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ": open_clip.list_models() lists the names"
        return f"{teacher}: open_clip has no model {name!r}{hint}"
    if plain_name and Path(pretrained).is_file():
        return f"{teacher}: the file does not contain weights of this model ({reason})"
    if plain_name and not open_clip.get_pretrained_cfg(plain_name, pretrained):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(plain_name)) or "it has none"
        return f"{teacher}: {pretrained!r} is neither a file nor a tag of this model: {tags}"
    return f"{teacher} cannot be loaded by open_clip: {reason}"


def _frozen(model: nn.Module) -> Any:
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def _is_same_frozen(teacher: ImageTower | TextTower, student: ImageTower | TextTower) -> bool:
    """Whether the student's trunk has exactly the teacher's weights and does not train."""
    if len(teacher.trunk_modules()) != len(student.trunk_modules()):
        return False
    pairs = list(zip(teacher.trunk_modules(), student.trunk_modules(), strict=True))
    if any(p.requires_grad for _, module in pairs for p in module.parameters()):
        return False
    for ours, theirs in pairs:
        state, other = ours.state_dict(), theirs.state_dict()
        if state.keys() != other.keys() or any(state[key].shape != other[key].shape for key in state):
            return False
        if not all(torch.equal(state[key].cpu(), other[key].cpu()) for key in state):
            return False
    return True
