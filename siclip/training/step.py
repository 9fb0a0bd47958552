"""One exact step: micro-batches, gradient caching, several workers.

The loss sees all embeddings of the batch; the device holds the activations of one micro-batch. The computation is
cut at the embeddings (gradient caching, GradCache, arXiv 2101.06983): encode everything, compute the loss and its
gradient with respect to the embeddings, then encode each micro-batch again with a graph and let that gradient flow
back. The last micro-batch keeps its graph from the first time, so a batch of one is encoded once. With several
workers the embeddings are gathered before the loss, so that each worker sees the global batch, and gradients are
summed after it.

Exact where encoding a pair does not depend on the other pairs, that is with every BatchNorm in eval mode.

Shapes: B pairs of this worker, m of a micro-batch, W workers, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from siclip.data.batch import Batch, TrunkFeatures, to_float_images
from siclip.errors import UserError
from siclip.losses import Embeddings, Objective, PairIds
from siclip.models.clip import Clip
from siclip.models.fused_trunk import fused_trunk
from siclip.teachers import Teacher, fit_context
from siclip.training.workers import joined, own_rows, reduce_gradients

Autocast = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Step:
    """How a batch is computed.

    ``micro_batch_size``: pairs whose activations are held at a time; 0 means all. ``autocast`` opens the context
    that encoding runs in; the loss is always fp32. ``compiled_head`` stands for ``model.head``.
    """

    model: Clip
    objective: Objective
    teacher: Teacher | None
    micro_batch_size: int = 0
    autocast: Autocast = nullcontext
    compiled_head: Callable[[TrunkFeatures, Tensor], tuple[Tensor, Tensor]] | None = None

    def gradients(
        self,
        batch: Batch,
        generator: torch.Generator,
        *,
        progress: float = 0.0,
        scale: Callable[[Tensor], Tensor] = lambda loss: loss,
    ) -> dict[str, Tensor]:
        """Add the gradients of a batch to every trained parameter's ``grad``; returns the objective's figures.

        ``scale`` is what a gradient scaler does to the loss. The random state that a stochastic layer draws from
        is the same in both encodings.
        """
        with self.autocast():
            features = trunk_features(self.model, batch) if self.model.trunk_is_frozen() else None
            teacher = self._targets(batch, features)
        micro = self.micro_batch_size or len(batch)
        slices = [slice(start, start + micro) for start in range(0, len(batch), micro)]
        chunks = [_Chunk(batch[rows], features[rows] if features else None) for rows in slices]
        *others, last = chunks
        self._encode_without_graph(others)
        self._encode(last)
        parts, image, text = self._loss(chunks, teacher, generator, progress, scale)
        for chunk, rows in zip(reversed(chunks), reversed(slices), strict=True):
            if chunk is not last:
                with chunk.random_state.replayed():
                    self._encode(chunk)
            _flow_back(((chunk.image, image[rows]), (chunk.text, text[rows])))
            chunk.forget()
        reduce_gradients(self.model, self.objective)
        return parts

    @torch.no_grad()
    def _encode_without_graph(self, chunks: list[_Chunk]) -> None:
        """The embeddings of all micro-batches but the last, whose graph is kept.

        Heads whose trunk has run take as many pairs at a time as the trunk does: without a graph they need little
        memory. That is undone where something in them draws random numbers, for these are drawn by micro-batch.
        """
        if chunks and self._takes_more_at_a_time(chunks[0]):
            before = _RandomState(chunks[0].batch.tokens.device)
            for group in _grouped(chunks):
                joined_chunk = _Chunk.joining(group)
                self._encode(joined_chunk)
                joined_chunk.share(group)
            if before.is_now():
                return
            before.restore()
        for chunk in chunks:
            chunk.random_state = _RandomState(chunk.batch.tokens.device)
            self._encode(chunk)

    def _takes_more_at_a_time(self, chunk: _Chunk) -> bool:
        """Whether it saves time and, with no BatchNorm that looks at the other pairs, changes nothing."""
        norms = (m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
        return (
            chunk.features is not None
            and 2 * len(chunk.batch) <= TRUNK_CHUNK
            and self.compiled_head is None
            and not any(norm.training for norm in norms)
        )

    def _encode(self, chunk: _Chunk) -> None:
        """The student's embeddings of a micro-batch."""
        with self.autocast():
            features = chunk.features or trunk_features(self.model, chunk.batch)
            head = self.compiled_head or self.model.head
            chunk.image, chunk.text = head(features, fitted_tokens(self.model, chunk.batch))

    def _targets(self, batch: Batch, features: TrunkFeatures | None) -> Embeddings | None:
        """The teacher's embeddings, `TRUNK_CHUNK` pairs at a time: without gradient larger pieces cost no memory."""
        if self.teacher is None:
            return None
        rows = [slice(start, start + TRUNK_CHUNK) for start in range(0, len(batch), TRUNK_CHUNK)]
        pieces = [self.teacher.embed(batch[some], features[some] if features else None) for some in rows]
        return Embeddings(
            image=torch.cat([piece.image for piece in pieces]),
            text=torch.cat([piece.text for piece in pieces]),
            logit_scale=pieces[0].logit_scale,
        )

    def _loss(
        self,
        chunks: list[_Chunk],
        targets: Embeddings | None,
        generator: torch.Generator,
        progress: float,
        scale: Callable[[Tensor], Tensor],
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The figures, and the gradients of the loss with respect to this worker's embeddings, (B, D) each."""
        image, text = (joined(getattr(chunk, name).detach() for chunk in chunks).requires_grad_() for name in _TOWERS)
        teacher = None
        if targets is not None:
            teacher = Embeddings(joined([targets.image]), joined([targets.text]), targets.logit_scale)
        ids = PairIds(
            image=joined(chunk.batch.image_ids for chunk in chunks),
            caption=joined(chunk.batch.caption_ids for chunk in chunks),
        )
        student = Embeddings(image=image, text=text, logit_scale=self.model.scale())
        parts: dict[str, Tensor] = self.objective(student, teacher, ids, generator, progress=progress)
        scale(parts["loss"]).backward()  # type: ignore[no-untyped-call]
        assert image.grad is not None and text.grad is not None
        return parts, own_rows(image.grad), own_rows(text.grad)


_TOWERS = ("image", "text")
TRUNK_CHUNK = 128


def trunk_features(model: Clip, batch: Batch) -> TrunkFeatures:
    """The trunk's output for a batch: stored with it, or computed from its images and tokens.

    A frozen trunk runs on `TRUNK_CHUNK` pairs at a time, without gradient: it needs no more memory than that. Its
    image part is the folded one (`siclip.models.fused_trunk`).

    Raises:
        UserError: the batch has stored features and the trunk trains.
    """
    frozen = model.trunk_is_frozen()
    if batch.features is not None:
        if not frozen:
            raise UserError("stored trunk features are of a frozen trunk, this one trains: freeze it or use images")
        return _as_computed(batch.features)
    assert batch.images is not None
    tokens = fitted_tokens(model, batch)
    if not frozen:
        return model.trunk(to_float_images(batch.images), tokens)
    chunks = zip(torch.split(batch.images, TRUNK_CHUNK), torch.split(tokens, TRUNK_CHUNK), strict=True)
    with torch.no_grad():
        pieces = [
            (fused_trunk(model.image_encoder, to_float_images(images)), model.text_encoder.trunk(ids))
            for images, ids in chunks
        ]
    return TrunkFeatures(*(torch.cat(tower) for tower in zip(*pieces, strict=True)))


def _as_computed(stored: TrunkFeatures) -> TrunkFeatures:
    """Stored bf16 features in the type and memory layout that the trunk would have given."""
    image, text = stored.image, stored.text
    if not torch.is_autocast_enabled(image.device.type):
        image, text = image.float(), text.float()
    return TrunkFeatures(image.contiguous(memory_format=torch.channels_last), text)


def fitted_tokens(model: Clip, batch: Batch) -> Tensor:
    """The batch's token ids, cut to the model's context where that is shorter."""
    return fit_context(batch.tokens, min(batch.tokens.shape[1], model.config.text.context_length))


class _Chunk:
    """A micro-batch on its way through a step; ``features`` where the trunk is frozen and has run already."""

    def __init__(self, batch: Batch, features: TrunkFeatures | None) -> None:
        self.batch = batch
        self.features = features
        self.image = self.text = torch.empty(0)
        self.random_state = _RandomState(batch.tokens.device)

    @classmethod
    def joining(cls, chunks: list[_Chunk]) -> _Chunk:
        """One of all their pairs, for the head: tokens and trunk features alone."""
        tokens, ids = (torch.cat([getattr(c.batch, name) for c in chunks]) for name in ("tokens", "image_ids"))
        features = [chunk.features for chunk in chunks if chunk.features]
        towers = (torch.cat([getattr(f, tower) for f in features]) for tower in _TOWERS)
        return cls(Batch(None, tokens, ids, ids), TrunkFeatures(*towers))

    def share(self, chunks: list[_Chunk]) -> None:
        """Give each its embeddings."""
        sizes = [len(chunk.batch) for chunk in chunks]
        for chunk, image, text in zip(
            chunks, torch.split(self.image, sizes), torch.split(self.text, sizes), strict=True
        ):
            chunk.image, chunk.text = image, text

    def forget(self) -> None:
        """Let go of what the next micro-batch needs the memory for."""
        self.features = None
        self.image = self.text = torch.empty(0)


def _grouped(chunks: list[_Chunk]) -> Iterator[list[_Chunk]]:
    """As many in each group as come to `TRUNK_CHUNK` pairs."""
    count = TRUNK_CHUNK // len(chunks[0].batch)
    return (chunks[start : start + count] for start in range(0, len(chunks), count))


class _RandomState:
    """The random state of CPU and device now, to be replayed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def is_now(self) -> bool:
        """Whether nothing was drawn since."""
        now = _RandomState(self.device)
        return torch.equal(self.cpu, now.cpu) and (
            self.cuda is None or now.cuda is None or torch.equal(self.cuda, now.cuda)
        )

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        with torch.random.fork_rng([self.device] if self.cuda is not None else []):
            self.restore()
            yield


def _flow_back(gradients: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Backward from embeddings; those of a tower without anything to train have no graph."""
    with_graph = [(embeddings, gradient) for embeddings, gradient in gradients if embeddings.requires_grad]
    if with_graph:
        torch.autograd.backward([e for e, _ in with_graph], [g for _, g in with_graph])
