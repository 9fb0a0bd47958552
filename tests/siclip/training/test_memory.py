"""Finding the micro-batch size, with a step that fails above a known size."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch

from siclip.errors import UserError
from siclip.training.memory import find_micro_batch_size


class Activations:
    """What a step that did not fit has computed so far."""


def device_of(capacity: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Callable[[int], None], list[object]]:
    """A step that fits up to ``capacity``, and events: sizes run, and what was alive when the cache was emptied."""
    events: list[object] = []
    alive: list[weakref.ref[Activations]] = []

    def step(size: int) -> None:
        events.append(size)
        activations = Activations()
        alive.append(weakref.ref(activations))
        if size > capacity:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append([r() for r in alive if r() is not None]))
    return step, events


@pytest.mark.parametrize(("capacity", "tried"), [(100, [24]), (24, [24]), (23, [24, 12]), (6, [24, 12, 6])])
def test_the_micro_batch_is_halved_until_it_fits(
    capacity: int, tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, events = device_of(capacity, monkeypatch)
    assert find_micro_batch_size(step, 24, torch.device("cuda")) == tried[-1]
    assert [event for event in events if isinstance(event, int)] == tried
    emptied = [event for event in events if isinstance(event, list)]
    # Nothing of the failed step was alive.
    assert emptied == [[]] * (len(tried) - 1)


def test_a_batch_that_cannot_be_halved_further_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    step, events = device_of(2, monkeypatch)
    with pytest.raises(UserError, match="no micro-batch of 24 samples fits: 3 is too large for cuda"):
        find_micro_batch_size(step, 24, torch.device("cuda"))
    assert events == [24, [], 12, [], 6, [], 3, []]
