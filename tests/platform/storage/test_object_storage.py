"""Datasets, checkpoints and MLflow's artifacts in buckets of a local S3 server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from moto.core import set_initial_no_auth_action_count

from siclip.checkpoints.formats import load_model, read_checkpoint
from siclip.errors import UserError
from siclip.training.loop import Save
from siclip_platform.datasets.tools.push import push_dataset
from siclip_platform.datasets.tools.verify import verify_dataset
from siclip_platform.evaluation import evaluate_checkpoint
from siclip_platform.recipes.digits import digits_student
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.storage import RemotePath, as_path, check_writable, copy_file, local_copy
from siclip_platform.storage.checkpoints import read_model
from siclip_platform.tracking import Tracker
from siclip_platform.tracking.store import check_artifacts
from siclip_platform.training.identity import identity
from siclip_platform.training.in_process import run_recipe
from siclip_platform.training.ray_train import run_with_ray_train

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
SECRET = "a-secret-of-the-store"


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    """A boto3 client of a server with the buckets ``data`` and ``runs``; the environment names the server."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "key")
        environment.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        environment.setenv("AWS_REGION", "us-east-1")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        client = boto3.client("s3", region_name="us-east-1")
        for bucket in ("data", "runs"):
            client.create_bucket(Bucket=bucket)
        yield client
    server.stop()


def keys(store: Any, bucket: str, prefix: str) -> list[str]:
    return [item["Key"] for item in store.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])]


@pytest.fixture(scope="module")
def remote(store: Any, digits: Path, nano_teacher: Path) -> Recipe:
    """A recipe whose dataset and teacher are in the store."""
    push_dataset(digits, "s3://data/digits")
    copy_file(nano_teacher, as_path("s3://data/teachers/nano.pt"))
    changes = {
        "data.path": "s3://data/digits",
        "teacher": "s3://data/teachers/nano.pt",
        "training.batch_size": 32,
        "training.log_every": 1,
        "training.evaluate_every": 4,
        "training.checkpoint_every": 4,
        "evaluation.validation_samples": 20,
    }
    return digits_student(digits, nano_teacher, steps=12).updated(changes)


@pytest.fixture(scope="module")
def local(remote: Recipe, digits: Path, nano_teacher: Path) -> Recipe:
    return remote.updated({"data.path": str(digits), "teacher": str(nano_teacher)})


class Record:
    """Records the losses and validation metrics of a training, and saves its last checkpoint."""

    def __init__(self, folder: Path, last: int = 12) -> None:
        self.folder = folder
        self.last = last
        self.metrics: dict[int, dict[str, float]] = {}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        kept = {k: v for k, v in metrics.items() if k.startswith(("train/loss", "validation/"))}
        if kept:
            self.metrics.setdefault(step, {}).update(kept)

    def milestone(self, step: int, metrics: Mapping[str, float], save: Save | None) -> None:
        self.log(step, metrics)
        if save and step == self.last:
            save(self.folder / "end.pt")


