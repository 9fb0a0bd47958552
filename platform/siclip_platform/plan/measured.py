"""What a plan takes from measurements, without importing what measures."""

from __future__ import annotations

from dataclasses import dataclass

DECODE_RATE = 1000.0
"""Images per second that one core reads, decodes to 256 px and tokenizes beside a training, rounded.

Half of what `benchmarks/streaming.py` measured per core for a loop that only counts: 4,057 images/s on two cores
(benchmarks/results/streaming.json). The other half is for the training loop and copies, an assumption.
"""


@dataclass(frozen=True)
class Calibration:
    """A line through the median step times of two batch sizes.

    Attributes:
        device: the device's name.
        seconds_fixed: seconds per step that do not depend on the batch.
        seconds_each: seconds per pair.
        spread: the largest relative deviation of a timed step from the median of its batch size.
        batches: the two batch sizes.
    """

    device: str
    seconds_fixed: float
    seconds_each: float
    spread: float
    batches: tuple[int, ...]

    def step_seconds(self, batch: int) -> float:
        """Seconds of a step on ``batch`` pairs."""
        return self.seconds_fixed + self.seconds_each * batch
