"""Search spaces: what a valid file suggests and where it is found; `test_problems` tests invalid ones."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from siclip.errors import UserError
from siclip_platform.metrics import METRICS
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.spaces import load as space_module
from siclip_platform.spaces import load_space
from siclip_platform.spaces.definition import SearchSpace
from siclip_platform.spaces.parsing import parse_space
from siclip_platform.studies.options import check_sharing

SPACES = sorted((Path(__file__).parents[3] / "search_spaces").glob("*.yaml"))
HEAD = "name: t\nmetric: validation/mean_recall@1\nparameters:\n"  # parameters start in line 5
RATE = "  training.learning_rate: {distribution: log_uniform, low: 1e-4, high: 1e-2}\n"


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"path": "data"},
            "model": {"name": "siclip-s0"},
            "training": {"steps": 1000},
            "loss": {"pair_matching": 0.3},
        }
    )


def parse(parameters: str, head: str = HEAD, **options: Any) -> SearchSpace:
    options = {"metrics": METRICS, "check_value": None} | options
    return parse_space(head + parameters, "space.yaml", **options)


def draw(space: SearchSpace, seed: int, trials: int = 1) -> list[dict[str, Any]]:
    sampler = optuna.samplers.RandomSampler(seed=seed)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    return [space.suggest(study.ask()) for _ in range(trials)]


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_space_of_the_project_loads(path: Path, recipe: Recipe) -> None:
    if path.stem.endswith("_siclip2"):
        recipe = recipe.updated({"model.name": "siclip2-s0"})
    space = load_space(str(path), check_value=check_sharing(recipe.model.name))
    assert space.name == path.stem
    assert path.read_text().startswith("# python jobs/"), "the file starts with a runnable command"
    for values in draw(space, seed=0, trials=200):
        recipe.updated(values)  # raises if a value does not fit


def test_wikd_searches_the_open_choices_of_the_method() -> None:
    space = load_space("wikd")
    assert set(space.paths) == {
        "loss.feature_distillation",
        "loss.contrastive_relational",
        "loss.interactive_contrastive",
        "loss.pair_matching",
        "loss.pair_head",
        "loss.negatives",
        "model.image_sharing",
        "model.text_sharing",
        "training.learning_rate",
    }
    values = {parameter.path: parameter.sample_values for parameter in space.parameters}
    assert values["loss.feature_distillation"] == (200.0, 20000.0)
    assert values["loss.negatives"] == ("sampled", "hardest", "semi_hard", "uniform", "teacher")
    assert space.size_hint == math.inf


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_conditional_parameters_appear_only_when_active(seed: int) -> None:
    (values,) = draw(load_space("wikd"), seed)
    active = values["loss.pair_matching"] > 0
    assert ("loss.pair_head" in values) == ("loss.negatives" in values) == active
    assert len(values) == (9 if active else 7)


def test_both_outcomes_of_a_condition_are_drawn() -> None:
    lengths = {len(values) for values in draw(load_space("wikd"), seed=1, trials=50)}
    assert lengths == {7, 9}


def test_distributions_draw_from_their_ranges() -> None:
    space = parse(
        """\
  training.weight_decay: {distribution: uniform, low: 0, high: 1}
  training.learning_rate: {distribution: log_uniform, low: 1e-4, high: 1}
  training.batch_size: {distribution: int_uniform, low: 2, high: 4}
  model.inherit: {distribution: choice, values: [true, false]}
"""
    )
    drawn = draw(space, seed=0, trials=2000)
    columns = {path: [values[path] for values in drawn] for path in space.paths}
    assert sum(columns["training.weight_decay"]) / 2000 == pytest.approx(0.5, abs=0.03)
    logs = [math.log10(value) for value in columns["training.learning_rate"]]
    assert sum(logs) / 2000 == pytest.approx(-2, abs=0.1)
    assert set(columns["training.batch_size"]) == {2, 3, 4}
    assert all(isinstance(value, int) for value in columns["training.batch_size"])
    assert set(map(repr, columns["model.inherit"])) == {"True", "False"}


@pytest.mark.parametrize(
    ("when", "active_for"),
    [
        ('">0"', {0.1, 1.0}),
        ('">= 0.1"', {0.1, 1.0}),
        ('"<1"', {0.0, 0.1}),
        ('"<=1e-1"', {0.0, 0.1}),
        ("1", {1.0}),
        ("[0, 1]", {0.0, 1.0}),
    ],
)
def test_conditions(when: str, active_for: set[float]) -> None:
    space = parse(
        "  loss.pair_matching: {distribution: choice, values: [0, 0.1, 1]}\n"
        f"  loss.pair_head: {{distribution: choice, values: [mlp], when: {{loss.pair_matching: {when}}}}}\n"
    )
    drawn = draw(space, seed=0, trials=60)
    assert {v["loss.pair_matching"] for v in drawn if "loss.pair_head" in v} == active_for
    assert {v["loss.pair_matching"] for v in drawn} == {0.0, 0.1, 1.0}


def test_steps_and_whole_logarithms() -> None:
    space = parse(
        """\
  training.weight_decay: {distribution: uniform, low: 0, high: 0.3, step: 0.1}
  training.warmup_steps: {distribution: int_uniform, low: 2, high: 8, step: 3}
  data.limit: {distribution: log_int_uniform, low: 1, high: 10000}
