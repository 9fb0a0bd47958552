"""Collect the facts of this machine and run the checks."""

from __future__ import annotations

import importlib.metadata
import os
import resource
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

from packaging.markers import default_environment
from packaging.utils import canonicalize_name

from siclip.errors import UserError
from siclip_platform.doctor import checks
from siclip_platform.doctor.checks import Finding
from siclip_platform.plan.cards import find_card
from siclip_platform.plan.job import Job, teacher_source
from siclip_platform.plan.length import job_length
from siclip_platform.plan.plan import make_plan
from siclip_platform.plan.reference import CARD
from siclip_platform.plan.saving import unsaved_seconds
from siclip_platform.plan.storage import RowBytes
from siclip_platform.recipes.load import load_recipe

CHECKOUT = Path(__file__).resolve().parents[3]
LOCK = "requirements.lock"
DRIVER = Path("/proc/driver/nvidia/version")
SHARED_MEMORY = Path("/dev/shm")
IMPORTS = ("torch", "torchvision", "timm", "open_clip", "ray", "optuna", "mlflow", "pyarrow")


def examine(out: Path, tracking_uri: str | None, recipe: str | None = None) -> Iterator[Finding]:
    """Yield findings one by one; the slow ones, which import torch and Ray, come last.

    Args:
        out: the folder that runs will write to.
        tracking_uri: the MLflow store; None for the default in ``out``.
        recipe: name or file of what is to be trained; None: nothing is said about it.

    Raises:
        UserError: the recipe cannot be read.
    """
    # In a container the affinity may be smaller than the number of cores.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if recipe:
        yield _saving(recipe)
    yield checks.python_version(sys.version_info[:3])
    yield _locked()
    yield _token()
    yield _disk("outputs", out)
    yield _disk("Ray's temporary files", Path(os.environ.get("RAY_TMPDIR", "/tmp")))
    yield checks.open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    yield checks.shared_memory(_size(SHARED_MEMORY), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    yield checks.openmp(os.environ.get("OMP_NUM_THREADS"), os.environ.get("OMP_WAIT_POLICY"), cores)
    yield _store(out, tracking_uri)
    yield _cluster()
    yield from _imports()
    yield _torch()


def _saving(name: str) -> Finding:
    """What a lost machine would cost a training, at the slowest speed that `plan` expects of its reference card."""
    length = job_length(load_recipe(name), name)
    recipe, card = length.recipe, find_card(CARD)
    job = Job(
        recipe=recipe,
        pairs=length.pairs,
        epochs=length.epochs,
        teacher=teacher_source(recipe),
        rows=RowBytes(),
        disk_bytes=0,
        card=card,
    )
    step_seconds = recipe.training.batch_size / make_plan(job).speed.least
    lost = unsaved_seconds(recipe.training, step_seconds)
    return checks.checkpoints(recipe.training.checkpoint_every, name, lost, card.name)


def _locked() -> Finding:
    lock = next((p for p in (CHECKOUT / LOCK, files("siclip_platform") / f"_{LOCK}") if p.is_file()), None)
    if lock is None:
        return Finding("packages", "note", f"this installation has no {LOCK} to compare to", "make install")
    installed = {str(canonicalize_name(d.metadata["Name"])): d.version for d in importlib.metadata.distributions()}
    environment = {key: str(value) for key, value in default_environment().items()}
    return checks.locked_versions(lock.read_text(), installed, environment)


def _token() -> Finding:
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    mode = stat.S_IMODE(path.stat().st_mode) if path.is_file() else None
    return checks.ray_token(os.environ.get("RAY_AUTH_MODE"), bool(os.environ.get("RAY_AUTH_TOKEN")), mode)


def _disk(name: str, folder: Path) -> Finding:
    # The folder may not exist yet: it will be on the file system of its nearest existing parent.
    existing = folder.resolve()
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK):
        return Finding(f"disk, {name}", "wrong", f"{existing} is not writable", "choose another folder with --out")
    status = os.statvfs(existing)
    free = shutil.disk_usage(existing).free
    return checks.disk(name, str(existing), free, status.f_favail if status.f_files else None)


def _size(folder: Path) -> int | None:
    return shutil.disk_usage(folder).total if folder.is_dir() else None


def _store(out: Path, tracking_uri: str | None) -> Finding:
    from siclip_platform.tracking import check_tracking, default_tracking_uri
    from siclip_platform.tracking.creation import sqlite_file

    uri = tracking_uri or default_tracking_uri(out)
    path = sqlite_file(uri)
    # Connecting would create the file.
    if path is not None and not path.is_file():
        return Finding("MLflow store", "ok", f"{path} will be created by the first run")
    return _answer("MLflow store", lambda: check_tracking(uri), "answers", "correct --tracking-uri, or omit it")


def _cluster() -> Finding:
    from siclip_platform.cluster.connect import check_address

    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return Finding("Ray cluster", "ok", "RAY_ADDRESS is unset: each run starts its own cluster")
    return _answer(
        "Ray cluster", lambda: check_address(address), f"{address} accepts connections", "unset RAY_ADDRESS"
    )


def _answer(name: str, check: Callable[[], object], detail: str, remedy: str) -> Finding:
    try:
        check()
    except UserError as error:
        return Finding(name, "wrong", str(error), remedy)
    return Finding(name, "ok", detail)


def _imports() -> Iterator[Finding]:
    """Packages that are installed but cannot be imported, such as a torchvision for another torch."""
    import importlib

    # As a training imports torchvision and timm, in half the time. If it fails, so does one of the names below.
    with suppress(Exception):
        importlib.import_module("siclip.models.timm_parts")
    for name in IMPORTS:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken package may raise anything
            problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            yield Finding(f"import {name}", "wrong", problem, "rm -r .venv && make install")


def _torch() -> Finding:
    try:
        import torch
    except Exception:  # `_imports` has already reported it
        return Finding("torch", "wrong", "cannot be imported", "rm -r .venv && make install")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return checks.torch_device(torch.__version__, torch.version.cuda, devices, DRIVER.exists())
