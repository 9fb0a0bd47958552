"""Peak performance of graphics cards, from their vendors' documents. Training reaches only part of it."""

from __future__ import annotations

from dataclasses import dataclass

from siclip.errors import UserError

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Card:
    """A graphics card.

    Attributes:
        name: its name on the command line.
        memory_bytes: its memory.
        flops: dense bf16 tensor operations per second with fp32 accumulation.
        bandwidth: of its memory, in bytes per second.
        watts: total board power.
        source: the document with these numbers.
    """

    name: str
    memory_bytes: int
    flops: float
    bandwidth: float
    watts: float
    source: str


_GA102 = "NVIDIA Ampere GA102 GPU architecture whitepaper, appendix A"
_ADA = "NVIDIA Ada GPU architecture whitepaper, appendix A"

CARDS = {
    card.name: card
    for card in (
        Card(name="rtx-3070", memory_bytes=8 * GIB, flops=40.6e12, bandwidth=448e9, watts=220, source=_GA102),
        Card(name="rtx-3090", memory_bytes=24 * GIB, flops=71e12, bandwidth=936e9, watts=350, source=_GA102),
        Card(name="rtx-4070", memory_bytes=12 * GIB, flops=58.3e12, bandwidth=504e9, watts=200, source=_ADA),
        Card(name="rtx-4090", memory_bytes=24 * GIB, flops=165.2e12, bandwidth=1008e9, watts=450, source=_ADA),
        Card(
            name="a100-80gb",
            memory_bytes=80 * GIB,
            flops=312e12,
            bandwidth=2039e9,
            watts=400,
            source="NVIDIA A100 Tensor Core GPU datasheet, SXM, 80 GB",
        ),
        Card(
            name="h100",
            memory_bytes=80 * GIB,
            flops=989e12,
            bandwidth=3350e9,
            watts=700,
            source="NVIDIA H100 Tensor Core GPU datasheet, SXM",
        ),
    )
}


def find_card(name: str) -> Card:
    """The card with this name.

    Raises:
        UserError: it is not in the table; the message lists the cards.
    """
    if name not in CARDS:
        raise UserError(
            f"no card {name!r} in the table: choose one of {', '.join(CARDS)}, or measure this machine (--calibrate)"
        )
    return CARDS[name]
