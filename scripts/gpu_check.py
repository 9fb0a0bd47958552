"""Run what this project cannot run without a card, in about ten minutes: tests, benchmarks and a calibrated plan.

    python scripts/gpu_check.py [--only tests memory] [--out benchmarks/results/gpu]

Writes one JSON, named after the card, with the result of each part. A part that fails or takes too long is recorded
with its reason, and the others run. The exit code is 1 if a part failed, 2 without a CUDA device.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gpu"
LIBRARIES = ("torch", "torchvision", "timm", "open_clip_torch", "ray")
NO_DEVICE = 2
LONGEST_LOG = 2000  # characters of a failed part's output that are kept


@dataclass(frozen=True)
class Part:
    """One part of the check.

    Attributes:
        name: its key in the JSON.
        words: of its command line, after the interpreter; ``{out}`` is a file that it writes.
        limit: seconds after which it is stopped.
        read: the file, or what it printed → its result. Raises `Unusable`.
        codes: exit codes of a part that did its work.
    """

    name: str
    words: tuple[str, ...]
    limit: float
    read: Callable[[Path, str], Any]
    codes: tuple[int, ...] = (0,)


class Unusable(Exception):
    """A part ended and has no result."""


def read_json(path: Path, text: str) -> Any:
    """The JSON that a benchmark wrote."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Unusable(f"it wrote no result: {error}") from None


def read_printed(path: Path, text: str) -> Any:
    """The JSON that a command printed last."""
    try:
        return json.loads(text[text.index("{") : text.rindex("}") + 1])
    except ValueError as error:
        raise Unusable(f"it printed no result: {error}") from None


def read_tests(path: Path, text: str) -> dict[str, int]:
    """Counts of a JUnit file: a skipped test means that the device was not used."""
    suites = ElementTree.parse(path).getroot().iter("testsuite")
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in suites:
        for name in counts:
            counts[name] += int(suite.get(name, 0))
    if not counts["tests"] or counts["skipped"]:
        raise Unusable(f"{counts['tests']} tests marked gpu, {counts['skipped']} of them skipped")
    return counts


def gpu_tests() -> list[str]:
    """The files with tests marked ``gpu``."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if "pytest.mark.gpu" in path.read_text(encoding="utf-8")]


def parts() -> tuple[Part, ...]:
    """All parts, ten minutes at most."""
    step = ("benchmarks/training_step.py", "--batch", "256", "--caching-batch", "1024", "--repeats", "5")
    captions = ("benchmarks/captioning.py", "--shape", "real", "--images", "32", "--batch", "32", "--rounds", "1")
    plan = ("-m", "siclip_platform", "plan", "--calibrate", "--seconds", "30", "--json")
    tests = ("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--junitxml", "{out}", *gpu_tests())
    return (
        Part("tests", tests, 120, read_tests),
        Part("training_step", (*step, "--out", "{out}"), 150, read_json),
        Part("memory", ("benchmarks/memory.py", "--out", "{out}"), 120, read_json),
        Part("captioning", (*captions, "--precision", "bf16", "--out", "{out}"), 120, read_json),
        # its exit code 1 says that the reference job does not fit on this card or disk
        Part("plan", plan, 90, read_printed, codes=(0, 1)),
    )


def run_part(part: Part) -> dict[str, Any]:
    """Run a part with its processes, and stop them at its limit."""
    print(f"{part.name} (at most {part.limit:.0f} s) …", flush=True)
    started = time.monotonic()
    with TemporaryDirectory() as folder:
        out = Path(folder) / f"{part.name}.out"
        words = [sys.executable, *(word.replace("{out}", str(out)) for word in part.words)]
        code, text = _run(words, part.limit)
        found: dict[str, Any] = {"command": " ".join(["python", *part.words]).replace(" {out}", " FILE")}
        try:
            if code is None:
                raise Unusable(f"stopped after its limit of {part.limit:.0f} s")
            if code not in part.codes:
                raise Unusable(f"exit code {code}")
            found |= {"ok": True, "result": part.read(out, text)}
        except Unusable as error:
            found |= {"ok": False, "reason": str(error), "output": text[-LONGEST_LOG:]}
    found["seconds"] = round(time.monotonic() - started, 1)
    print(f"{part.name}: {'done' if found['ok'] else found['reason']} in {found['seconds']:.0f} s", flush=True)
    return found


def _run(words: Sequence[str], limit: float) -> tuple[int | None, str]:
    """The exit code, None if it was stopped, and what it printed."""
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        text, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, _ = process.communicate()
        return None, text
    return process.returncode, text


def card() -> dict[str, Any] | None:
    """The first CUDA device; None if there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    return {
        "card": found.name,
        "memory_bytes": found.total_memory,
        "compute_capability": f"{found.major}.{found.minor}",
        "cuda": torch.version.cuda,
        "cards": torch.cuda.device_count(),
    }


def file_name(name: str) -> str:
    """A card's name as a file's: ``NVIDIA GeForce RTX 3090`` → ``nvidia-geforce-rtx-3090.json``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".json"


def check(device: dict[str, Any], chosen: Sequence[Part], folder: Path) -> int:
    """Run the parts and write the JSON after each; the exit code."""
    from siclip_platform.tracking import git_commit

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(device["card"])
    result: dict[str, Any] = {
        **device,
        "commit": git_commit(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "parts": {},
    }
    for part in chosen:
        result["parts"][part.name] = run_part(part)
        path.write_text(json.dumps(result, indent=2) + "\n")
    failed = [name for name, found in result["parts"].items() if not found["ok"]]
    print(
        f"{path}: "
        + (f"failed: {', '.join(failed)}" if failed else "everything ran; please send it with a pull request")
    )
    return int(bool(failed))


def main(arguments: Sequence[str] | None = None) -> int:
    known = [part.name for part in parts()]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=known, default=known, help="these parts")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON")
    options = parser.parse_args(arguments)
    device = card()
    if device is None:
        print(
            "gpu-check needs a CUDA device, and torch finds none: run it on a machine with an NVIDIA card and its "
            "driver (nvidia-smi shows both)",
            file=sys.stderr,
        )
        return NO_DEVICE
    return check(device, [part for part in parts() if part.name in options.only], options.out)


if __name__ == "__main__":
    sys.exit(main())