@pytest.fixture(scope="module")
def trained(local: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """The metrics of the recipe trained in this process from the local folder."""
    record = Record(tmp_path_factory.mktemp("local"))
    threads = torch.get_num_threads()
    run_recipe(local, record)
    torch.set_num_threads(threads)
    return record


def test_training_from_the_store_is_bit_identical(
    remote: Recipe, local: Recipe, trained: Record, tmp_path: Path
) -> None:
    assert verify_dataset("s3://data/digits") == []
    assert identity(remote) == identity(local)
    record = Record(tmp_path)
    threads = torch.get_num_threads()
    run_recipe(remote, record)
    torch.set_num_threads(threads)
    assert sorted(record.metrics) == list(range(1, 13))
    assert record.metrics == trained.metrics

    there = as_path("s3://runs/models/end.pt")
    copy_file(tmp_path / "end.pt", there)
    assert evaluate_checkpoint(there, "s3://data/digits", "test") == evaluate_checkpoint(
        trained.folder / "end.pt", local.data.path, "test"
    )


@pytest.mark.long
@pytest.mark.chaos
def test_a_killed_worker_resumes_from_the_checkpoint_in_the_bucket(
    store: Any, remote: Recipe, trained: Record, tmp_path: Path, own_ray: None
) -> None:
    runs, seen = as_path("s3://runs/study/train"), Record(tmp_path)
    assert isinstance(runs, RemotePath)
    steps: list[int] = []

    def log(step: int, metrics: Mapping[str, float]) -> None:
        seen.log(step, metrics)
        if "train/loss" in metrics:
            steps.append(step)
            # At step 9 the checkpoint of step 4 is stored: the report of step 8 waited for it.
            if steps.count(9) == 1 and step == 9:
                _kill_workers()

    done = run_with_ray_train(remote, name="run", storage=tmp_path / "train", log=log, checkpoints=runs)
    assert 9 in steps and steps.count(1) == 1  # resumed, not restarted from scratch
    assert seen.metrics == trained.metrics
    ours, theirs = load_model(trained.folder / "end.pt").state_dict(), load_model(done.checkpoint).state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    kept = [name for name in keys(store, "runs", "study/train/run") if name.endswith("checkpoint.pt")]
    # The last checkpoint of the killed worker may be there too, although Ray Train never received its report.
    key = max(kept)
    with local_copy(f"s3://runs/{key}") as path:
        assert read_checkpoint(path)["training"]["step"] == 12
    assert not list((tmp_path / "train").rglob("*.pt"))


def _kill_workers() -> None:
    workers = [p for p in psutil.Process().children(recursive=True) if "TrainWorker" in " ".join(p.cmdline())]
    assert workers
    for worker in workers:
        worker.send_signal(signal.SIGKILL)


@pytest.mark.long
@pytest.mark.chaos
def test_a_killed_job_resumes_without_its_folder(store: Any, remote: Recipe, local: Recipe, tmp_path: Path) -> None:
    changes = {"training.steps": 200, "training.checkpoint_every": 5, "training.evaluate_every": 0}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(remote.updated(changes).model_dump(mode="json")))
    job = [sys.executable, str(ROOT / "jobs" / "train_siclip.py"), "--checkpoints", "s3://runs/jobs"]
    first, second = tmp_path / "first", tmp_path / "second"
    start = [*job, "--recipe", str(tmp_path / "recipe.yaml"), "--artifacts", "s3://runs/files", "--out", str(first)]
    with (tmp_path / "first.log").open("wb") as log:
        process = subprocess.Popen(start, stdout=log, stderr=log, start_new_session=True)
        until = time.monotonic() + 900
        while not any(key.endswith("checkpoint.pt") for key in keys(store, "runs", "jobs/train/train/")):
            assert process.poll() is None and time.monotonic() < until, (tmp_path / "first.log").read_text()
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    shutil.rmtree(first)
    assert "jobs/train/train.pt" not in keys(store, "runs", "jobs")

    again = [*job, "--resume", "train", "--out", str(second), "--tracking-uri", f"sqlite:///{second}/mlflow.db"]
    done = subprocess.run(again, capture_output=True, text=True, timeout=1800, check=False)
    (tmp_path / "second.log").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    record = Record(tmp_path, last=200)
    run_recipe(local.updated(changes), record)
    ours = load_model(tmp_path / "end.pt").state_dict()
    theirs = read_model("s3://runs/jobs/train/train.pt").state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert any(key.endswith("train.pt") for key in keys(store, "runs", "files"))

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{second}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("siclip").experiment_id])
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")]
    assert min(steps) > 5 and max(steps) == 200
    assert SECRET.encode() not in b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_mlflow_stores_files_and_models_in_the_bucket(
    store: Any, nano_teacher: Path, tmp_path: Path, mlflow_database: bytes
) -> None:
    (tmp_path / "mlflow.db").write_bytes(mlflow_database)
    uri, there = f"sqlite:///{tmp_path / 'mlflow.db'}", "s3://runs/mlflow"
    check_artifacts(there)
    (tmp_path / "note.txt").write_text("a note")
    tracker = Tracker(uri, artifacts=there, spool=tmp_path / "spool")
    run = tracker.start("run", "train", params={}, tags={})
    run.artifact(tmp_path / "note.txt")
    run.model(nano_teacher, "train")
    run.finish("completed")
    assert tracker.flush(60) == 0 and tracker.spool.problems() == []
    experiment = tracker.experiment_id
    tracker.close(0)

    import mlflow

    client = mlflow.MlflowClient(uri)
    (found,) = client.search_runs([experiment])
    assert found.info.artifact_uri.startswith(there)
    (tmp_path / "note.txt").unlink()
    note = client.download_artifacts(found.info.run_id, "note.txt", str(tmp_path))
    assert Path(note).read_text() == "a note"
    (model,) = [key for key in keys(store, "runs", "mlflow") if key.endswith("model.pt")]
    ours, theirs = load_model(nano_teacher).state_dict(), read_model(f"s3://runs/{model}").state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    with pytest.raises(UserError, match=r"has its files at s3://runs/mlflow, not at --artifacts s3://runs/other"):
        Tracker(uri, artifacts="s3://runs/other")
    assert SECRET.encode() not in b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_problems_of_a_store_are_reported_within_seconds(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="there is no dataset at s3://nowhere/digits"):
        evaluate_checkpoint("s3://data/teachers/nano.pt", "s3://nowhere/digits", "test")
    with pytest.raises(UserError, match=r"there is no file s3://data/teachers/none.pt"):
        read_model("s3://data/teachers/none.pt")
    with pytest.raises(UserError, match=r"s3://nowhere/x.*: there is no such bucket; create it"):
        check_writable(as_path("s3://nowhere/x"), "--checkpoints")
    with pytest.raises(UserError, match="accepts no options in a URI; set AWS_ENDPOINT_URL"):
        check_artifacts("s3://runs/x?region=us-east-1")
    import siclip_platform.tracking.store as tracking

    with monkeypatch.context() as without:
        without.setattr(tracking, "find_spec", lambda name: None)
        with pytest.raises(UserError, match="boto3, which is not installed"):
            check_artifacts("s3://runs/x")
    with pytest.raises(UserError, match="the store refuses the credentials; set AWS_ACCESS_KEY_ID"):
        set_initial_no_auth_action_count(0)(verify_dataset)("s3://data/digits")
    away = as_path("s3://data/digits?endpoint_override=127.0.0.1:9&scheme=http")
    with pytest.raises(UserError, match=r"no server answers at 127.0.0.1:9; start it, or correct AWS_ENDPOINT_URL"):
        verify_dataset(away)
