"""One exact step: micro-batches, gradient caching, several workers.

The loss sees all embeddings of the batch; the device holds the activations of one micro-batch. The computation is
cut at the embeddings (gradient caching, GradCache, arXiv 2101.06983): encode everything, compute the loss and its
gradient with respect to the embeddings, then encode each micro-batch again with a graph and let that gradient flow
back. A batch of one micro-batch is encoded once. With several workers the embeddings are gathered before the loss,
so that each worker sees the global batch, and gradients are summed after it.

Exact where encoding a pair does not depend on the other pairs, that is with every BatchNorm in eval mode.

Shapes: B pairs of this worker, m of a micro-batch, W workers, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from siclip.data.batch import Batch, TrunkFeatures, to_float_images
from siclip.errors import UserError
from siclip.losses import Embeddings, Objective, PairIds
from siclip.models.clip import Clip
from siclip.teachers import Teacher, fit_context

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
        with torch.no_grad() if len(chunks) > 1 else nullcontext():
            for chunk in chunks:
                chunk.random_state = _RandomState(batch.tokens.device)
                self._encode(chunk)
        parts, image, text = self._loss(chunks, teacher, generator, progress, scale)
        start = 0
        for chunk in chunks:
            rows = slice(start, start + len(chunk.batch))
            start = rows.stop
            if len(chunks) > 1:
                with chunk.random_state.replayed():
                    self._encode(chunk)
            _flow_back(((chunk.image, image[rows]), (chunk.text, text[rows])))
            chunk.forget()
        _reduce_gradients(self.model, self.objective)
        return parts

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
        image, text = (_join(getattr(chunk, name).detach() for chunk in chunks).requires_grad_() for name in _TOWERS)
        teacher = None
        if targets is not None:
            teacher = Embeddings(_join([targets.image]), _join([targets.text]), targets.logit_scale)
        ids = PairIds(
            image=_join(chunk.batch.image_ids for chunk in chunks),
            caption=_join(chunk.batch.caption_ids for chunk in chunks),
        )
        student = Embeddings(image=image, text=text, logit_scale=self.model.scale())
        parts: dict[str, Tensor] = self.objective(student, teacher, ids, generator, progress=progress)
        scale(parts["loss"]).backward()  # type: ignore[no-untyped-call]
        assert image.grad is not None and text.grad is not None
        return parts, _own_rows(image.grad), _own_rows(text.grad)


_TOWERS = ("image", "text")
TRUNK_CHUNK = 128


def trunk_features(model: Clip, batch: Batch) -> TrunkFeatures:
    """The trunk's output for a batch: stored with it, or computed from its images and tokens.

    A frozen trunk runs on `TRUNK_CHUNK` pairs at a time, without gradient: it needs no more memory than that.

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
        pieces = [model.trunk(to_float_images(images), ids) for images, ids in chunks]
    return TrunkFeatures(torch.cat([p.image for p in pieces]), torch.cat([p.text for p in pieces]))


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

    def forget(self) -> None:
        """Let go of what the next micro-batch needs the memory for."""
        self.features = None
        self.image = self.text = torch.empty(0)


class _RandomState:
    """The random state of CPU and device now, to be replayed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @contextmanager
    def replayed(self) -> Iterator[None]:
        with torch.random.fork_rng([self.device] if self.cuda is not None else []):
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda, self.device)
            yield


def _flow_back(gradients: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Backward from embeddings; those of a tower without anything to train have no graph."""
    with_graph = [(embeddings, gradient) for embeddings, gradient in gradients if embeddings.requires_grad]
    if with_graph:
        torch.autograd.backward([e for e, _ in with_graph], [g for _, g in with_graph])


def workers() -> int:
    """Training processes that share a batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _join(pieces: Iterable[Tensor]) -> Tensor:
    """Rows of all micro-batches, then of all workers in rank order: (W·B, …)."""
    own = torch.cat(list(pieces)).contiguous()
    if workers() == 1:
        return own
    gathered = [torch.empty_like(own) for _ in range(workers())]
    dist.all_gather(gathered, own)
    return torch.cat(gathered)


def joined_batch(batch: Batch) -> Batch:
    """The pairs of all workers, in rank order, without a teacher's embeddings."""
    if workers() == 1:
        return batch
    images, features = batch.images, batch.features
    return Batch(
        images=None if images is None else _join([images]),
        tokens=_join([batch.tokens]),
        image_ids=_join([batch.image_ids]),
        caption_ids=_join([batch.caption_ids]),
        features=None if features is None else TrunkFeatures(_join([features.image]), _join([features.text])),
    )


def _own_rows(joined: Tensor) -> Tensor:
    if workers() == 1:
        return joined
    return joined.chunk(workers())[dist.get_rank()]


@torch.no_grad()
def _reduce_gradients(model: Clip, objective: nn.Module) -> None:
    """Sum what each worker's own pairs gave to the towers; average what every worker computed in whole."""
    if workers() == 1:
        return
    towers = [p for tower in (model.image_encoder, model.text_encoder) for p in tower.parameters()]
    whole = [model.logit_scale, *objective.parameters()]
    for parameters, divisor in ((towers, 1), (whole, workers())):
        trained = [p for p in parameters if p.requires_grad]
        if not trained:
            continue
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        dist.all_reduce(flat)
        pieces = torch.split(flat.div_(divisor), [grad.numel() for grad in grads])
        for parameter, summed in zip(trained, pieces, strict=True):
            parameter.grad = summed.view_as(parameter).clone()
