"""A whole rehearsal: every stage by the product's own commands, the kill and the resumption included."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from job_parts import untrained_coca
from rehearsal_parts import nano_recipe, write_shards
from typer.testing import CliRunner

from siclip_platform.cli import app
from siclip_platform.datasets.manifest import open_dataset
from siclip_platform.datasets.sidecar import open_sidecar
from siclip_platform.recipes.yaml_file import dump_yaml

pytestmark = [pytest.mark.long, pytest.mark.chaos]


def test_shards_go_through_every_stage(tmp_path: Path, nano_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a machine that is busy with other tests, Ray's processes may start slowly.
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "180")
    source = write_shards(tmp_path / "cc", 3, 60)
    sets = {"data__captions": ["coca"], "data__teacher_embeddings": "nano", "training__epochs": 64.0}
    recipe = tmp_path / "nano.yaml"
    recipe.write_text(dump_yaml(nano_recipe(tmp_path / "whole", nano_teacher, **sets).model_dump(mode="json")))
    untrained_coca(tmp_path)
    out = tmp_path / "scratch"
    captions = ["--captioner", f"{tmp_path}/coca.json", "--pretrained", f"{tmp_path}/coca.pt", "--per-image", "1"]
    words = [str(recipe), str(source), "--rows", "45", "--augmentations", "2", "--keep", "--out", str(out)]
    done = CliRunner().invoke(app, ["rehearse", *words, *captions])
    text = " ".join(done.output.split())
    assert done.exit_code == 0, done.output
    dataset = open_dataset(out / "data")
    assert sum(map(dataset.rows, dataset.split_names)) == 45
    assert open_sidecar(dataset, "captions", "coca").manifest.splits.keys() == {"train", "validation"}
    assert open_sidecar(dataset, "embeddings", "nano").manifest.splits.keys() == {"train", "validation"}
    killed = re.search(r"killed after the checkpoint of step (\d+)", text)
    assert killed and 2 <= int(killed[1]) < 12
    assert f"went on at step {int(killed[1]) + 1}" in text
    assert (out / "train" / "train" / "train.pt").is_file() and (out / "train" / "report.html").is_file()
    assert (out / "onnx" / "image.onnx").is_file()
    assert re.search(r"The whole job, 180 pairs, takes about .* and [\d.]+ [kM]B of disk beside its source", text)
    whole = tmp_path / "whole"
    assert f"siclip-platform data import {source} {whole} --validation-share 0.01" in text
    assert f"siclip-platform train --recipe {recipe}" in text
    job = json.loads((out / "rehearsal.json").read_text())
    assert job["whole_rows"] == 180 and job["recipe"]["training"]["steps"] == 45  # 64 × 180 / 256
