"""The recipes that ship: each is valid and says what it is for; those of nano size train."""

from __future__ import annotations

import zipfile
from math import isfinite
from pathlib import Path

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder
from typer.testing import CliRunner

from siclip.checkpoints.formats import save_checkpoint
from siclip.config import LossConfig, TrainingConfig
from siclip.errors import UserError
from siclip.models import create_model
from siclip.models.registry import base_of
from siclip_platform.cli import app
from siclip_platform.recipes.copies import summary
from siclip_platform.recipes.digits import digits_student, digits_teacher, of_length
from siclip_platform.recipes.here import not_here
from siclip_platform.recipes.load import load_recipe, shipped_recipes
from siclip_platform.recipes.recipe import DataConfig, EvaluationConfig, Recipe, StudentConfig
from siclip_platform.training.build import prepare

ROOT = Path(__file__).resolve().parents[3]
NANO = ("digits-student", "digits-teacher", "mobileclip-nano", "siclip-nano")
S0 = sorted(set(shipped_recipes()) - {*NANO})


def test_the_recipes_that_the_pages_name_are_shipped() -> None:
    paper = ("siclip-s0-contrastive", "siclip-s0-wikd", "siclip-s0-wikd-pm")
    cards = ("siclip-s0-cc12m-syn", "siclip-s0-cc12m-syn-8gb", "siclip-s0-cc12m-syn-12gb", "siclip2-s0-cc12m-syn")
    assert list(shipped_recipes()) == sorted([*NANO, *paper, *cards], key=lambda name: f"{name}.yaml")


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_passes_the_check(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["recipe", "check", name])
    assert result.exit_code == 0, result.exception
    assert f"{name} is valid: {load_recipe(name).model.name}, " in result.output
    assert 20 < len(summary(shipped_recipes()[name])) < 118


def test_the_papers_recipe_has_the_papers_values() -> None:
    """arXiv 2411.14789: batch 1536, weight decay 0.1, 32 epochs, AMP; WIKD's three losses and pair matching."""
    recipe = load_recipe("siclip-s0-cc12m-syn")
    training, loss = recipe.training, recipe.loss
    assert (training.batch_size, training.weight_decay, training.epochs, training.precision) == (
        1536,
        0.1,
        32,
        "bf16",
    )
    assert min(loss.feature_distillation, loss.contrastive_relational, loss.interactive_contrastive) > 0
    assert loss.pair_matching > 0 and recipe.model.inherit and recipe.data.captions == ("coca",)
    same = {"siclip-s0-wikd-pm": set(), "siclip-s0-wikd": {"loss.pair_matching"}}
    caching = {"training.micro_batch_size", "training.batch_norm"}
    same |= {f"siclip-s0-cc12m-syn-{gigabytes}gb": caching for gigabytes in (8, 12)}
    for name, changed in same.items():
        other = load_recipe(name).flat()
        assert {path for path, value in recipe.flat().items() if other[path] != value} == changed, name
    contrastive = load_recipe("siclip-s0-contrastive")
    assert (
        not contrastive.loss.needs_teacher and not contrastive.model.inherit and contrastive.loss.pair_matching == 0
    )


