"""The smallest run of each job in ``jobs/``, and what it must leave behind."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import open_clip
import pytest
import torch
from captioning_parts import NANO_COCA, shape
from PIL import Image

from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.datasets.sidecar import open_sidecar
from siclip_platform.evaluation import evaluate_checkpoint
from siclip_platform.tracking import default_tracking_uri


@dataclass(frozen=True)
class Parts:
    """The inputs of the jobs, and the folder for their outputs."""

    digits: Path
    teacher: Path
    folder: Path

    def out(self, job: str) -> Path:
        return self.folder / job

    def words(self, job: str) -> list[str]:
        """The smallest command line that runs every part of a job."""
        out = f"--out {self.out(job)}"
        data = f"--data {self.digits}"
        teacher = f"--teacher {self.teacher}"
        source = self.folder / "cc"
        captions = f"--captioner {self.folder}/coca.json --pretrained {self.folder}/coca.pt --per-image 1"
        small = "--set training.steps=2 --set training.warmup_steps=1 --set training.batch_size=16"
        lines = {
            "prepare_cc12m_syn": f"{source} --split train --data {self.out(job)} {teacher} --augmentations 2 "
            f"{captions}",
            "train_siclip": f"--recipe digits-student {data} {teacher} {out} {small}",
            "tune_wikd": f"{data} {teacher} {out} --trials 2 --steps 12 --concurrent 1",
            "ablate_siclip": f"{self.folder}/study.yaml {data} {teacher} {out} --seeds 1 --steps 12 --concurrent 1",
            "evaluate_siclip": f"{self.teacher} {data} --json",
        }
        return lines[job].split()


def untrained_coca(folder: Path) -> None:
    """Write a small CoCa with random weights: ``coca.json`` and ``coca.pt``."""
    config = {**NANO_COCA, **{k: {**NANO_COCA[k], "context_length": 77} for k in ("text_cfg", "multimodal_cfg")}}
    (folder / "coca.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "coca.json")
    model = open_clip.create_model("coca")
    # open_clip leaves this parameter as torch.empty returns it: whatever was in the memory
    torch.nn.init.normal_(model.text_decoder.text_projection, std=0.02)
    torch.save(model.state_dict(), folder / "coca.pt")


def make_parts(digits: Path, teacher: Path, folder: Path) -> Parts:
    """Digit scenes and a teacher; for the preparation a tar file of shapes and an untrained CoCa."""
    untrained_coca(folder)
    (folder / "cc").mkdir()
    rng = np.random.default_rng(0)
    with tarfile.open(folder / "cc" / "00000.tar", "w") as tar:
        for number in range(8):
            pixels, text = shape(rng)
            image = io.BytesIO()
            Image.fromarray(pixels).save(image, "PNG")
            for suffix, content in (("png", image.getvalue()), ("txt", text.encode())):
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (folder / "study.yaml").write_text(
        "name: small\nmetric: validation/mean_recall@1\nbaseline: plain\nsettings:\n"
        "  plain: {set: {loss.pair_matching: 0}}\n  pm: {set: {loss.pair_matching: 1}}\n"
    )
    return Parts(digits, teacher, folder)


def kinds_of(out: Path) -> list[str]:
    """The kinds of the runs in an output folder's MLflow store; all must be finished."""
    client = mlflow.MlflowClient(tracking_uri=default_tracking_uri(out))
    experiment = client.get_experiment_by_name("siclip")
    runs = client.search_runs([experiment.experiment_id])
    assert all(
        run.info.status == ("KILLED" if run.data.tags["siclip.state"] == "pruned" else "FINISHED") for run in runs
    )
    return sorted(run.data.tags["siclip.kind"] for run in runs)


def prepared(parts: Parts, output: str) -> None:
    dataset = open_dataset(parts.out("prepare_cc12m_syn"))
    assert dataset.rows("train") == 8
    for kind in ("captions", "embeddings"):
        assert open_sidecar(dataset, kind, "coca").manifest.splits
    assert "--set data.captions=[coca] --set data.teacher_embeddings=coca" in output


def trained(parts: Parts, output: str) -> None:
    out = parts.out("train_siclip")
    assert kinds_of(out) == ["train"]
    metrics = evaluate_checkpoint(out / "train" / "train.pt", parts.digits, "test")
    assert all(f"{name}: {value:.4f}" in output for name, value in metrics.items())


def tuned(parts: Parts, output: str) -> None:
    out = parts.out("tune_wikd")
    assert kinds_of(out) == ["best", "control", "study", "trial", "trial"]
    assert (out / "report.html").is_file()


def ablated(parts: Parts, output: str) -> None:
    out = parts.out("ablate_siclip")
    assert kinds_of(out) == ["study", "trial", "trial"]
    assert (out / "report.html").is_file() and str(out / "report.html") in output


def evaluated(parts: Parts, output: str) -> None:
    printed = json.loads(output[output.index("{") : output.rindex("}") + 1])
    assert printed == pytest.approx(evaluate_checkpoint(parts.teacher, parts.digits, "test"), rel=1e-6)


CHECKS: dict[str, Callable[[Parts, str], None]] = {
    "prepare_cc12m_syn": prepared,
    "train_siclip": trained,
    "tune_wikd": tuned,
    "ablate_siclip": ablated,
    "evaluate_siclip": evaluated,
}
