"""The search: declarative spaces (`space`) and the searcher over them (`searcher`, which imports Ray)."""

from __future__ import annotations

from siclip_platform.search.space import SearchSpace, load_space

__all__ = ["SearchSpace", "load_space"]
