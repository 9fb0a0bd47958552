"""The number format that a model computes in."""

from __future__ import annotations

from enum import StrEnum


class Precision(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"
