"""Samples per second and peak memory of one optimizer step: open_clip's distillation compared with ours.

    python benchmarks/training_step.py [--batch 16] [--repeats 5] [--threads 2] [--caching-batch 64]

All variants have the same SiCLIP-S0 student, the same MobileCLIP-S0 teacher (with random weights, because the work is
the same), 256-px images, 77 tokens, and the same batch and threads; fp32 on the CPU, bf16 autocast on a GPU. A round
is one step of every variant; each of the ``repeats`` rounds starts with another variant. Reported are medians, and
the ratios to (a) in the same round with their spread.

(a) is open_clip's ``train_one_epoch`` with its ``DistillClipLoss``, all weights trained, online teacher. Our variants
compute more losses (CLIP + FD + CRD + ICL): (b) all weights trained, online teacher; (c) inherited trunk, frozen and
shared with the teacher; (d) as (c), teacher embeddings stored; (e) as (d), trunk features stored; (f) as (c), every
BatchNorm in eval mode; (g) as (f), gradient caching with an eighth of the batch; (h) as (d), a student with a context
of 32 tokens. (f) and (g) are measured again at ``caching-batch``: gradient caching is for large batches, and with
micro-batches of 2 samples its cost is mostly small matrix products.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "training_step.json"
VARIANTS = {
    "a": "open_clip: DistillClipLoss, all trained, online teacher",
    "b": "ours, all trained, online teacher",
    "c": "ours, frozen trunk shared with the teacher",
    "d": "ours, frozen trunk, stored teacher embeddings",
    "e": "ours, stored trunk features and teacher embeddings",
    "f": "ours, as c, BatchNorm in eval mode",
    "g": "ours, as f, gradient caching at batch/8",
    "h": "ours, as d, the student's context 32 tokens",
}
SIZE, TOKENS, WIDTH = 256, 77, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--caching-batch", type=int, default=64, help="batch of a second measurement of (f) and (g)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    for name in ("batch", "caching_batch"):
        if getattr(options, name) % 8:
            flag = f"--{name.replace('_', '-')} {getattr(options, name)}"
            parser.error(f"{flag}: variant (g) needs an eighth of it, so name a multiple of 8")
    # OpenMP threads that spin while they wait would compete with the threads that are measured.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    seconds, device = measure_seconds("".join(VARIANTS), options.batch, options)
    caching, _ = measure_seconds("fg", options.caching_batch, options)
    memory = {name: in_separate_process(name, options) for name in VARIANTS}
    result = {
        "device": device,
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("torch", "timm", "open_clip_torch")},
        "batch": options.batch,
        "threads": options.threads,
        "repeats": options.repeats,
        "variants": {name: summary(name, seconds, options.batch) | memory[name] for name in VARIANTS},
        "gradient_caching_time": [
            {"batch": options.batch} | ratios(seconds["g"], seconds["f"]),
            {"batch": options.caching_batch} | ratios(caching["g"], caching["f"]),
        ],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


def measure_seconds(names: str, batch: int, options: Namespace) -> tuple[dict[str, list[float]], str]:
    """Seconds of each variant's step in each round, and the device. The first round warms up and is not counted."""
    import torch

    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps = {name: make_step(name, batch, device) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(options.repeats + 1):
        for name in rotated(list(names), round_number):
            _wait(device)
            started = time.perf_counter()
            steps[name]()
            _wait(device)
            if round_number:
                seconds[name].append(time.perf_counter() - started)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return seconds, card


def rotated(names: list[str], by: int) -> list[str]:
    """The names starting with another one, so that no variant always follows the same one."""
    start = by % len(names)
    return names[start:] + names[:start]


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_separate_process(name: str, options: Namespace) -> dict[str, float]:
    """Peak memory of one variant, measured in a separate process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak_memory_of, name, options.batch, options.threads).result()


def peak_memory_of(name: str, batch: int, threads: int) -> dict[str, float]:
    """``process_mib``: peak of the process during two steps; ``step_mib``: of that, above the process before them."""
    import torch

    from siclip.training.memory import peak_memory

    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    step = make_step(name, batch, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # Linux: resets the process's recorded peak to its current size.
        Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory(device)
    step()
    step()
    after = peak_memory(device)
    return {"step_mib": (after - before) / 2**20, "process_mib": after / 2**20}


def make_step(name: str, size: int, device: Any) -> Callable[[], object]:
    """A function that does one optimizer step of a variant."""
    import torch

    from siclip.models import create_model

    torch.manual_seed(0)
    teacher = create_model("mobileclip-s0").eval()
    images = torch.randint(0, 256, (size, SIZE, SIZE, 3), dtype=torch.uint8)
    tokens = torch.zeros(size, TOKENS, dtype=torch.int64)
    tokens[:, :20] = torch.randint(1, 49000, (size, 20))
    tokens[:, 20] = 49407
    if name == "a":
        return open_clip_step(teacher, images, tokens, device)
    return our_step(name, teacher, images, tokens, device)


def our_step(name: str, teacher: Any, images: Any, tokens: Any, device: Any) -> Callable[[], object]:
    import torch

    from siclip.config import LossConfig, TrainingConfig
    from siclip.data.batch import Batch, TrunkFeatures
    from siclip.models import model_config
    from siclip.teachers import StoredTeacher
    from siclip.training.setup import make_trainer
    from siclip.training.step import trunk_features

    size = len(images)
    training = TrainingConfig(
        steps=10_000,
        batch_size=size,
        precision="bf16" if device.type == "cuda" else "fp32",
        batch_norm="eval" if name in "fg" else "train",
        micro_batch_size=size // 8 if name == "g" else 0,
    )
    stored = name in "deh"
    context = {"text": {"context_length": 32}} if name == "h" else {}
    trainer = make_trainer(
        model_config("siclip-s0", **context),
        LossConfig(),
        training,
        teacher=teacher,
        inherit_weights=True,
        freeze="none" if name == "b" else "inherited",
        distil_from=StoredTeacher((WIDTH, WIDTH), 14.0) if stored else None,
        device=device,
    )
    ids = torch.arange(size)
    batch = Batch(images, tokens, ids, ids)
    if stored:
        unit = torch.nn.functional.normalize(torch.randn(2, size, WIDTH), dim=-1)
        features = None
        if name == "e":
            found = trunk_features(trainer.model, batch.to(device))
            features = TrunkFeatures(found.image.bfloat16().cpu(), found.text.bfloat16().cpu())
        batch = Batch(None if name == "e" else images, tokens, ids, ids, features, unit[0], unit[1])
    return lambda: trainer.train_step(batch)


def open_clip_step(teacher: Any, images: Any, tokens: Any, device: Any) -> Callable[[], object]:
    """A function that does one optimizer step through ``open_clip_train.train.train_one_epoch``, with AdamW."""
    import torch
    from open_clip.loss import DistillClipLoss
    from open_clip_train.train import train_one_epoch
    from torch import nn

    from siclip.models import create_model

    class Wrapped(nn.Module):
        """A model with the output that open_clip's loop expects."""

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model
            self.logit_scale = model.logit_scale

        def forward(self, images: Any, texts: Any) -> dict[str, Any]:
            image, text = self.model(images, texts)
            return {"image_features": image, "text_features": text, "logit_scale": self.logit_scale.exp()}

    student = Wrapped(create_model("siclip-s0")).to(device)
    pixels = images.permute(0, 3, 1, 2).float().div(255).contiguous()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.1)
    loader = type("Loader", (list,), {"num_batches": 1, "num_samples": len(images)})([(pixels, tokens)])
    data = {"train": Namespace(set_epoch=lambda epoch: None, dataloader=loader)}
    precision = "amp_bf16" if device.type == "cuda" else "fp32"
    training = {"device": str(device), "precision": precision, "batch_size": len(images), "distill": True}
    training |= {"accum_freq": 1, "skip_scheduler": True, "grad_clip_norm": 1.0}
    one_process = {"horovod": False, "distributed": False, "rank": 0, "local_rank": 0, "world_size": 1}
    no_logs = {"log_every_n_steps": 10**9, "log_local": False, "wandb": False}
    options = Namespace(**training, **one_process, **no_logs)
    wrapped_teacher, loss = Wrapped(teacher).to(device), DistillClipLoss()
    return lambda: train_one_epoch(student, data, loss, 0, optimizer, None, None, wrapped_teacher, options)


