from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from siclip.training import loop


def test_the_first_wait_is_not_part_of_the_wait_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fake clock: the first batch takes 40 s, the others 1 s, a step 3 s."""
    now = [100.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def batches() -> Iterator[str]:
        for seconds in (40, 1, 1, 1):
            now[0] += seconds
            yield "batch"

    clock = loop._Clock(8, 50.0)
    for _ in clock.waiting(batches()):
        now[0] += 3
        clock.count()
    metrics = clock.read()
    assert metrics["train/data_wait_share"] == pytest.approx(3 / 15)
    assert metrics["train/samples_per_second"] == pytest.approx(4 * 8 / 15)
    assert metrics["cost/first_batch_seconds"] == 40
    assert metrics["cost/training_seconds"] == pytest.approx(50 + 15)
