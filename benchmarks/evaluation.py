"""Retrieval of 10,000 images × 50,000 captions of width 512: our search and CLIP_benchmark's on the same embeddings.

    python benchmarks/evaluation.py                 # the project's published run, half an hour on two cores
    python benchmarks/evaluation.py --images 1000 --rounds 1

The two sides alternate, each in a separate process with the same two threads. Time is that of the search alone,
memory the peak of the process. CLIP_benchmark's search is `clip_benchmark.metrics.zeroshot_retrieval` on the given
embeddings, in batches of 64 as on its command line. ``--limit-seconds`` ends a side that takes longer, which is
reported.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parent / "results" / "evaluation.json"
CAPTIONS = 5
SIDES = ("siclip", "clip_benchmark")


def embeddings(images: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit embeddings of images and of five captions each, close enough to their image to be found sometimes."""
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.normalize(torch.randn(images, width, generator=generator), dim=-1)
    noise = torch.randn(images * CAPTIONS, width, generator=generator)
    return image, torch.nn.functional.normalize(image.repeat_interleave(CAPTIONS, dim=0) + 0.3 * noise, dim=-1)


def run_siclip(image: torch.Tensor, text: torch.Tensor) -> dict[str, float]:
    from siclip.evaluation.retrieval import retrieval_metrics

    return retrieval_metrics(image, text, torch.arange(len(text)) // CAPTIONS)


def run_clip_benchmark(image: torch.Tensor, text: torch.Tensor) -> dict[str, float]:
    """CLIP_benchmark's function on a model that returns the given embeddings."""
    from clip_benchmark.metrics import zeroshot_retrieval

    class Lookup(torch.nn.Module):
        def encode_image(self, rows: torch.Tensor) -> torch.Tensor:
            return image[rows]

        def encode_text(self, rows: torch.Tensor) -> torch.Tensor:
            return text[rows]

    rows = torch.arange(len(image)).split(64)
    loader = [(part, [range(CAPTIONS * int(i), CAPTIONS * int(i) + CAPTIONS) for i in part]) for part in rows]
    found: dict[str, float] = zeroshot_retrieval.evaluate(
        Lookup(), loader, torch.tensor, device="cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    return found


def one_side(side: str, images: int, width: int) -> None:
    """Measure one side and print JSON; the entry point of the separate process."""
    from siclip.training.memory import peak_memory

    torch.set_num_threads(2)
    image, text = embeddings(images, width)
    run = {"siclip": run_siclip, "clip_benchmark": run_clip_benchmark}[side]
    with torch.no_grad():
        started = time.perf_counter()
        found = run(image, text)
        seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "peak_bytes": peak_memory(torch.device("cpu")), "metrics": found}))


def measure(side: str, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--side", side, "--images", str(arguments.images)]
    command += ["--width", str(arguments.width)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=arguments.limit_seconds, check=True)
    except subprocess.TimeoutExpired:
        return {"failed": f"not finished after {arguments.limit_seconds:g} s"}
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines()
        killed = "killed, probably out of memory" if error.returncode < 0 else "failed"
        return {"failed": lines[-1] if lines and error.returncode > 0 else killed}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit-seconds", type=float, default=1800)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        one_side(arguments.side, arguments.images, arguments.width)
        return
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(arguments.rounds):
        for side in SIDES:
            if not any("failed" in run for run in runs[side]):
                runs[side].append(measure(side, arguments))
                print(side, {name: value for name, value in runs[side][-1].items() if name != "metrics"}, flush=True)
    report(arguments, runs)


def report(arguments: argparse.Namespace, runs: dict[str, list[dict[str, Any]]]) -> None:
    captions = arguments.images * CAPTIONS
    print(f"\n{arguments.images:,} images × {captions:,} captions, width {arguments.width}, two threads")
    for side in SIDES:
        good = [run for run in runs[side] if "failed" not in run]
        if not good:
            print(f"{side:<16} {runs[side][-1]['failed']}")
            continue
        seconds = [run["seconds"] for run in good]
        peak = max(run["peak_bytes"] for run in good) / 2**20
        spread = f"{min(seconds):.1f} to {max(seconds):.1f}"
        print(f"{side:<16} {statistics.median(seconds):8.1f} s ({spread}), peak {peak:,.0f} MiB")
    pairs = [
        (ours, theirs)
        for ours, theirs in zip(*(runs[side] for side in SIDES), strict=False)
        if "failed" not in ours and "failed" not in theirs
    ]
    summary: dict[str, Any] = {}
    if pairs:
        ratios = [theirs["seconds"] / ours["seconds"] for ours, theirs in pairs]
        ours, theirs = pairs[0]
        gap = max(abs(value - ours["metrics"][name]) for name, value in theirs["metrics"].items())
        times_faster = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
        summary = {"times_faster": times_faster, "largest_difference_of_a_metric": gap}
        print("times faster: {median:.1f} ({low:.1f} to {high:.1f})".format(**times_faster))
        print(f"largest difference of a metric: {gap:.1e}")
    from study_tools import environment

    from siclip_platform.tracking import git_commit

    setting = {"images": arguments.images, "captions": captions, "width": arguments.width, "threads": 2}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(
        json.dumps({**environment([git_commit()]), "setting": setting, "runs": runs, **summary}, indent=2)
    )


if __name__ == "__main__":
    main()
