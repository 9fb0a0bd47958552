"""What makes a training the same training: its recipe, its data, its teachers' weights, its seed and the code.

Paths are left out (a dataset stands for its manifest's hash, a teacher for its weights), and so is what cannot change
a result: how often checkpoints are written and how many tasks read.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import siclip
from siclip.models.hashing import weights_hash as hash_of
from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.datasets.sidecar import open_sidecar
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.storage import AnyPath, as_path
from siclip_platform.storage.checkpoints import read_model
from siclip_platform.storage.hashing import canonical_hash

DIGITS = 16
OPEN_CLIP = "open_clip:"
PLATFORM = ("recipes", "training", "stream", "datasets", "storage", "search/trial", "evaluation/budget")


def identity(recipe: Recipe) -> str:
    """16 hex digits; the recipe's seed, dataset, teachers and this code are in it.

    Raises:
        UserError: the dataset or a teacher cannot be read.
    """
    tree = recipe.model_dump(mode="json")
    tree["data"] |= {"concurrent_reads": None, "reader": None, "reader_nodes": None, **_beside(recipe)}
    tree["data"]["trunk_cache"] = tree["data"]["trunk_cache"] is not None
    tree["training"]["checkpoint_every"] = None
    tree["teacher"] = weights_hash(recipe.teacher) if recipe.teacher else None
    tree["distil_from"] = [weights_hash(name) for name in recipe.distil_from]
    return _digest({"recipe": tree, "code": code_version()})


def dataset_hash(recipe: Recipe) -> str:
    """The hash of the manifest of the recipe's dataset."""
    return _dataset_hash(recipe.data.path)


def _beside(recipe: Recipe) -> dict[str, Any]:
    """Captions and embeddings beside the dataset, and the datasets mixed into it, by their hashes."""
    data = recipe.data
    embeddings = data.teacher_embeddings
    mixed = [part.model_dump(mode="json") | _named(part.path, part.captions, embeddings) for part in data.mix]
    return {**_named(data.path, data.captions, embeddings), "mix": mixed}


@lru_cache(maxsize=16)
def _named(path: str, captions: tuple[str, ...], embeddings: str | None) -> dict[str, Any]:
    dataset = open_dataset(path)
    return {
        "path": dataset.hash,
        "captions": [open_sidecar(dataset, "captions", name).hash for name in captions],
        "teacher_embeddings": open_sidecar(dataset, "embeddings", embeddings).hash if embeddings else None,
    }


@lru_cache(maxsize=16)
def _dataset_hash(path: str) -> str:
    return open_dataset(path).hash


def weights_hash(name: str) -> str:
    """16 hex digits for a teacher's weights, wherever its file lies; of an open_clip tag its name."""
    if name.startswith(OPEN_CLIP):
        return name
    where = as_path(name)
    try:
        found = where.stat()
    except OSError:
        return name
    return _weights_hash(where, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=16)
def _weights_hash(where: AnyPath, size: int, modified: int) -> str:
    model = read_model(where)
    return hashlib.sha256(f"{model.config.model_dump_json()} {hash_of(model)}".encode()).hexdigest()[:DIGITS]


@cache
def code_version() -> str:
    """A hash of the code that a training passes through, without comments, docstrings and layout.

    It is not the commit: a study goes on being comparable while the report, the documentation or the search change.
    All of `siclip` is in it and those parts of the platform that make batches and run the loop.
    """
    digest = hashlib.sha256()
    for name, path in _sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        digest.update(f"{name}\n{ast.dump(_without_docstrings(tree))}\n".encode())
    return digest.hexdigest()[:DIGITS]


def _sources() -> Iterator[tuple[str, Path]]:
    core, platform = Path(siclip.__file__).parent, Path(__file__).parents[1]
    for path in sorted(core.rglob("*.py")):
        yield f"siclip/{path.relative_to(core).as_posix()}", path
    for part in PLATFORM:
        place = platform / part
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]:
            yield f"siclip_platform/{path.relative_to(platform).as_posix()}", path


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node, clean=False) is not None
            node.body = node.body[1:] if documented else node.body
    return tree


def _digest(tree: object) -> str:
    return canonical_hash(tree, DIGITS)
