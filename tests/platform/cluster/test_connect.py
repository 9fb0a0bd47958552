"""Whether the work fits on a cluster."""

from __future__ import annotations

import pytest
import ray

from siclip.errors import UserError
from siclip_platform.cluster.connect import Needs, check_size


def test_a_cluster_that_is_too_small_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = Needs(concurrent=2, worker_cpus=1.0)
    assert needs.cpus == pytest.approx(2 * (0.01 + 1.0 + 0.5) + 1)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    with pytest.raises(UserError, match=r"has 4 CPUs and this needs 4\.02: 2 × \(0\.01 coordinator \+ 1 worker"):
        check_size(needs, "here")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 5.0})
    check_size(needs, "here")
