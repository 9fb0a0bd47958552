"""Single checks: facts in, a finding out. What looks the facts up stands in `siclip_platform.doctor.examine`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

Level = Literal["ok", "note", "wrong"]
GIB = 2**30

OLDEST_PYTHON = (3, 11)
FREE_BYTES = 10 * GIB
"""What a study with its checkpoints, Ray's spilling and MLflow want at least."""
FREE_INODES = 100_000
OPEN_FILES = 65_536
"""What Ray's documentation asks for; every worker holds hundreds."""
OBJECT_STORE_SHARE = 0.3
"""The part of the memory that Ray gives its object store, which lies in /dev/shm."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``wrong`` stops runs; a ``note`` costs speed or comfort. ``remedy``: a command, mostly."""

    name: str
    level: Level
    detail: str
    remedy: str = ""


def python_version(version: tuple[int, int, int]) -> Finding:
    text = ".".join(map(str, version))
    if version[:2] < OLDEST_PYTHON:
        return Finding("Python", "wrong", f"{text} is older than 3.11", "make PYTHON=python3.11 install")
    return Finding("Python", "ok", text)


def torch_device(torch: str, cuda_build: str | None, devices: list[str], driver: bool) -> Finding:
    """``driver``: whether an NVIDIA driver is loaded; ``cuda_build``: the CUDA version torch was built for."""
    if devices:
        return Finding("torch", "ok", f"{torch}, CUDA {cuda_build}: {', '.join(devices)}")
    if driver and cuda_build is None:
        return Finding(
            "torch", "wrong", f"{torch} is a build without CUDA, and this machine has an NVIDIA driver",
            "rm -r .venv && make install",
        )  # fmt: skip
    if driver:
        return Finding(
            "torch", "wrong", f"{torch} (CUDA {cuda_build}) sees no device although an NVIDIA driver is loaded",
            "nvidia-smi  # its CUDA version must be at least torch's; also unset CUDA_VISIBLE_DEVICES",
        )  # fmt: skip
    return Finding("torch", "note", f"{torch}, no GPU here: runs use the CPU")


def locked_versions(lock: str, installed: Mapping[str, str], environment: Mapping[str, str]) -> Finding:
    """Compare installed distributions (canonical name → version) with the pins of a requirements file.

    A pin whose marker does not hold for ``environment`` (see `packaging.markers`) does not count.
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
    """``mode``: RAY_AUTH_MODE; ``file_mode``: permission bits of ~/.ray/auth_token, None if there is none."""
    make = "RAY_AUTH_MODE=token ray get-auth-token --generate"
    if mode not in (None, "token"):
        return Finding("Ray token", "wrong", f"RAY_AUTH_MODE={mode}: anyone who reaches the head runs code on it",
                       "export RAY_AUTH_MODE=token")  # fmt: skip
    if from_environment:
        return Finding("Ray token", "ok", "in the environment")
    if file_mode is None:
        return Finding("Ray token", "note", "none yet; a cluster of our own makes one, `ray start` needs one", make)
    if file_mode & 0o077:
        return Finding(
            "Ray token", "wrong", f"~/.ray/auth_token is readable by others (mode {file_mode:o})",
            "chmod 600 ~/.ray/auth_token",
        )  # fmt: skip
    if mode is None:
        return Finding("Ray token", "note", "there, but RAY_AUTH_MODE is unset: `ray` commands by hand need it",
                       "export RAY_AUTH_MODE=token")  # fmt: skip
    return Finding("Ray token", "ok", "~/.ray/auth_token, readable by you alone")


def disk(name: str, place: str, free_bytes: int, free_inodes: int | None) -> Finding:
    """``free_inodes``: None where the file system has no such limit."""
    name = f"disk, {name}"
    if free_bytes < FREE_BYTES:
        return Finding(name, "wrong", f"{place} has {free_bytes / GIB:.1f} GiB free; {FREE_BYTES // GIB} are needed",
                       f"df -h {place}  # free some, or name another folder")  # fmt: skip
    if free_inodes is not None and free_inodes < FREE_INODES:
        return Finding(name, "wrong", f"{place} has {free_inodes:,} inodes free, {FREE_INODES:,} are wanted",
                       f"df -i {place}  # delete small files, or name another folder")  # fmt: skip
    return Finding(name, "ok", f"{place}: {free_bytes / GIB:,.0f} GiB free")


def open_files(soft: int, hard: int) -> Finding:
    if soft >= OPEN_FILES:
        return Finding("open files", "ok", f"limit {soft:,}")
    as_root = f"echo '* - nofile {OPEN_FILES}' >> /etc/security/limits.conf  # as root, then log in again"
    remedy = f"ulimit -n {OPEN_FILES}" if hard >= OPEN_FILES else as_root
    return Finding("open files", "note", f"limit {soft:,}; Ray asks for {OPEN_FILES:,} when many workers run", remedy)


def shared_memory(size_bytes: int | None, memory_bytes: int) -> Finding:
    """``size_bytes``: the size of /dev/shm, None where the system has none (macOS)."""
    if size_bytes is None:
        return Finding("shared memory", "ok", "no /dev/shm on this system")
    wanted = int(memory_bytes * OBJECT_STORE_SHARE)
    if size_bytes < wanted:
        return Finding(
            "shared memory", "note",
            f"/dev/shm has {size_bytes / GIB:.1f} GiB, Ray's object store wants {wanted / GIB:.1f} and falls back "
            "to the disk, which is slow",
            f"mount -o remount,size={wanted // GIB + 1}G /dev/shm  # in Docker: --shm-size={wanted // GIB + 1}g",
        )  # fmt: skip
    return Finding("shared memory", "ok", f"/dev/shm: {size_bytes / GIB:.1f} GiB")


def openmp(threads: str | None, wait_policy: str | None, cores: int) -> Finding:
    """``threads``: OMP_NUM_THREADS; ``wait_policy``: OMP_WAIT_POLICY."""
    if threads is not None and (not threads.isdigit() or not 0 < int(threads) <= cores):
        return Finding("OpenMP", "note", f"OMP_NUM_THREADS={threads} on {cores} cores", "unset OMP_NUM_THREADS")
    if wait_policy not in (None, "passive", "PASSIVE"):
        return Finding(
            "OpenMP", "note",
            f"OMP_WAIT_POLICY={wait_policy}: waiting threads burn the cores of other trainings",
            "export OMP_WAIT_POLICY=passive",
        )  # fmt: skip
    return Finding("OpenMP", "ok", f"{cores} cores, passive waiting")
