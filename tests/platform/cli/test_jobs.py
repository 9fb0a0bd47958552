"""The jobs take the same flags for a recipe; test_ray_job.py runs them on a cluster."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from siclip.errors import UserError
from siclip_platform.cli import app
from siclip_platform.datasets.derived.preparation import Preparation
from siclip_platform.evaluation import evaluate_checkpoint
from siclip_platform.recipes.digits import digits_student
from siclip_platform.recipes.recipe import Recipe

JOBS = sorted((Path(__file__).resolve().parents[3] / "jobs").glob("*.py"))
FLAGS = {"--recipe", "--data", "--teacher", "--set", "--tracking-uri", "--address"}
WITHOUT = {"prepare_cc12m_syn": {"--tracking-uri"}, "evaluate_siclip": {"--address"}}  # no runs; one process


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_job_takes_the_same_flags(path: Path) -> None:
    command = typer.main.get_command(runpy.run_path(str(path))["app"])
    taken = {flag for parameter in command.params for flag in parameter.opts}
    assert taken >= FLAGS - WITHOUT.get(path.stem, set())


def test_a_preparation_imports_with_the_options_of_data_import() -> None:
    group = typer.main.get_command(app)
    importing = group.commands["data"].commands["import"]  # type: ignore[attr-defined]
    job = typer.main.get_command(runpy.run_path(str(JOBS[0].parent / "prepare_cc12m_syn.py"))["app"])
    own = {"dest", "sources", "name"}
    options = {p.name: (p.opts, p.default, p.help) for p in importing.params if p.name not in own}  # type: ignore[attr-defined]
    shared = {p.name: (p.opts, p.default, p.help) for p in job.params if p.name in options}  # type: ignore[attr-defined]
    assert len(options) > 25 and shared.keys() == options.keys()
    for name in options.keys() - {"address", "verbose"}:
        assert shared[name] == options[name]


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
    with pytest.raises(UserError, match="a dataset is built in a local folder"):
        Preparation.of(None, "s3://bucket/data", None)
    reads = student.updated({"data.teacher_embeddings": "s0", "teacher": None})
    with pytest.raises(UserError, match="reads the embeddings 's0' and has no teacher"):
        Preparation.of(reads, None, None)


def test_an_evaluation_with_a_recipe_uses_its_dataset(nano_teacher: Path, digits: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(digits_student(digits).model_dump(mode="json")))
    result = CliRunner().invoke(app, ["evaluate", str(nano_teacher), "--recipe", str(file), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == pytest.approx(evaluate_checkpoint(nano_teacher, digits, "test"))


def test_set_without_a_recipe_is_refused(nano_teacher: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", str(nano_teacher), "--set", "training.seed=1", "--data", "x"])
    assert isinstance(result.exception, UserError) and "--set changes a recipe" in str(result.exception)
