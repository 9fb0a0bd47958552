"""Images of a batch that are equal are encoded once.

transformers repeats the inputs of a model of dialogues for every sequence that it returns, the pixels too. Where the
vision tower takes one image per row, the repetitions are left out here and its outputs are repeated instead.

Shapes: R rows, U different ones among them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn


def encode_once(model: nn.Module) -> None:
    """Make the vision towers in ``model`` compute equal images of a call once.

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
        found = _different([pixel_values, *arguments, *options.values()])
        if found is None:
            return forward(pixel_values, *arguments, **options)
        first, number = found

        def chosen(value: Any) -> Any:
            return value[first] if isinstance(value, Tensor) else value

        result = forward(
            chosen(pixel_values),
            *(chosen(value) for value in arguments),
            **{name: chosen(value) for name, value in options.items()},
        )
        return _repeated(result, len(first), number)

    return shared


def _different(values: list[Any]) -> tuple[Tensor, Tensor] | None:
    """Return the indices (U,) of rows that differ and the number (R,) of each row's equal among them.

    None: there is nothing to leave out, or the values are not tensors with a row for each image.
    """
    pixels, tensors = values[0], [value for value in values if isinstance(value, Tensor)]
    if not isinstance(pixels, Tensor) or pixels.dim() != 4 or any(len(each) != len(pixels) for each in tensors):
        return None
    numbers: dict[int, int] = {}
    keys = _keys(pixels)
    number = [numbers.setdefault(key, len(numbers)) for key in keys]
    first, index = (
        torch.tensor(each, device=pixels.device) for each in ([keys.index(key) for key in numbers], number)
    )
    # Equal keys of different rows are possible, and what is passed beside the images may differ.
    if len(first) == len(pixels) or not all(torch.equal(each[first][index], each) for each in tensors):
        return None
    return first, index


def _keys(pixels: Tensor) -> list[int]:
    """Return a number for each row that is the same for equal rows: a sum of the bits with different weights."""
    whole = torch.int32 if pixels.element_size() == 4 else torch.int16
    rows = pixels.contiguous().flatten(1).view(whole)
    # Knuth's multiplier (2³² divided by the golden ratio); sums of whole numbers do not depend on their order.
    weights = 2_654_435_761 * torch.arange(1, rows.shape[1] + 1, device=pixels.device) | 1
    # Row by row, because the products take two or four times the memory of the pixels.
    return torch.stack([(row * weights).sum() for row in rows]).tolist()


def _repeated(value: Any, rows: int, number: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[number] if value.dim() and len(value) == rows else value
    if isinstance(value, Mapping):
        return type(value)(**{name: _repeated(each, rows, number) for name, each in value.items()})
    if isinstance(value, tuple | list):
        return type(value)(_repeated(each, rows, number) for each in value)
    return value