def test_the_digit_recipes_have_the_values_of_the_demo() -> None:
    """Written out here a second time: the demo's figures and those in docs/results depend on each of them."""
    data = DataConfig(path="d", window_row_groups=4, concurrent_reads=1)
    common = {"batch_size": 128, "precision": "fp32", "seed": 5}
    teacher = Recipe(
        data=data,
        model=StudentConfig(name="mobileclip-nano", inherit=False),
        loss=LossConfig(feature_distillation=0, contrastive_relational=0, interactive_contrastive=0),
        training=TrainingConfig(
            steps=200, warmup_steps=16, log_every=8, evaluate_every=33, learning_rate=3.5e-3, threads=2, **common
        ),
        evaluation=EvaluationConfig(validation_samples=300),
    )
    student = Recipe(
        data=data,
        model=StudentConfig(name="siclip-nano", image_sharing="qk:0-0", text_sharing="qk:0-0-1-1"),
        teacher="t.pt",
        training=TrainingConfig(
            steps=48, warmup_steps=4, log_every=2, evaluate_every=8, learning_rate=4e-3, threads=1, **common
        ),
        evaluation=EvaluationConfig(validation_samples=300),
    )
    assert digits_teacher(Path("d"), seed=5) == teacher
    assert digits_student(Path("d"), Path("t.pt"), seed=5) == student
    # --steps keeps the shares; at a recipe's own length it is the recipe
    assert teacher.updated(of_length(200)) == teacher and student.updated(of_length(48)) == student
    short = digits_student(Path("d"), steps=24).training
    assert (short.warmup_steps, short.log_every, short.evaluate_every) == (2, 1, 4)


CARDS = dict.fromkeys(S0, "rtx-3090") | {
    "siclip-s0-cc12m-syn-12gb": "rtx-4070",
    "siclip-s0-cc12m-syn-8gb": "rtx-3070",
}


@pytest.mark.parametrize(("name", "card"), CARDS.items())
def test_a_recipe_of_full_size_fits_its_card(name: str, card: str) -> None:
    assert CliRunner().invoke(app, ["plan", "--recipe", name, "--card", card]).exit_code == 0
    # the recipes for smaller cards are needed
    whole = name.removesuffix("-8gb").removesuffix("-12gb")
    if whole != name:
        assert CliRunner().invoke(app, ["plan", "--recipe", whole, "--card", card]).exit_code == 1


def losses(recipe: Recipe, steps: int) -> list[float]:
    """The losses of the first steps of a recipe, on batches of its own stream."""
    prepared = prepare(recipe)
    batches = prepared.batches(0, steps * recipe.training.batch_size)
    return [float(prepared.trainer.train_step(batch)["loss"]) for batch in batches]


@pytest.mark.slow
@pytest.mark.parametrize("name", NANO)
def test_a_nano_recipe_trains(name: str, digits: Path, nano_teacher: Path) -> None:
    recipe = load_recipe(name).updated({"data.path": str(digits), "training.batch_size": 16})
    if recipe.model.inherit:
        recipe = recipe.updated({"teacher": str(nano_teacher)})
    first, second = losses(recipe, steps=2)
    assert isfinite(first) and isfinite(second) and first != second


@pytest.mark.long
@pytest.mark.parametrize("name", S0)
def test_a_recipe_of_full_size_trains(name: str, digits: Path, tmp_path: Path) -> None:
    """In fp32, as the CPU computes it, from digit scenes scaled up, which have no synthetic captions."""
    recipe = load_recipe(name)
    small = {"training.batch_size": 4, "training.precision": "fp32", "training.steps": 2, "data.captions": []}
    if recipe.training.micro_batch_size:
        small["training.micro_batch_size"] = 2
    if recipe.model.inherit:
        teacher = tmp_path / "teacher.pt"
        save_checkpoint(teacher, create_model(base_of(recipe.model.name)))
        small["teacher"] = str(teacher)
    (loss,) = losses(recipe.updated({"data.path": str(digits), **small}), steps=1)
    assert isfinite(loss)


def test_what_is_not_on_this_machine_is_said(tmp_path: Path, digits: Path, nano_teacher: Path) -> None:
    recipe = load_recipe("digits-student").updated({"data.path": str(tmp_path / "none")})
    assert [text.split(":")[0] for text in not_here(recipe)] == [
        f"the dataset {tmp_path / 'none'}",
        "the teacher that the recipe needs",
    ]
    assert not_here(recipe.updated({"data.path": str(digits), "teacher": str(nano_teacher)})) == []
    elsewhere = load_recipe("siclip2-s0-cc12m-syn").updated({"data.path": "s3://bucket/data"})
    assert elsewhere.teacher == "open_clip:MobileCLIP2-S0:dfndr2b" and not_here(elsewhere) == []


