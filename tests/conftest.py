from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from siclip_platform.cluster.connect import prepare_environment

# Before any test imports Ray, which reads these environment variables on import.
prepare_environment(verbose=False)

# No deadline: on a loaded machine an example may take long without being wrong.
settings.register_profile("siclip", deadline=None)
settings.load_profile("siclip")

# Minutes each: started first, so that they do not keep one process busy at the end while the others are idle.
LONGEST = ("test_ray_job", "test_study_restart", "test_demo", "test_shipped_spaces_run", "test_docs_examples")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first (`make test` keeps this order when it distributes files to processes)."""
    import torch

    slow = {item.path for item in items if item.get_closest_marker("slow")}
    rank = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (rank.get(item.path.stem, len(LONGEST)), item.path not in slow))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def warnings_stay_on(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail the test after which our warnings are not shown any more, for example by ``logging.config.fileConfig``."""
    # pytest's handler serves all tests, and an earlier one may have set its level with those of Ray's loggers.
    caplog.handler.setLevel(logging.NOTSET)
    yield
    found = [logger for name, logger in logging.root.manager.loggerDict.items() if name.startswith("siclip")]
    ours = [logger for logger in found if isinstance(logger, logging.Logger)]
    silent = [logger.name for logger in ours if logger.disabled or not logger.isEnabledFor(logging.WARNING)]
    for logger in ours:
        logger.disabled = False
    logging.root.setLevel(logging.WARNING)
    logging.disable(logging.NOTSET)
    assert not silent, "the test has switched off the warnings of these modules"


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small digit-scenes dataset, created without Ray."""
    from siclip_platform.datasets.digits.digits import (
        NAME,
        VERSION,
        DigitScenesConfig,
        compose_shard,
        digit_scenes_recipe,
        shard_specs,
    )
    from siclip_platform.datasets.manifest import Manifest, ShardEntry, write_manifest, write_shard

    folder = tmp_path_factory.mktemp("digits")
    config = DigitScenesConfig(
        train_scenes=240, validation_scenes=40, test_scenes=60, shard_rows=120, row_group_rows=30
    )
    splits: dict[str, list[ShardEntry]] = {}
    for spec in shard_specs(config):
        entry = write_shard(compose_shard(spec), folder / spec.file_name, config.row_group_rows)
        splits.setdefault(spec.split, []).append(entry)
    recipe = digit_scenes_recipe(config)
    write_manifest(folder, Manifest(name=NAME, version=VERSION, recipe=recipe, splits=splits))
    return folder


@pytest.fixture(scope="session")
def nano_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an untrained mobileclip-nano."""
    import torch

    from siclip.checkpoints.formats import save_checkpoint
    from siclip.models import create_model

    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    save_checkpoint(path, create_model("mobileclip-nano"))
    return path


@pytest.fixture(scope="module")
def own_ray() -> Iterator[None]:
    """A Ray cluster for the tests of one module."""
    from siclip_platform.cluster.connect import Needs, ray_cluster

    with ray_cluster(Needs(concurrent=2, worker_cpus=1.0)):
        yield


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An empty MLflow SQLite store, to be copied: creating one takes seconds."""
    from mlflow import MlflowClient

    path: Path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path.read_bytes()