"""
    )
    drawn = draw(space, seed=0, trials=1000)
    columns = {path: [values[path] for values in drawn] for path in space.paths}
    assert {round(value, 9) for value in columns["training.weight_decay"]} == {0, 0.1, 0.2, 0.3}
    assert set(columns["training.warmup_steps"]) == {2, 5, 8}
    assert all(isinstance(value, int) for value in columns["data.limit"])
    assert sum(value < 100 for value in columns["data.limit"]) / 1000 == pytest.approx(0.5, abs=0.05)
    assert space.size_hint == 4 * 3 * 10_000
    for values in drawn[:50]:
        assert space.restrict(values) == values
    assert space.restrict({"training.weight_decay": 0.15, "training.warmup_steps": 3, "data.limit": 1.5}) == {}


def test_a_condition_on_an_inactive_parameter_does_not_hold() -> None:
    space = parse(
        "  loss.pair_matching: {distribution: choice, values: [0, 1]}\n"
        "  loss.pair_head: {distribution: choice, values: [mlp], when: {loss.pair_matching: 1}}\n"
        "  loss.negatives: {distribution: choice, values: [hardest], when: {loss.pair_head: mlp}}\n"
    )
    assert {tuple(values) for values in draw(space, seed=0, trials=20)} == {space.paths[:1], space.paths}
    assert space.size_hint == 2


def test_restrict_keeps_what_the_space_could_suggest(recipe: Recipe) -> None:
    space = load_space("wikd")
    point = space.restrict(recipe.flat())
    assert point == {
        "loss.feature_distillation": 2000.0,
        "loss.contrastive_relational": 1.0,
        "loss.interactive_contrastive": 1.0,
        "loss.pair_matching": 0.3,
        "loss.pair_head": "product",
        "loss.negatives": "sampled",
        "training.learning_rate": 1e-3,
    }
    assert "loss.pair_head" not in space.restrict(recipe.updated({"loss.pair_matching": 0.0}).flat())
    assert "loss.pair_matching" not in space.restrict({"loss.pair_matching": 0.2})
    assert space.restrict({"training.learning_rate": True, "loss.pair_matching": False}) == {}


def test_the_hash_depends_on_the_content_not_on_the_layout() -> None:
    base = parse(RATE)
    assert parse("  # why\n" + RATE.replace("1e-4", "0.0001")).hash == base.hash
    assert parse(RATE.replace("1e-4", "2e-4")).hash != base.hash
    assert parse(RATE, HEAD.replace("mean_recall@1", "image_retrieval_recall@1")).hash != base.hash
    assert load_space("wikd").hash == "42bc632aecf3", "stored studies have this hash"


def test_the_order_in_which_a_name_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path, then ./search_spaces, then the checkout, then the packaged copy."""

    def write(folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "own.yaml").write_text(HEAD.replace("name: t", f"name: {name}") + RATE)

    here, checkout, package = tmp_path / "here", tmp_path / "checkout", tmp_path / "package"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(space_module, "CHECKOUT", checkout)
    monkeypatch.setattr(space_module, "files", lambda _: package)
    write(package / "_search_spaces", "packaged")
    assert load_space("own").name == "packaged"
    write(checkout / "search_spaces", "checkout")
    assert load_space("own").name == "packaged", "a folder without pyproject.toml is not a checkout"
    (checkout / "pyproject.toml").touch()
    assert load_space("own").name == "checkout"
    write(here / "search_spaces", "working")
    assert load_space("own").name == "working"
    write(here, "literal")
    assert load_space("own.yaml").name == load_space("own").name == "literal"
    shutil.rmtree(here / "search_spaces")
    with pytest.raises(UserError) as caught:
        load_space("onw")
    message = str(caught.value)
    assert "one of: own" in message
    for folder in ("search_spaces", checkout / "search_spaces", package / "_search_spaces"):
        assert f"{folder}/onw.yaml" in message


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        load_space(str(path))


def test_numbers_are_read_as_yaml_1_2_does() -> None:
    """PyYAML alone reads 1e-4 as text, a trap for every learning rate."""
    assert yaml.safe_load("1e-4") == "1e-4"
    assert parse(RATE).parameters[0].sample_values == (1e-4, 1e-2)
