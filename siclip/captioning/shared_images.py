"""An image that follows itself in a batch is encoded once.

Of most models transformers encodes the images before it repeats an input for every sequence that it returns; of GIT
and others it repeats the pixels too. Here the repetitions are left out, and the outputs are repeated instead.

Shapes: R rows, U of them without repetitions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn


def encode_once(model: nn.Module) -> None:
    """Make the vision towers in ``model`` compute equal images that follow one another once.

    A vision tower is a part whose ``forward`` begins with ``pixel_values``. A call with something else than images of
    four dimensions is left as it is.
    """
    towers: list[str] = []
    for name, part in model.named_modules():
        outer = not any(name.startswith(f"{tower}.") for tower in towers)
        if name and outer and next(iter(inspect.signature(part.forward).parameters), "") == "pixel_values":
            towers.append(name)
            part.forward = _once(part.forward)


def _once(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def shared(pixel_values: Any, *arguments: Any, **options: Any) -> Any:
        tensors = [value for value in (pixel_values, *arguments, *options.values()) if isinstance(value, Tensor)]
        images = isinstance(pixel_values, Tensor) and pixel_values.dim() == 4
        if not images or any(each.shape[:1] != pixel_values.shape[:1] for each in tensors):
            return forward(pixel_values, *arguments, **options)
        # A row is new if anything of it differs from the row before.
        new = torch.zeros(len(pixel_values), dtype=torch.bool, device=pixel_values.device)
        new[0] = True
        for rows in (each.reshape(len(each), -1) for each in tensors):
            new[1:] |= (rows[1:] != rows[:-1]).any(dim=1)

        def chosen(value: Any) -> Any:
            return value[new] if isinstance(value, Tensor) else value

        result = forward(
            chosen(pixel_values),
            *(chosen(value) for value in arguments),
            **{name: chosen(value) for name, value in options.items()},
        )
        return _repeated(result, int(new.sum()), new.cumsum(dim=0) - 1)

    return shared


def _repeated(value: Any, rows: int, index: Tensor) -> Any:
    """Return tensors with ``rows`` (U) rows with those of ``index`` (R,) instead."""
    if isinstance(value, Tensor):
        return value[index] if value.dim() and len(value) == rows else value
    if isinstance(value, Mapping):
        return type(value)(**{name: _repeated(each, rows, index) for name, each in value.items()})
    if isinstance(value, tuple | list):
        return type(value)(_repeated(each, rows, index) for each in value)
    return value
