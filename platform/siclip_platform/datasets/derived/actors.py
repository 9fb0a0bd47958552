"""What commands that run a model over a dataset have in common."""

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
    """So many actors; 0: one for each GPU of the connected Ray cluster, one where it has none."""
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0))
    return Pool(gpus=1.0 if gpus else 0.0, actors=actors or max(gpus, 1))


def parse_settings(config: type[C], values: Mapping[str, Any]) -> C:
    """Build a config from a command's options.

    Raises:
        UserError: names every option that does not fit.
    """
    try:
        return config.model_validate(values)
    except ValidationError as error:
        lines = [
            f"  --{str((item['loc'] or ('options',))[-1]).replace('_', '-')}: {item['msg']}"
            for item in error.errors()
        ]
        raise UserError("\n".join(["these options do not fit:", *lines])) from None


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread of torch's: sums depend on their number, so results would on the worker."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
