"""Shared by the commands that run a model over a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import ValidationError

from siclip.config import Config
from siclip.errors import UserError
from siclip_platform.datasets.derived.stage import Pool

C = TypeVar("C", bound=Config)


def actor_pool(actors: int) -> Pool:
    """Return a pool of ``actors``; 0: one per GPU of the connected Ray cluster, or a single one without GPUs."""
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0))
    return Pool(gpus=1.0 if gpus else 0.0, actors=actors or max(gpus, 1))


def parse_settings(config: type[C], values: Mapping[str, Any]) -> C:
    """Build a config from a command's options.

    Raises:
        UserError: lists every invalid option.
    """
    try:
        return config.model_validate(values)
    except ValidationError as error:
        lines = [
            f"  --{str((item['loc'] or ('options',))[-1]).replace('_', '-')}: {item['msg']}"
            for item in error.errors()
        ]
        raise UserError("\n".join(["invalid options:", *lines])) from None


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread: sums depend on the number of threads, so results would depend on the worker."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
