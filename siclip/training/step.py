"""One exact step: micro-batches, gradient caching, several workers.

The loss uses all embeddings of the batch, while only the activations of one micro-batch are in memory. The graph is
cut at the embeddings (gradient caching, GradCache, arXiv 2101.06983): encode everything without a graph, compute the
loss and its gradient with respect to the embeddings, then encode each micro-batch again with a graph and propagate
that gradient. The last micro-batch keeps its graph from the first encoding, so that a batch of one micro-batch is
encoded once. With several workers the embeddings are gathered before the loss, so that each worker sees the global
batch, and gradients are summed after it.

This is exact if the encoding of a sample does not depend on the other samples: every BatchNorm is in eval mode.

Shapes: B samples of this worker, D embed_dim, T context length, K generated false captions of a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from siclip.data.batch import Batch, Negatives, TrunkFeatures, to_float_images
from siclip.errors import UserError
from siclip.losses import Embeddings, GeneratedTexts, Objective, PairIds
from siclip.models.clip import Clip
from siclip.models.fused_trunk import fused_trunk
from siclip.teachers import Teacher, fit_context
from siclip.training.workers import joined, own_rows, reduce_gradients

Autocast = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Step:
    """How a batch is computed.

    Attributes:
        micro_batch_size: samples whose activations are in memory at a time; 0: all.
        autocast: opens the context in which encoding runs; the loss is always fp32.
        compiled_head: replaces ``model.head``.
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
        generator: torch.Generator | None,
        *,
        progress: float = 0.0,
        scale: Callable[[Tensor], Tensor] = lambda loss: loss,
    ) -> dict[str, Tensor]:
        """Add the gradients of a batch to the ``grad`` of every parameter that trains.

        Stochastic layers see the same random state in both encodings.

        Args:
            batch: of this worker.
            generator: for the miners of pair matching, see `siclip.losses.mine_negatives`.
            progress: share of the training completed, 0 to 1.
            scale: a gradient scaler's scaling of the loss.

        Returns:
            The scalars of the objective.
        """
        forward = self.forward(batch, generator, progress=progress)
        scale(forward.parts["loss"]).backward()  # type: ignore[no-untyped-call]
        image, text, negatives = forward.gradients()
        chunks, slices, last = forward.chunks, forward.slices, forward.chunks[-1]
        # Last chunk first: its graph is already in memory and is freed before another one is built.
        for chunk, rows in zip(reversed(chunks), reversed(slices), strict=True):
            # Stochastic layers must draw the same numbers as in the first encoding.
            if chunk is not last:
                assert chunk.random_state is not None
                with chunk.random_state.replayed():
                    self._encode(chunk)
            pairs = [(chunk.image, image[rows]), (chunk.text, text[rows])]
            if chunk.negatives is not None and negatives is not None:
                pairs.append((chunk.negatives, negatives[rows]))
            _flow_back(pairs)
            chunk.forget()
        reduce_gradients(self.model, self.objective)
        return forward.parts

    def forward(self, batch: Batch, generator: torch.Generator | None, *, progress: float = 0.0) -> _Forward:
        """Everything before the backward pass: trunk, teacher, embeddings and loss. Arguments as `gradients`."""
        if not self.objective.config.uses_generated:
            # Texts that no part of the loss uses are not encoded.
            batch = replace(batch, negatives=None)
        with self.autocast():
            features = trunk_features(self.model, batch) if self.model.trunk_is_frozen() else None
            teacher = self._targets(batch, features)
        micro = self.micro_batch_size or len(batch)
        slices = [slice(start, start + micro) for start in range(0, len(batch), micro)]
        chunks = [_Chunk(batch[rows], features[rows] if features else None) for rows in slices]
        *others, last = chunks
        self._encode_without_graph(others)
        self._encode(last)
        return self._loss(chunks, slices, teacher, generator, progress)

    @torch.no_grad()
    def _encode_without_graph(self, chunks: list[_Chunk]) -> None:
        """Compute the embeddings of all micro-batches except the last, whose graph is kept.

        If the trunk has already run, the heads take as many samples at a time as the trunk, because without a graph
        they need little memory. This is undone if a head draws random numbers, which must be drawn by micro-batch.
        """
        if chunks and self._takes_more_at_a_time(chunks[0]):
            before = _RandomState(chunks[0].batch.tokens.device)
            for group in _grouped(chunks):
                joined_chunk = _Chunk.joining(group)
                self._encode(joined_chunk)
                joined_chunk.share(group)
            if before.is_now():
                for chunk in chunks:
                    chunk.random_state = before
                return
            before.restore()
        for chunk in chunks:
            chunk.random_state = _RandomState(chunk.batch.tokens.device)
            self._encode(chunk)

    def _takes_more_at_a_time(self, chunk: _Chunk) -> bool:
        """Whether larger chunks save time and change nothing: no BatchNorm uses the statistics of the chunk."""
        norms = (m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
        return (
            chunk.features is not None
            and 2 * len(chunk.batch) <= TRUNK_CHUNK
            and self.compiled_head is None
            and not any(norm.training for norm in norms)
        )

    def _encode(self, chunk: _Chunk) -> None:
        """Compute the student's embeddings of a micro-batch."""
        with self.autocast():
            features = chunk.features or trunk_features(self.model, chunk.batch)
            head = self.compiled_head or self.model.head
            tokens, negatives = fitted_tokens(self.model, chunk.batch), chunk.batch.negatives
            if negatives is None:
                chunk.image, chunk.text = head(features, tokens)
                return
            # True and false captions in one pass: a BatchNorm in train mode must not tell them apart.
            false = _fitted(self.model, negatives.tokens.flatten(0, 1))
            text = torch.cat([features.text, _false_features(self.model, chunk.batch, false, features.text.dtype)])
            chunk.image, texts = head(TrunkFeatures(features.image, text), torch.cat([tokens, false]))
            chunk.text = texts[: len(tokens)]
            chunk.negatives = texts[len(tokens) :].view(*negatives.ids.shape, -1)

    def _targets(self, batch: Batch, features: TrunkFeatures | None) -> Embeddings | None:
        """The teacher's embeddings, computed for `TRUNK_CHUNK` samples at a time."""
        if self.teacher is None:
            return None
        slices = [slice(start, start + TRUNK_CHUNK) for start in range(0, len(batch), TRUNK_CHUNK)]
        chunks = [self.teacher.embed(batch[rows], features[rows] if features else None) for rows in slices]
        return Embeddings(
            image=torch.cat([chunk.image for chunk in chunks]),
            text=torch.cat([chunk.text for chunk in chunks]),
            logit_scale=chunks[0].logit_scale,
        )

    def _loss(
        self,
        chunks: list[_Chunk],
        slices: list[slice],
        targets: Embeddings | None,
        generator: torch.Generator | None,
        progress: float,
    ) -> _Forward:
        # New leaves: the loss has a small graph of its own, which ends at the embeddings.
        image, text = (joined(getattr(chunk, name).detach() for chunk in chunks).requires_grad_() for name in _TOWERS)
        teacher = None
        if targets is not None:
            teacher = Embeddings(joined([targets.image]), joined([targets.text]), targets.logit_scale)
        ids = PairIds(
            image=joined(chunk.batch.image_ids for chunk in chunks),
            caption=joined(chunk.batch.caption_ids for chunk in chunks),
        )
        student = Embeddings(image=image, text=text, logit_scale=self.model.scale())
        generated = _joined_negatives(chunks)
        parts: dict[str, Tensor] = self.objective(
            student, teacher, ids, generator, progress=progress, generated=generated
        )
        return _Forward(chunks, slices, parts, image, text, None if generated is None else generated.text)


def _joined_negatives(chunks: list[_Chunk]) -> GeneratedTexts | None:
    """The false captions of all micro-batches and workers, their embeddings as a new leaf; None without any."""
    found = [(chunk.negatives, chunk.batch.negatives) for chunk in chunks]
    pairs = [(embeddings, batch) for embeddings, batch in found if embeddings is not None and batch is not None]
    if not pairs:
        return None
    return GeneratedTexts(
        text=joined(embeddings.detach() for embeddings, _ in pairs).requires_grad_(),
        ids=joined(batch.ids for _, batch in pairs),
        kinds=joined(batch.kinds for _, batch in pairs),
    )


_TOWERS = ("image", "text")
# Samples computed at a time without a graph; bounds the memory of a frozen trunk and of the teacher.
TRUNK_CHUNK = 128


def trunk_features(model: Clip, batch: Batch) -> TrunkFeatures:
    """The trunk's output for a batch: stored in the batch, or computed from its images and tokens.

    A frozen trunk runs on `TRUNK_CHUNK` samples at a time without gradient, its image part in folded form
    (`siclip.models.fused_trunk`).

    Raises:
        UserError: the batch has stored features but the trunk trains.
    """
    frozen = model.trunk_is_frozen()
    if batch.features is not None:
        if not frozen:
            raise UserError(
                "stored trunk features require a frozen trunk, but this one trains: freeze it or use images"
            )
        return _as_computed(batch.features)
    assert batch.images is not None
    tokens = fitted_tokens(model, batch)
    if not frozen:
        return model.trunk(to_float_images(batch.images), tokens)
    chunks = zip(torch.split(batch.images, TRUNK_CHUNK), torch.split(tokens, TRUNK_CHUNK), strict=True)
    with torch.no_grad():
        features = [
            (fused_trunk(model.image_encoder, to_float_images(images)), model.text_encoder.trunk(ids))
            for images, ids in chunks
        ]
    return TrunkFeatures(*(torch.cat(tower) for tower in zip(*features, strict=True)))


def _as_computed(stored: TrunkFeatures) -> TrunkFeatures:
    """Stored bf16 features in the type and memory layout of the trunk's output."""
    image, text = stored.image, stored.text
    if not torch.is_autocast_enabled(image.device.type):
        image, text = image.float(), text.float()
    return TrunkFeatures(image.contiguous(memory_format=torch.channels_last), text)


def fitted_tokens(model: Clip, batch: Batch) -> Tensor:
    """The batch's token ids, truncated to the model's context length if that is shorter."""
    return _fitted(model, batch.tokens)


def _fitted(model: Clip, tokens: Tensor) -> Tensor:
    return fit_context(tokens, min(tokens.shape[1], model.config.text.context_length))


def _false_features(model: Clip, batch: Batch, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """The text trunk's output for false captions (N, T), in the precision of the true ones, which may be stored."""
    if not model.trunk_is_frozen():
        return model.text_encoder.trunk(tokens)
    with torch.no_grad():
        features = torch.cat([model.text_encoder.trunk(ids) for ids in torch.split(tokens, TRUNK_CHUNK)])
    if batch.features is not None:
        # Rounded like the stored ones, so that only the words tell true and false captions apart.
        features = features.to(batch.features.text.dtype)
    return features.to(dtype)


class _Chunk:
    """A micro-batch on its way through a step; with ``features`` if the trunk is frozen and has already run."""

    def __init__(self, batch: Batch, features: TrunkFeatures | None) -> None:
        self.batch = batch
        self.features = features
        self.image = self.text = torch.empty(0)
        self.negatives: Tensor | None = None
        self.random_state: _RandomState | None = None

    @classmethod
    def joining(cls, chunks: list[_Chunk]) -> _Chunk:
        """A chunk of all their samples, for the head: it has only texts and trunk features."""
        tokens, ids = (torch.cat([getattr(c.batch, name) for c in chunks]) for name in ("tokens", "image_ids"))
        features = [chunk.features for chunk in chunks if chunk.features]
        towers = (torch.cat([getattr(f, tower) for f in features]) for tower in _TOWERS)
        # Only whether features are stored, and their precision, matters: the trunk has run.
        stored = chunks[0].batch.features
        whole = Batch(None, tokens, ids, ids, features=stored, negatives=_joined_tokens(chunks))
        return cls(whole, TrunkFeatures(*towers))

    def share(self, chunks: list[_Chunk]) -> None:
        """Distribute the embeddings to the chunks that were joined."""
        sizes = [len(chunk.batch) for chunk in chunks]
        for chunk, image, text in zip(
            chunks, torch.split(self.image, sizes), torch.split(self.text, sizes), strict=True
        ):
            chunk.image, chunk.text = image, text
        if self.negatives is not None:
            for chunk, negatives in zip(chunks, torch.split(self.negatives, sizes), strict=True):
                chunk.negatives = negatives

    def forget(self) -> None:
        """Free the memory that the next micro-batch needs."""
        self.features, self.negatives = None, None
        self.image = self.text = torch.empty(0)


def _joined_tokens(chunks: list[_Chunk]) -> Negatives | None:
    found = [chunk.batch.negatives for chunk in chunks if chunk.batch.negatives is not None]
    if not found:
        return None
    return Negatives(*(torch.cat([getattr(one, name) for one in found]) for name in ("tokens", "ids", "kinds")))


@dataclass(frozen=True, eq=False)
class _Forward:
    """A step before its backward pass.

    Attributes:
        chunks: the micro-batches; the last has a graph.
        slices: their rows.
        parts: the objective's scalars.
        image, text: the embeddings of all workers, (W·B, D); the loss has a small graph of its own, which ends here.
        negatives: those of generated false captions, (W·B, K, D); None without any.
    """

    chunks: list[_Chunk]
    slices: list[slice]
    parts: dict[str, Tensor]
    image: Tensor
    text: Tensor
    negatives: Tensor | None = None

    def gradients(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The gradients of the loss for this worker's embeddings, shaped like them, once it was propagated there."""
        assert self.image.grad is not None and self.text.grad is not None
        false = None if self.negatives is None or self.negatives.grad is None else own_rows(self.negatives.grad)
        return own_rows(self.image.grad), own_rows(self.text.grad), false


def _grouped(chunks: list[_Chunk]) -> Iterator[list[_Chunk]]:
    """Groups of chunks with at most `TRUNK_CHUNK` samples each."""
    count = TRUNK_CHUNK // len(chunks[0].batch)
    return (chunks[start : start + count] for start in range(0, len(chunks), count))


class _RandomState:
    """A snapshot of the random state of CPU and device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def is_now(self) -> bool:
        """Whether no random number was drawn since the snapshot."""
        now = _RandomState(self.device)
        # Byte by byte, not by an operation on tensors: also beside fake tensors, the state of a generator has values.
        pairs = ((self.cpu, now.cpu), (self.cuda, now.cuda))
        return all(one is None or other is None or _bytes(one) == _bytes(other) for one, other in pairs)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        with torch.random.fork_rng([self.device] if self.cuda is not None else []):
            self.restore()
            yield


def _bytes(state: Tensor) -> list[int]:
    return list(state.untyped_storage())


def _flow_back(gradients: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Backward from embeddings; those of a tower without trained parameters have no graph."""
    with_graph = [(embeddings, gradient) for embeddings, gradient in gradients if embeddings.requires_grad]
    if with_graph:
        torch.autograd.backward([e for e, _ in with_graph], [g for _, g in with_graph])
