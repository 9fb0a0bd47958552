"""Search spaces and study files: read and checked, never run."""

from __future__ import annotations

from siclip_platform.spaces.definition import SearchSpace
from siclip_platform.spaces.load import load_space

__all__ = ["SearchSpace", "load_space"]
