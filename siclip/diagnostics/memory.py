"""The memory of a training step, counted by following every storage from its creation to its end.

A dispatch mode sees each operation below autograd, in the backward pass and the optimizer too, and notes the storages
of its results. With fake tensors (`siclip.training.fake`) nothing is allocated, so that a step of any size can be
counted on any machine. Not in the count: what an operation allocates inside itself (workspaces of convolutions), the
fragments of an allocator and the device's context.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from siclip.data.batch import Batch
from siclip.teachers import Teacher
from siclip.training.trainer import Trainer

WEIGHTS = "weights"
GRADIENTS = "gradients"
OPTIMIZER = "optimizer state"
AVERAGE = "moving average"
ACTIVATIONS = "activations"
TEACHER = "teacher"
BATCH = "batch"
LOSS = "loss"
OTHER = "other"
PARTS = (WEIGHTS, GRADIENTS, OPTIMIZER, AVERAGE, ACTIVATIONS, TEACHER, BATCH, LOSS, OTHER)
"""What a storage is for. ``other``: trunk features, gradients of activations, embeddings."""


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """The peak of a step.

    Attributes:
        peak_bytes: the most bytes in live storages at a time.
        operation: the operation whose result made the peak, with its shape and, in a forward pass, its module.
        parts: what the live storages were for at the peak, in bytes; their sum is ``peak_bytes``.
    """

    peak_bytes: int
    operation: str
    parts: Mapping[str, int]


class LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside the block, the storages that operations create count until they are freed; views of one count once.

    Attributes:
        peak: the most bytes at a time since the start or `restart`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live: dict[StorageWeakRef, tuple[int, str]] = {}
        self._parts = Counter(dict.fromkeys(PARTS, 0))
        self._modules: list[nn.Module] = []
        self._owners: dict[nn.Module, tuple[str, str]] = {}
        self.restart()

    def restart(self) -> None:
        """Forget the peak."""
        self.peak = self._parts.total()
        self._at_peak = self._parts.copy()
        self._operation: tuple[Any, Any, nn.Module | None] = (None, (), None)

    def own(self, module: nn.Module, part: str, name: str) -> None:
        """Assign a module's tensors, and what its forward passes with a graph create, to parts.

        Args:
            module: with submodules.
            part: of what its forward passes create.
            name: before the names of its submodules.
        """
        for path, inner in module.named_modules():
            self._owners[inner] = (part, f"{name}.{path}".strip("."))

    def assign(self, tensors: Iterable[Tensor], part: str) -> None:
        """Assign the storages of tensors to a part; those not followed yet are from now on."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._follow(storage)
            key = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            size, earlier = self._live[key]
            self._live[key] = (size, part)
            self._parts[earlier] -= size
            self._parts[part] += size

    @property
    def at_peak(self) -> StepMemory:
        function, shape, module = self._operation
        where = f" in {self._owners[module][1]}" if module in self._owners else ""
        return StepMemory(
            peak_bytes=self.peak,
            operation=f"{function} → {shape}{where}",
            parts={part: size for part, size in self._at_peak.items() if size},
        )

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        if (now := self._parts.total()) > self.peak:
            self.peak, self._at_peak = now, self._parts.copy()
            shape = next((tuple(t.shape) for t in tree_iter(result) if isinstance(t, Tensor)), ())
            self._operation = (function, shape, self._modules[-1] if self._modules else None)
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        # Equal for all views and wrappers of one storage.
        key = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        if key not in self._live:
            size, part = storage.nbytes(), self._part()
            self._live[key] = (size, part)
            self._parts[part] += size
            weakref.finalize(storage, self._freed, key)

    def _freed(self, key: StorageWeakRef) -> None:
        size, part = self._live.pop(key)
        self._parts[part] -= size

    def _part(self) -> str:
        """What an operation that runs now creates: the part of the outermost module that is known."""
        part = next((self._owners[module][0] for module in self._modules if module in self._owners), OTHER)
        # Without a graph nothing is kept for a backward pass.
        return part if part != ACTIVATIONS or torch.is_grad_enabled() else OTHER

    def __enter__(self) -> LiveStorages:
        def enter(module: nn.Module, inputs: Any) -> None:
            self._modules.append(module)

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            self._modules.pop()

        self._hooks = (
            register_module_forward_pre_hook(enter),
            register_module_forward_hook(leave, always_call=True),
        )
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()


def step_memory(trainer: Trainer, make_batch: Callable[[], Batch]) -> StepMemory:
    """Count the second step of a training, when the optimizer has its state; with a thaw, of the thawed model.

    Args:
        trainer: of fake tensors, whose mode is active. Its step and its weights are no longer those of a training.
        make_batch: makes a batch for the trainer.
    """
    if trainer.thawing:
        trainer.step = trainer.config.thaw_step
        trainer.thaw_when_due()
    with LiveStorages() as live, _gradients_assigned(live, trainer):
        _assign(live, trainer)
        for _ in range(2):
            live.restart()
            batch = make_batch()
            live.assign(_tensors(batch), BATCH)
            _, norms = trainer.gradients(batch, None)
            trainer.apply(torch.as_tensor(norms["gradient_norm"]))
            states = trainer.optimizer.state.values()
            live.assign((value for state in states for value in state.values()), OPTIMIZER)
            if trainer.average is not None:
                trainer.average.update_parameters(trainer.model)
            del batch, norms
        return live.at_peak


def _assign(live: LiveStorages, trainer: Trainer) -> None:
    for module, part, created, name in (
        (trainer.model, WEIGHTS, ACTIVATIONS, ""),
        (trainer.objective, WEIGHTS, LOSS, "loss"),
        (trainer.average, AVERAGE, AVERAGE, "average"),
        *((model, TEACHER, TEACHER, "teacher") for model in _models(trainer.teacher)),
    ):
        if module is not None:
            live.own(module, created, name)
            live.assign([*module.parameters(), *module.buffers()], part)


def _models(teacher: Teacher | None) -> Iterator[nn.Module]:
    """The modules of a teacher, those of an ensemble included."""
    for one in getattr(teacher, "teachers", [teacher]):
        model = getattr(one, "model", None)
        if isinstance(model, nn.Module):
            yield model


@contextmanager
def _gradients_assigned(live: LiveStorages, trainer: Trainer) -> Iterator[None]:
    def accumulated(parameter: Tensor) -> None:
        if parameter.grad is not None:
            live.assign([parameter.grad], GRADIENTS)

    trained = [p for p in (*trainer.model.parameters(), *trainer.objective.parameters()) if p.requires_grad]
    hooks = [p.register_post_accumulate_grad_hook(accumulated) for p in trained]  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _tensors(batch: Batch) -> list[Tensor]:
    features = batch.features
    tensors = [
        batch.images,
        batch.tokens,
        batch.image_ids,
        batch.caption_ids,
        batch.teacher_image,
        batch.teacher_text,
    ]
    if features is not None:
        tensors += [features.image, features.text]
    return [tensor for tensor in tensors if tensor is not None]
