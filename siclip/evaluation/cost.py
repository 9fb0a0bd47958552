"""The cost of running a model, relative to MobileCLIP-S0 measured in the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from siclip.evaluation.encoder import ClipEncoder, Encoder
from siclip.models.clip import Clip, count_parameters
from siclip.models.registry import create_model
from siclip.training.memory import peak_memory

BATCHES = (1, 32)
REFERENCE = "mobileclip-s0"


@dataclass(frozen=True)
class Cost:
    """The measured cost of a model.

    Attributes:
        parameters: of the deployed model.
        multiply_adds: of one image and one text; matrix products and convolutions only.
        milliseconds: batch size → median time of a batch of images and a batch of texts.
        times_reference: batch size → median, minimum and maximum over the rounds of that time divided by
            MobileCLIP-S0's in the same round.
        peak_bytes: peak memory: on a GPU since the measurement began, otherwise of the process.
    """

    parameters: int
    multiply_adds: int
    milliseconds: Mapping[int, float]
    times_reference: Mapping[int, tuple[float, float, float]]
    peak_bytes: int


def reference(device: torch.device) -> Encoder:
    """MobileCLIP-S0 in its deployed form, with random weights, which do not affect its speed."""
    return ClipEncoder(create_model(REFERENCE), REFERENCE, device)


@torch.no_grad()
def measure_cost(encoder: Encoder, against: Encoder, *, rounds: int = 5) -> Cost:
    """Measure a model and a reference alternately.

    Args:
        encoder: the model.
        against: the reference.
        rounds: number of measurements; one more round before them warms up.
    """
    model, image, text, tokens = encoder.towers()
    pixels = torch.zeros(1, 3, *encoder.image_size, device=encoder.device)
    with FlopCounterMode(display=False) as counter:
        image(pixels), text(tokens.to(encoder.device))
    if encoder.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(encoder.device)
    times: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    ratios: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    for batch in BATCHES:
        run, other = _runner(encoder, batch), _runner(against, batch)
        for round_index in range(rounds + 1):
            own, theirs = _seconds(run, encoder.device), _seconds(other, against.device)
            if round_index:
                times[batch].append(own)
                ratios[batch].append(own / theirs)
    return Cost(
        parameters=count_parameters(model),
        multiply_adds=counter.get_total_flops() // 2,
        milliseconds={batch: 1000 * statistics.median(found) for batch, found in times.items()},
        times_reference={b: (statistics.median(found), min(found), max(found)) for b, found in ratios.items()},
        peak_bytes=peak_memory(encoder.device),
    )


@torch.no_grad()
def latency(model: Clip, device: torch.device, *, rounds: int = 5) -> float:
    """Median time in milliseconds of one image and one text, in the model's deployed form.

    The random state is not changed. Other load on the machine affects the result; the ratio of `measure_cost` is
    robust to it.
    """
    # The fused convolutions draw initial weights.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        run = _runner(ClipEncoder(model, "model", device), 1)
    return 1000 * statistics.median([_seconds(run, device) for _ in range(rounds + 1)][1:])


def _runner(encoder: Encoder, batch: int) -> Callable[[], Tensor]:
    _, image, text, tokens = encoder.towers()
    pixels = torch.zeros(batch, 3, *encoder.image_size, device=encoder.device)
    texts = tokens.to(encoder.device).expand(batch, -1).contiguous()

    def run() -> Tensor:
        image(pixels)
        return text(texts)

    return run


def _seconds(run: Callable[[], Tensor], device: torch.device) -> float:
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
