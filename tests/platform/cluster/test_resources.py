"""How many trials run at a time, and with which resources."""

from __future__ import annotations

from typing import Any

import pytest

from siclip.errors import UserError
from siclip_platform.cluster.resources import GIB, Machine, lay_out


@pytest.mark.parametrize(
    ("machine", "asked", "concurrent", "resources"),
    [
        (Machine(2, 0), {}, 2, {"CPU": 1.0}),
        (Machine(16, 0), {"requested": 3}, 3, {"CPU": 1.0}),
        (Machine(16, 1, 80 * GIB), {}, 1, {"CPU": 1.0, "GPU": 1.0}),
        (Machine(16, 1, 80 * GIB), {"peak_bytes": 10 * GIB}, 6, {"CPU": 1.0, "GPU": 0.1666}),
        (Machine(16, 2, 80 * GIB), {"peak_bytes": 10 * GIB}, 12, {"CPU": 1.0, "GPU": 0.1666}),
        (Machine(16, 1, 80 * GIB), {"peak_bytes": 10 * GIB, "seeds": 3}, 2, {"CPU": 1.0, "GPU": 0.5}),
        (Machine(4, 0), {"backend": "train"}, 1, {"CPU": 0.01}),
        (Machine(4, 0), {"data_tasks": True}, 2, {"CPU": 1.0}),
        (Machine(4, 0), {"data_tasks": True, "seeds": 3}, 1, {"CPU": 1.0}),
    ],
)
def test_as_many_trials_run_as_fit(
    machine: Machine, asked: dict[str, Any], concurrent: int, resources: dict[str, float]
) -> None:
    layout = lay_out(machine, **{"requested": None, "seeds": 1, "worker_cpus": 1.0} | asked)
    assert layout.concurrent == concurrent
    assert layout.resources == pytest.approx(resources)
    gpu = layout.resources.get("GPU", 0)
    assert concurrent * layout.resources["CPU"] <= machine.cpus and concurrent * gpu <= machine.gpus + 1e-9
    needed = asked.get("peak_bytes", 0) * asked.get("seeds", 1)
    assert concurrent * needed <= machine.gpus * machine.gpu_bytes
    assert f"{concurrent} trials at a time" in layout.reason


@pytest.mark.parametrize(
    ("machine", "asked", "message"),
    [
        (Machine(2, 0), {"requested": 3}, "3 trials at a time do not fit: 2 CPUs, 1 per trial: 2 do"),
        (Machine(2, 0), {"backend": "train"}, "1.51 per trial: 0 do"),
        (Machine(8, 1, 24 * GIB), {"peak_bytes": 20 * GIB, "seeds": 2}, "40.0 GiB of GPU memory"),
        (Machine(8, 1, 24 * GIB), {"peak_bytes": 20 * GIB, "requested": 2}, "20.0 GiB per trial at its peak: 1 do"),
    ],
)
def test_more_trials_than_fit_are_refused_with_the_numbers(
    machine: Machine, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        lay_out(machine, **{"requested": None, "seeds": 1, "worker_cpus": 1.0} | asked)
