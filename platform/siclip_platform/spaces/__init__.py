"""Search spaces and study files: read and checked; nothing runs here."""

from __future__ import annotations

from siclip_platform.spaces.load import SearchSpace, load_space

__all__ = ["SearchSpace", "load_space"]
