"""The jobs take the same flags for a recipe; what they do under Ray is in test_ray_job.py."""

from __future__ import annotations

import json
import runpy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from siclip.errors import UserError
from siclip_platform.cli import app
from siclip_platform.datasets.derived.preparation import Preparation
from siclip_platform.evaluation import evaluate_checkpoint
from siclip_platform.recipes.presets import digits_student
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.studies.experiment import Experiment, Finished

JOBS = sorted((Path(__file__).resolve().parents[3] / "jobs").glob("*.py"))
FLAGS = {"--recipe", "--preset", "--data", "--teacher", "--set", "--tracking-uri", "--address"}
WITHOUT = {"prepare_cc12m_syn": {"--tracking-uri"}, "evaluate_siclip": {"--address"}}  # no runs; one process


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_job_takes_the_same_flags(path: Path) -> None:
    command = typer.main.get_command(runpy.run_path(str(path))["app"])
    taken = {flag for parameter in command.params for flag in parameter.opts}
    assert taken >= FLAGS - WITHOUT.get(path.stem, set())


def job(name: str) -> typer.Typer:
    (path,) = (path for path in JOBS if path.stem == name)
    app: typer.Typer = runpy.run_path(str(path))["app"]
    return app


@pytest.mark.parametrize(
    "words",
    [
        ["--recipe", "r.yaml"], ["--preset", "p"], ["--data", "d"], ["--teacher", "t"], ["--set", "training.seed=1"],
        ["--register", "m"],
    ],
)  # fmt: skip
def test_a_training_that_goes_on_is_not_described_anew(words: list[str], tmp_path: Path) -> None:
    for command, first in ((job("train_siclip"), []), (app, ["tune"])):
        result = CliRunner().invoke(command, [*first, "--resume", "train", "--out", str(tmp_path), *words])
        assert isinstance(result.exception, UserError)
        assert str(result.exception).endswith(f"leave out {words[0]}")


def test_a_training_goes_on_with_as_many_workers(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_database: bytes
) -> None:
    (tmp_path / "mlflow.db").write_bytes(mlflow_database)
    trained: list[tuple[int, Recipe]] = []

    def train(experiment: Experiment, recipes: dict[str, Recipe]) -> dict[str, Finished]:
        trained.append((experiment.options.workers, recipes["train"]))
        return {"train": Finished(experiment.folder / "train.pt", {"test/mean_recall@1": 0.25})}

    monkeypatch.setattr("siclip_platform.studies.session.ray_cluster", lambda *given: nullcontext())
    monkeypatch.setattr(Experiment, "train", train)
    begin: list[Any] = ["--preset", "digits-teacher", "--data", digits, "--set", "training.steps=20", "--workers", 2]
    for words in (begin, ["--resume", "train"], ["--resume", "train", "--workers", 3]):
        result = CliRunner().invoke(job("train_siclip"), [*map(str, words), "--out", str(tmp_path)])
        assert result.exit_code == 0, result.output
        assert "test/mean_recall@1: 0.2500" in result.output
    assert [workers for workers, _ in trained] == [2, 2, 3]
    assert trained[0][1].training.steps == 20 and trained[0][1] == trained[1][1] == trained[2][1]


@pytest.fixture
def student() -> Recipe:
    return digits_student(Path("/data/cc"), Path("/teacher.pt"))


def test_a_preparation_makes_what_the_recipe_reads(student: Recipe) -> None:
    made = Preparation.of(student, None, None)
    assert made == Preparation(Path("/data/cc"), "coca", None, ("coca",), "/teacher.pt")
    reads = student.updated({"data.captions": ["blip", "coca"], "data.teacher_embeddings": "s0"})
    made = Preparation.of(reads, None, None)
    assert made == Preparation(Path("/data/cc"), "blip", "s0", ("blip", "coca"), "/teacher.pt")
    assert made.to_train == "--data /data/cc --set data.captions=[blip,coca] --set data.teacher_embeddings=s0"
    made = Preparation.of(None, "/data/new", "open_clip:a:b")
    assert made == Preparation(Path("/data/new"), "coca", "coca", ("coca",), "open_clip:a:b")


def test_a_preparation_that_cannot_be_made_is_refused(student: Recipe) -> None:
    with pytest.raises(UserError, match="name the dataset's folder with --data"):
        Preparation.of(None, None, None)
    with pytest.raises(UserError, match="a dataset is made in a folder of this machine"):
        Preparation.of(None, "s3://bucket/data", None)
    reads = student.updated({"data.teacher_embeddings": "s0", "teacher": None})
    with pytest.raises(UserError, match="reads the embeddings 's0' and has no teacher"):
        Preparation.of(reads, None, None)


def test_an_evaluation_by_recipe_is_of_its_dataset(nano_teacher: Path, digits: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(digits_student(digits).model_dump(mode="json")))
    result = CliRunner().invoke(app, ["evaluate", str(nano_teacher), "--recipe", str(file), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == pytest.approx(evaluate_checkpoint(nano_teacher, digits, "test"))


def test_changes_of_no_recipe_are_refused(nano_teacher: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", str(nano_teacher), "--set", "training.seed=1", "--data", "x"])
    assert isinstance(result.exception, UserError) and "--set changes a recipe" in str(result.exception)
