"""Number formats in which a model computes, and in which embeddings are stored."""

from __future__ import annotations

from enum import StrEnum


class Precision(StrEnum):
    """Values of ``--precision``."""

    fp32 = "fp32"
    bf16 = "bf16"


class CaptionPrecision(StrEnum):
    """Values of ``--precision`` of a captioner."""

    auto = "auto"
    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"


class NumbersChoice(StrEnum):
    """Values of ``--numbers``."""

    bf16 = "bf16"
    int8 = "int8"