def ratios(slow: list[float], fast: list[float]) -> dict[str, float]:
    """Median, smallest and largest of the rounds' ratios slow/fast."""
    each = [s / f for s, f in zip(slow, fast, strict=True)]
    return {"median": statistics.median(each), "least": min(each), "largest": max(each)}


def summary(name: str, seconds: dict[str, list[float]], batch: int) -> dict[str, Any]:
    median = statistics.median(seconds[name])
    return {
        "what": VARIANTS[name],
        "seconds_median": median,
        "samples_per_second": batch / median,
        "times_faster_than_a": ratios(seconds["a"], seconds[name]),
    }


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"one step, batch {result['batch']}, {result['device']}, {result['threads']} threads")
    for column in ("", "variant", "samples/s", "× of a (smallest–largest)", "MiB of the step"):
        table.add_column(column, justify="left" if column in ("", "variant") else "right")
    for name, v in result["variants"].items():
        ratio = v["times_faster_than_a"]
        spread = f"{ratio['median']:.2f} ({ratio['least']:.2f}–{ratio['largest']:.2f})"
        table.add_row(name, v["what"], f"{v['samples_per_second']:.2f}", spread, f"{v['step_mib']:.0f}")
    console = Console(width=118)
    console.print(table)
    for caching in result["gradient_caching_time"]:
        spread = f"{caching['median']:.2f} ({caching['least']:.2f}–{caching['largest']:.2f})"
        console.print(f"gradient caching at batch {caching['batch']}: {spread} × the plain step's time")


if __name__ == "__main__":
    main()
