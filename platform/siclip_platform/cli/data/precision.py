"""Number formats in which a model computes."""

from __future__ import annotations

from enum import StrEnum


class Precision(StrEnum):
    """Values of ``--precision``."""

    fp32 = "fp32"
    bf16 = "bf16"
