"""One function per check: facts → a finding. `siclip_platform.doctor.examine` collects the facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from siclip.config import CHECKPOINT_SECONDS
from siclip_platform.cluster.connect import object_store_bytes
from siclip_platform.plan.saving import HOUR

Level = Literal["ok", "note", "wrong"]
GIB = 2**30

OLDEST_PYTHON = (3, 11)
FREE_BYTES = 10 * GIB
"""The least that a study needs for checkpoints, for objects that Ray spills, and for MLflow."""
FREE_INODES = 100_000
"""Ray's sessions, Tune's trials and MLflow's artifacts are many small files."""
OPEN_FILES = 65_536
"""What Ray's documentation recommends; each worker opens hundreds."""


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        name: what was checked.
        level: ``wrong`` stops runs, a ``note`` costs speed or convenience.
        detail: what was found.
        remedy: usually a command; empty if there is nothing to fix.
    """

    name: str
    level: Level
    detail: str
    remedy: str = ""


def python_version(version: tuple[int, int, int]) -> Finding:
    """Whether this Python is supported."""
    text = ".".join(map(str, version))
    if version[:2] < OLDEST_PYTHON:
        return Finding("Python", "wrong", f"{text} is older than 3.11", "make PYTHON=python3.11 install")
    return Finding("Python", "ok", text)


def torch_device(torch: str, cuda_build: str | None, devices: list[str], driver: bool) -> Finding:
    """Whether torch uses the GPUs of this machine.

    Args:
        torch: its version.
        cuda_build: the CUDA version that torch was built for; None for a build without CUDA.
        devices: names of the CUDA devices that torch sees.
        driver: whether an NVIDIA driver is loaded.
    """
    if devices:
        return Finding("torch", "ok", f"{torch}, CUDA {cuda_build}: {', '.join(devices)}")
    if driver and cuda_build is None:
        detail = f"{torch} is a build without CUDA, and this machine has an NVIDIA driver"
        return Finding("torch", "wrong", detail, "rm -r .venv && make install")
    if driver:
        detail = f"{torch} (CUDA {cuda_build}) sees no device although an NVIDIA driver is loaded"
        remedy = "nvidia-smi  # its CUDA version must be at least torch's; also unset CUDA_VISIBLE_DEVICES"
        return Finding("torch", "wrong", detail, remedy)
    return Finding("torch", "note", f"{torch}, no GPU here: runs use the CPU")


def locked_versions(lock: str, installed: Mapping[str, str], environment: Mapping[str, str]) -> Finding:
    """Compare the installed distributions with the pins of a requirements file.

    Args:
        lock: the content of the requirements file.
        installed: canonical name → version.
        environment: values of markers, see `packaging.markers`; pins whose marker is false are ignored.
    """
    pins = [pin for line in lock.splitlines() if (pin := _pin(line, environment))]
    missing = [name for name, _ in pins if name not in installed]
    other = [
        f"{name} {installed[name]} (lock: {v})" for name, v in pins if name in installed and installed[name] != v
    ]
    remedy = "rm -f .venv/.installed && make install"
    if missing:
        return Finding("packages", "wrong", f"missing: {_some(missing)}", remedy)
    if other:
        return Finding("packages", "note", f"other versions than requirements.lock: {_some(other)}", remedy)
    return Finding("packages", "ok", f"{len(pins)} as in requirements.lock")


def _pin(line: str, environment: Mapping[str, str]) -> tuple[str, str] | None:
    text = line.strip().rstrip("\\").strip()
    # The lines that follow a pin are its hashes.
    if not text or text.startswith(("#", "--")):
        return None
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return None
    if requirement.marker and not requirement.marker.evaluate(dict(environment)):
        return None
    return canonicalize_name(requirement.name), next(iter(requirement.specifier)).version


def _some(names: list[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def ray_token(mode: str | None, from_environment: bool, file_mode: int | None) -> Finding:
    """Whether Ray requires a token that nobody else can read.

    Args:
        mode: the value of RAY_AUTH_MODE.
        from_environment: whether RAY_AUTH_TOKEN is set.
        file_mode: permission bits of ~/.ray/auth_token; None if the file does not exist.
    """
    generate = "RAY_AUTH_MODE=token ray get-auth-token --generate"
    require = "export RAY_AUTH_MODE=token"
    if mode not in (None, "token"):
        detail = f"RAY_AUTH_MODE={mode}: everyone who reaches the head can run code on it"
        return Finding("Ray token", "wrong", detail, require)
    if from_environment:
        return Finding("Ray token", "ok", "in the environment")
    if file_mode is None:
        detail = "none yet; a cluster that a run starts generates one, `ray start` requires one"
        return Finding("Ray token", "note", detail, generate)
    if file_mode & 0o077:
        detail = f"~/.ray/auth_token is readable by others (mode {file_mode:o})"
        return Finding("Ray token", "wrong", detail, "chmod 600 ~/.ray/auth_token")
    if mode is None:
        detail = "~/.ray/auth_token exists, but RAY_AUTH_MODE is unset: `ray` commands in a shell need it"
        return Finding("Ray token", "note", detail, require)
    return Finding("Ray token", "ok", "~/.ray/auth_token, readable by you only")


def disk(name: str, folder: str, free_bytes: int, free_inodes: int | None) -> Finding:
    """Whether a file system has enough space.

    Args:
        name: what the folder is used for.
        folder: a folder on the file system.
        free_bytes: free space.
        free_inodes: free inodes; None if the file system has no such limit.
    """
    name = f"disk, {name}"
    if free_bytes < FREE_BYTES:
        detail = f"{folder} has {free_bytes / GIB:.1f} GiB free; {FREE_BYTES // GIB} are needed"
        return Finding(name, "wrong", detail, f"df -h {folder}  # delete files, or choose another folder")
    if free_inodes is not None and free_inodes < FREE_INODES:
        detail = f"{folder} has {free_inodes:,} inodes free; {FREE_INODES:,} are needed"
        return Finding(name, "wrong", detail, f"df -i {folder}  # delete small files, or choose another folder")
    return Finding(name, "ok", f"{folder}: {free_bytes / GIB:,.0f} GiB free")


def open_files(soft: int, hard: int) -> Finding:
    """Whether the limits of open files, soft and hard, are high enough for many workers."""
    if soft >= OPEN_FILES:
        return Finding("open files", "ok", f"limit {soft:,}")
    as_root = f"echo '* - nofile {OPEN_FILES}' >> /etc/security/limits.conf  # as root, then log in again"
    remedy = f"ulimit -n {OPEN_FILES}" if hard >= OPEN_FILES else as_root
    return Finding("open files", "note", f"limit {soft:,}; Ray recommends {OPEN_FILES:,} for many workers", remedy)


def shared_memory(size_bytes: int | None, memory_bytes: int) -> Finding:
    """Whether Ray's object store fits in /dev/shm.

    Args:
        size_bytes: the size of /dev/shm; None where the system has none (macOS).
        memory_bytes: the machine's memory.
    """
    if size_bytes is None:
        return Finding("shared memory", "ok", "no /dev/shm on this system")
    needed = object_store_bytes(memory_bytes)
    if size_bytes < needed:
        detail = (
            f"/dev/shm has {size_bytes / GIB:.1f} GiB. Ray's object store needs {needed / GIB:.1f} and otherwise "
            "uses the disk, which is slow"
        )
        remedy = f"mount -o remount,size={needed // GIB + 1}G /dev/shm  # in Docker: --shm-size={needed // GIB + 1}g"
        return Finding("shared memory", "note", detail, remedy)
    return Finding("shared memory", "ok", f"/dev/shm: {size_bytes / GIB:.1f} GiB")


def openmp(threads: str | None, wait_policy: str | None, cores: int) -> Finding:
    """Whether OpenMP's settings suit several trainings on one machine.

    Args:
        threads: the value of OMP_NUM_THREADS.
        wait_policy: the value of OMP_WAIT_POLICY.
        cores: cores that this process may use.
    """
    if threads is not None and (not threads.isdigit() or not 0 < int(threads) <= cores):
        return Finding("OpenMP", "note", f"OMP_NUM_THREADS={threads} on {cores} cores", "unset OMP_NUM_THREADS")
    if wait_policy not in (None, "passive", "PASSIVE"):
        detail = f"OMP_WAIT_POLICY={wait_policy}: waiting threads take the cores of other trainings"
        return Finding("OpenMP", "note", detail, "export OMP_WAIT_POLICY=passive")
    return Finding("OpenMP", "ok", f"{cores} cores, passive waiting")


def checkpoints(every: int | Literal["auto"], recipe: str, lost_seconds: float, card: str) -> Finding:
    """Whether a training keeps what it has computed when its machine is lost.

    Args:
        every: the recipe's ``training.checkpoint_every``.
        recipe: its name or file.
        lost_seconds: of training that would be lost at most, on the card.
        card: a graphics card.
    """
    when = f"every {CHECKPOINT_SECONDS / 60:.0f} minutes" if every == "auto" else f"every {every:,} steps"
    said = f"{recipe} is saved {when if every else 'after its last step only'}"
    if lost_seconds > HOUR:
        detail = (
            f"{said}: with its machine up to {lost_seconds / HOUR:,.1f} h of training are lost, as planned for {card}"
        )
        return Finding("checkpoints", "note", detail, "--set training.checkpoint_every=auto")
    return Finding(
        "checkpoints", "ok", f"{said}: at most {lost_seconds / 60:,.0f} min are lost, as planned for {card}"
    )
