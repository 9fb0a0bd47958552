"""Results of finished sets are reused, and measured again when anything that they depend on changes."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from siclip.checkpoints.formats import load_model, save_checkpoint
from siclip.evaluation.bootstrap import Interval
from siclip.evaluation.classification import ClassEmbeddings
from siclip.losses.pair_matching import PairMatchingHead
from siclip_platform.cli import app
from siclip_platform.evaluation import runner
from siclip_platform.evaluation.find import Found
from siclip_platform.evaluation.kept import KeptResults
from siclip_platform.evaluation.measure import Subject
from siclip_platform.evaluation.measure import measure as real_measure
from siclip_platform.evaluation.models import open_model
from siclip_platform.evaluation.results import Sampling, SetResult

NAMES = ("first", "second", "third")
CPU = torch.device("cpu")


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in NAMES:
        for label in ("cat", "dog"):
            folder = tmp_path / "sets" / name / label
            folder.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / "image.png")
    return tmp_path / "sets"


class Stopped(BaseException):
    """As Ctrl-C: an error would only fail one set."""


def test_a_stopped_suite_resumes(
    nano_teacher: Path,
    sets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured: list[str] = []

    def measure(subject: Subject, data: Any, known: Any) -> Any:
        if data.where == NAMES[1] and not measured.count("stopped"):
            measured.append("stopped")
            raise Stopped
        measured.append(data.where)
        return real_measure(subject, data, known)

    def evaluate(*more: str) -> dict[str, Any]:
        arguments = [str(nano_teacher), "--data", str(sets), "--suite", ",".join(NAMES), "--json", *more]
        app(["evaluate", *arguments], standalone_mode=False)
        tree: dict[str, Any] = json.loads(capsys.readouterr().out)
        return tree

    monkeypatch.setattr(runner, "measure", measure)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Stopped):
        evaluate()
    assert measured == [NAMES[0], "stopped"]
    capsys.readouterr()

    resumed = evaluate()
    assert measured == [NAMES[0], "stopped", NAMES[1], NAMES[2]]
    assert [each["kept"] for each in resumed["sets"].values()] == [True, False, False]
    fresh = evaluate("--fresh")
    assert measured[4:] == list(NAMES)
    assert not any(each["kept"] for each in fresh["sets"].values())
    for name in NAMES:
        assert fresh["sets"][name]["metrics"] == resumed["sets"][name]["metrics"]
    assert len(list((tmp_path / "runs/evaluate").glob("*.json"))) == len(NAMES)


def test_a_result_is_found_by_everything_it_depends_on(nano_teacher: Path, sets: Path, tmp_path: Path) -> None:
    found = Found("first", sets / "first", None)
    subject = _subject(nano_teacher)
    kept = KeptResults(tmp_path / "kept", [subject], "test", Sampling())
    metrics = {"m": {"acc1": Interval(0.5, float("nan"), 1.0)}}
    result = SetResult("first", "First", "measured", units=2, metrics=metrics, unreadable=("a ü.png",))
    kept.keep(found, result)
    read = kept.find(found)
    assert read is not None
    assert read.kept
    assert repr(replace(read, kept=False)) == repr(result)  # a repr, since NaN is not equal to NaN

    other = load_model(nano_teacher)
    other.logit_scale.data.add_(1)
    save_checkpoint(tmp_path / "other.pt", other)
    torch.manual_seed(0)
    judged = Subject(subject.encoder, subject.classes, PairMatchingHead("product", 64))
    for subjects, split, sampling in (
        ([_subject(tmp_path / "other.pt", str(nano_teacher))], "test", Sampling()),
        ([judged], "test", Sampling()),
        ([subject, _subject(tmp_path / "other.pt")], "test", Sampling()),
        ([subject], "validation", Sampling()),
        ([subject], "test", Sampling(seed=1)),
    ):
        assert KeptResults(tmp_path / "kept", subjects, split, sampling).find(found) is None
    assert kept.find(replace(found, name="mine")) is None
    shutil.copytree(sets / "first", sets / "moved")
    os.utime(sets / "first" / "cat" / "image.png", (1, 1))
    assert kept.find(found) is None
    kept.keep(found, result)
    (sets / "first" / "classnames.txt").write_text("a\nb\n")
    assert kept.find(found) is None


def test_a_damaged_file_is_measured_again(nano_teacher: Path, sets: Path, tmp_path: Path) -> None:
    kept = KeptResults(tmp_path / "kept", [_subject(nano_teacher)], "test", Sampling())
    found = Found("first", sets / "first", None)
    kept.keep(found, SetResult("first", "First", "measured"))
    [path] = (tmp_path / "kept").glob("first-*.json")
    for text in ("", "{", "[]", '{"name": "first"}'):
        path.write_text(text)
        assert kept.find(found) is None


def _subject(checkpoint: Path, name: str = "") -> Subject:
    encoder = open_model(str(checkpoint), CPU)
    encoder.name = name or encoder.name
    return Subject(encoder, ClassEmbeddings(encoder))