def run(*words: object) -> str:
    result = CliRunner().invoke(app, ["recipe", *map(str, words)])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.exception
    return result.output


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_copy_is_the_recipe_with_its_comments_and_the_users_paths(name: str, tmp_path: Path) -> None:
    file, original = tmp_path / "my.yaml", shipped_recipes()[name].read_text()
    recipe = load_recipe(name)
    odd = "a 'b': #c/data"  # what a path may contain and YAML would read otherwise
    needs = recipe.model.inherit
    output = run("init", name, file, "--data", odd, *(["--teacher", "my: t.pt"] if needs else []))
    following = f"rehearse {file} SHARDS" if name in NANO else f"plan --pipeline --recipe {file}"
    assert output.splitlines()[-1] == f"next: siclip-platform {following}"
    changed = {"data.path": odd} | ({"teacher": "my: t.pt"} if needs else {})
    assert load_recipe(file) == recipe.updated(changed)
    lines = list(zip(file.read_text().splitlines(), original.splitlines(), strict=True))
    assert sum(one != other for one, other in lines) == len(changed)
    assert run("show", name) == original
    assert yaml.safe_load(run("show", name, "--resolved")) == recipe.model_dump(mode="json")


def test_the_next_command_is_one_that_works(tmp_path: Path, digits: Path, nano_teacher: Path) -> None:
    """Of a recipe that names steps: what makes its dataset, if that is missing, else the training."""
    teacher = ("--teacher", str(nano_teacher))
    following = {
        ("here.yaml", "--data", str(digits), *teacher): f"train --recipe {tmp_path}/here.yaml",
        ("not.yaml", "--data", str(tmp_path / "none"), *teacher): f"rehearse {tmp_path}/not.yaml SHARDS",
        ("digits.yaml", *teacher): "data build data/digits",
    }
    for (file, *options), command in following.items():
        output = run("init", "siclip-nano", tmp_path / file, *options)
        assert output.splitlines()[-1] == f"next: siclip-platform {command}"
        assert "the teacher that" not in output
    data = tmp_path / "my data"
    output = run("init", "siclip-nano", tmp_path / "no-teacher.yaml", "--data", data)
    assert f"(siclip-platform recipe init mobileclip-nano teacher.yaml --data '{data}')" in output


def test_a_copy_overwrites_nothing_and_names_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("mine\n")
    refused = {
        ("siclip-nano", file): "my.yaml exists and is not overwritten",
        ("siclip-nan", tmp_path / "a.yaml"): "no shipped recipe 'siclip-nan'; did you mean 'siclip-nano'",
        ("siclip-nano", tmp_path / "siclip-nano"): "end its name in .yaml",
        ("siclip-nano", tmp_path / "no" / "a.yaml"): "folder .*no does not exist",
        ("mobileclip-nano", tmp_path / "a.yaml", "--teacher", "t.pt"): "a teacher has no effect: omit it",
    }
    for words, message in refused.items():
        with pytest.raises(UserError, match=message):
            run("init", *words)
    assert file.read_text() == "mine\n" and [*tmp_path.iterdir()] == [file]


def test_the_list_names_every_recipe_with_its_first_line() -> None:
    lines = dict(line.split("  ", 1) for line in run("list").splitlines() if "  " in line)
    assert {name: text.strip() for name, text in lines.items()} == {
        name: path.read_text().splitlines()[0].removeprefix("# ") for name, path in shipped_recipes().items()
    }


@pytest.mark.slow
def test_the_wheel_has_the_recipes(tmp_path: Path) -> None:
    wheel = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    with zipfile.ZipFile(wheel) as archive:
        packed = {Path(name).name: archive.read(name) for name in archive.namelist() if "/_recipes/" in name}
    assert packed == {path.name: path.read_bytes() for path in shipped_recipes().values()}
