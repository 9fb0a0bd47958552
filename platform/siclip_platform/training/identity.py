"""The identity of a training: its recipe, its data, its teachers' weights, its seed and the code that computes it.

Paths are not part of it: a dataset counts by its manifest's hash, a teacher by its weights. Neither is what cannot
change a result: how often checkpoints are written, and how many tasks read.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import siclip
from siclip.open_clip_models import OPEN_CLIP
from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.datasets.sidecar import open_sidecar
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.storage import AnyPath, as_path
from siclip_platform.storage.hashing import canonical_hash

DIGITS = 16
VERSION = 2
"""Raise it when results change although no hashed code did, such as with another version of a library."""
PACKAGES = (
    "siclip/**",
    "siclip_platform/recipes/**",
    "siclip_platform/stream/**",
    "siclip_platform/training/**",
    "siclip_platform/search/trial/**",
    "siclip_platform/storage/**",
    "siclip_platform/cluster",
    "siclip_platform/datasets",
    "siclip_platform/datasets/derived/embeddings",
)
"""The packages that a training uses: each with its own modules, and with ``**`` also those of all sub-packages."""


def identity(recipe: Recipe) -> str:
    """Return 16 hex digits for a recipe with its seed, its dataset, its teachers and this code.

    Raises:
        UserError: the dataset or a teacher cannot be read.
    """
    tree = recipe.model_dump(mode="json")
    # how many tasks read, and where, does not change what is read
    tree["data"] |= {"concurrent_reads": None, "reader": None, "reader_nodes": None, **_data_hashes(recipe)}
    # with a cache features are rounded once more; its path has no effect
    tree["data"]["trunk_cache"] = tree["data"]["trunk_cache"] is not None
    tree["training"]["checkpoint_every"] = None
    tree["teacher"] = weights_hash(recipe.teacher) if recipe.teacher else None
    tree["distil_from"] = [weights_hash(name) for name in recipe.distil_from]
    return canonical_hash({"recipe": tree, "code": code_version()}, DIGITS)


def _data_hashes(recipe: Recipe) -> dict[str, Any]:
    """The dataset, its sidecars and the datasets mixed into it, by their hashes."""
    data = recipe.data
    beside = (data.teacher_embeddings, data.negatives)
    mixed = [part.model_dump(mode="json") | _hashes(part.path, part.captions, *beside) for part in data.mix]
    return {**_hashes(data.path, data.captions, *beside), "mix": mixed}


@lru_cache(maxsize=16)
def _hashes(path: str, captions: tuple[str, ...], embeddings: str | None, negatives: str | None) -> dict[str, Any]:
    dataset = open_dataset(path)
    return {
        "path": dataset.hash,
        "captions": [open_sidecar(dataset, "captions", name).hash for name in captions],
        "teacher_embeddings": open_sidecar(dataset, "embeddings", embeddings).hash if embeddings else None,
        "negatives": open_sidecar(dataset, "negatives", negatives).hash if negatives else None,
    }


def weights_hash(name: str) -> str:
    """Return 16 hex digits for a teacher's weights, whatever its path or URI; an open_clip tag is returned as it is.

    The name of a file that does not exist is returned as it is too: whoever loads it refuses it with a reason.
    """
    if name.startswith(OPEN_CLIP):
        return name
    path = as_path(name)
    try:
        found = path.stat()
    except OSError:
        return name
    return _weights_hash(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=16)
def _weights_hash(path: AnyPath, size: int, modified: int) -> str:
    """``size`` and ``modified`` are part of the cache's key: a file that was replaced is read again."""
    from siclip.models.hashing import weights_hash as hash_of
    from siclip_platform.storage.checkpoints import read_model

    model = read_model(path)
    return hashlib.sha256(f"{model.config.model_dump_json()} {hash_of(model)}".encode()).hexdigest()[:DIGITS]


@cache
def code_version() -> str:
    """Return 16 hex digits for the code of `PACKAGES`, without comments, docstrings and layout.

    It is not the commit: results stay comparable while the report, the documentation or the search change.
    """
    digest = hashlib.sha256(f"version {VERSION}\n".encode())
    for name, path in code_files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        digest.update(f"{name}\n{ast.dump(_without_docstrings(tree))}\n".encode())
    return digest.hexdigest()[:DIGITS]


def code_files() -> Iterator[tuple[str, Path]]:
    """The files behind `code_version` in a fixed order: name from the root package on, and path."""
    roots = {"siclip": Path(siclip.__file__).parent, "siclip_platform": Path(__file__).parents[1]}
    files: dict[str, Path] = {}
    for package in PACKAGES:
        root, *inner = package.removesuffix("/**").split("/")
        folder = roots[root].joinpath(*inner)
        found = folder.rglob("*.py") if package.endswith("**") else folder.glob("*.py")
        # importing a package runs the __init__ of every package around it
        around = [roots[root].joinpath(*inner[:depth], "__init__.py") for depth in range(len(inner))]
        files |= {f"{root}/{path.relative_to(roots[root]).as_posix()}": path for path in [*around, *found]}
    return iter(sorted(files.items()))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node, clean=False) is not None
            node.body = node.body[1:] if documented else node.body
    return tree
