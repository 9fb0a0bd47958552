"""Search spaces: what a good file suggests, and that each mistake in a bad one is told with its line."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from textwrap import dedent
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from siclip.models.sharing import parse_pattern
from siclip_platform.errors import UserError
from siclip_platform.metrics import METRICS
from siclip_platform.recipe import Recipe
from siclip_platform.search import load_space
from siclip_platform.search import space as space_module
from siclip_platform.search.definition import SearchSpace
from siclip_platform.search.parsing import parse_space

SPACES = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))
HEAD = "name: t\nmetric: validation/mean_recall@1\nmode: max\nparameters:\n"  # parameters start in line 5
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


def check_pattern(path: str, value: Any) -> str | None:
    blocks = {"model.image_sharing": 2, "model.text_sharing": 4}.get(path)
    try:
        parse_pattern(value, blocks) if blocks else None
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_space_of_the_project_loads(path: Path, recipe: Recipe) -> None:
    space = load_space(str(path), check_value=check_pattern)
    assert space.name == path.stem
    assert path.read_text().startswith("# python jobs/"), "a runnable command stands at the top"
    for values in draw(space, seed=0, trials=200):
        recipe.updated(values)  # raises if a value does not fit


def test_wikd_searches_what_the_method_leaves_open() -> None:
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
    assert space.sample_values("loss.feature_distillation") == (200.0, 20000.0)
    assert space.sample_values("loss.negatives") == ("sampled", "hardest", "semi_hard", "uniform", "teacher")
    assert space.size_hint == math.inf
    with pytest.raises(KeyError):
        space.sample_values("training.weight_decay")


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


def test_distributions_draw_what_they_say() -> None:
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


def test_a_condition_on_an_inactive_parameter_fails() -> None:
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


def test_hash_follows_the_content_not_the_layout() -> None:
    base = parse(RATE)
    assert parse("  # why\n" + RATE.replace("1e-4", "0.0001")).hash == base.hash
    assert parse(RATE.replace("1e-4", "2e-4")).hash != base.hash
    assert parse(RATE, HEAD.replace("mean_recall@1", "image_retrieval_recall@1")).hash != base.hash


BAD_PARAMETERS = {
    "unknown path": (
        "loss.feature_distilation: {distribution: uniform, low: 0, high: 1}",
        "'loss.feature_distillation'",
    ),
    "path without its group": (
        "pair_head: {distribution: choice, values: [mlp]}",
        "did you mean 'loss.pair_head'",
    ),
    "a group": ("loss: {distribution: choice, values: [1]}", "is a group"),
    "below a value": ("data.path.x: {distribution: choice, values: [a]}", "has no parts"),
    "the budget": ("training.steps: {distribution: int_uniform, low: 1, high: 9}", "same budget"),
    "low above high": (
        "loss.contrastive: {distribution: uniform, low: 2, high: 1}",
        "low 2.0 of loss.contrastive is not below",
    ),
    "low equals high": ("loss.contrastive: {distribution: uniform, low: 1, high: 1}", "is not below high"),
    "log from 0": ("loss.contrastive: {distribution: log_uniform, low: 0, high: 1}", "not above 0"),
    "log below 0": ("loss.contrastive: {distribution: log_uniform, low: -1, high: 1}", "not above 0"),
    "field refuses low": (
        "loss.contrastive: {distribution: uniform, low: -1, high: 1}",
        "greater than or equal to 0",
    ),
    "field refuses an open end": (
        "training.weight_decay: {distribution: uniform, low: -0.1, high: 1}",
        "low -0.1",
    ),
    "field refuses high": ("data.synthetic_share: {distribution: uniform, low: 0, high: 1.5}", "high 1.5"),
    "infinite": ("loss.contrastive: {distribution: uniform, low: 0, high: .inf}", "finite"),
    "quoted number": ('loss.contrastive: {distribution: uniform, low: "0", high: 1}', "without quotes"),
    "range is a list": ("loss.contrastive: {distribution: uniform, low: [0], high: 1}", "write one value"),
    "not whole": ("training.batch_size: {distribution: int_uniform, low: 2.5, high: 8}", "not whole"),
    "float range of an integer field": (
        "training.batch_size: {distribution: uniform, low: 2, high: 8}",
        "integer",
    ),
    "range of text": ("loss.negatives: {distribution: uniform, low: 0, high: 1}", "'sampled'"),
    "empty choice": ("loss.pair_head: {distribution: choice, values: []}", "empty"),
    "choice is no list": ("loss.pair_head: {distribution: choice, values: mlp}", "not a list"),
    "duplicate value": ("loss.contrastive: {distribution: choice, values: [1, 0, 1.0]}", "stands twice"),
    "nested value": ("training.betas: {distribution: choice, values: [[0.9, 0.98]]}", "write one value"),
    "unknown strategy": ("loss.negatives: {distribution: choice, values: [sampled, semihard]}", "'semihard'"),
    "pattern is not text": ("model.text_sharing: {distribution: choice, values: [0]}", "valid string"),
    "truth value for a number": ("loss.contrastive: {distribution: choice, values: [true]}", "valid number"),
    "misspelt distribution": (
        "loss.contrastive: {distribution: loguniform, low: 1, high: 2}",
        "did you mean 'log_uniform'",
    ),
    "unlike any distribution": ("loss.contrastive: {distribution: zipf, low: 1, high: 2}", "choose one of"),
    "no distribution": ("loss.contrastive: {low: 1, high: 2}", "lacks distribution"),
    "misspelt key": ("loss.contrastive: {distribution: uniform, low: 1, hihg: 2}", "did you mean 'high'"),
    "key of a choice": (
        "loss.contrastive: {distribution: uniform, low: 1, high: 2, values: [1]}",
        "unknown key 'values'",
    ),
    "missing key": ("loss.contrastive: {distribution: uniform, low: 1}", "lacks high"),
    "not a mapping": ("loss.contrastive: 1", "not a mapping"),
    "duplicate parameter": (
        "training.learning_rate: {distribution: uniform, low: 1, high: 2}",
        "first in line 5",
    ),
    "duplicate key": (
        "loss.contrastive: {distribution: uniform, low: 0, low: 1, high: 2}",
        "'low' stands twice",
    ),
    "when outside the space": (
        "loss.pair_head: {distribution: choice, values: [mlp], when: {loss.pair_matching: 1}}",
        "does not search",
    ),
    "when itself": (
        "loss.pair_head: {distribution: choice, values: [mlp], when: {loss.pair_head: mlp}}",
        "itself",
    ),
    "when equals a continuum": (
        "loss.contrastive: {distribution: uniform, low: 0, high: 1, when: {training.learning_rate: 1e-3}}",
        "never hold",
    ),
    "when out of reach": (
        'loss.contrastive: {distribution: uniform, low: 0, high: 1, when: {training.learning_rate: ">1"}}',
        "never hold",
    ),
    "when is not a number": (
        'loss.contrastive: {distribution: uniform, low: 0, high: 1, when: {training.learning_rate: ">e"}}',
        "never hold",
    ),
    "python object": (
        "loss.pair_head: {distribution: choice, values: [!!python/name:os.system x]}",
        "cannot be read",
    ),
}


@pytest.mark.parametrize(("text", "words"), BAD_PARAMETERS.values(), ids=BAD_PARAMETERS.keys())
def test_a_bad_parameter_is_told_with_its_line(text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(f"{RATE}  {text}\n")
    lines = str(caught.value).splitlines()
    assert any(words in told for told in lines), lines
    assert all(told.startswith("space.yaml:6: ") and ";" in told for told in lines), lines  # ; the remedy


def test_the_line_is_that_of_the_value() -> None:
    with pytest.raises(UserError, match=r"^space.yaml:8: high -3.0 does not fit loss.contrastive: "):
        parse("  loss.contrastive:\n    distribution: uniform\n    low: 0\n    high: -3\n")


def test_a_condition_on_a_parameter_below_is_refused() -> None:
    with pytest.raises(UserError, match=r"^space.yaml:5: .*comes after it"):
        parse(
            "  loss.pair_head: {distribution: choice, values: [mlp], when: {loss.pair_matching: 1}}\n"
            "  loss.pair_matching: {distribution: choice, values: [0, 1]}\n"
        )


BAD_FILES = {
    "unknown metric": (HEAD.replace("mean_recall@1", "mean_recal@1") + RATE, 2, "did you mean"),
    "test metric": (HEAD.replace("validation", "test") + RATE, 2, "choose on the test split"),
    "mode": (HEAD.replace("max", "maximum") + RATE, 3, "write max or min"),
    "worst": (HEAD.replace("max", "min") + RATE, 3, "write max"),
    "not measured": (HEAD.replace("mean_recall@1", "loss") + RATE, 2, "unknown metric"),
    "name": (HEAD.replace("name: t", "name: a/b") + RATE, 1, "not plain"),
    "name is a number": (HEAD.replace("name: t", "name: 3") + RATE, 1, "not text"),
    "unknown key": (HEAD.replace("mode: max", "mode: max\nmetrics: x") + RATE, 4, "did you mean 'metric'"),
    "no metric": ("name: t\nmode: max\nparameters:\n" + RATE, 1, "lacks metric"),
    "twice": ("name: t\n" + HEAD + RATE, 2, "first in line 1"),
    "no parameters": (HEAD.replace("parameters:", "parameters: {}"), 4, "at least one"),
    "parameters are a list": (HEAD + "  - a\n", 5, "not a mapping"),
    "a list": ("- a\n- b\n", 1, "not a mapping"),
    "not YAML": (HEAD + "  a: [1, 2\nb: 1\n", 6, "not YAML"),
    "a tab": (HEAD + "\ta: 1\n", 5, "not YAML"),
    "two documents": (HEAD + RATE + "---\na: 1\n", 6, "not YAML"),
    "control character": (HEAD + "  a: \x01\n", 5, "not YAML"),
    "empty": ("# nothing\n", 1, "empty"),
}


@pytest.mark.parametrize(("text", "line", "words"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_told_with_its_line(text: str, line: int, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_space(str(path))
    (told,) = str(caught.value).splitlines()
    assert told.startswith(f"{path}:{line}: ") and words in told


def test_all_problems_of_a_file_are_told_in_its_order() -> None:
    text = dedent(
        """\
        name: t
        metric: validation/los
        mode: max
        parameters:
          loss.nothing: {distribution: uniform, low: 2, high: 1}
          loss.negatives:
            distribution: choice
            values:
              - sampled
              - wrong
              - 3
          loss.contrastive: {distribution: norml, low: 1, high: 2}
        extra: 1
        """
    )
    with pytest.raises(UserError) as caught:
        parse("", head=text)
    lines = [int(told.split(":")[1]) for told in str(caught.value).splitlines()]
    assert lines == [2, 5, 5, 10, 11, 12, 13]


def test_the_callers_hook_is_asked_about_accepted_values() -> None:
    asked: list[tuple[str, Any]] = []

    def hook(path: str, value: Any) -> str | None:
        asked.append((path, value))
        return check_pattern(path, value)

    text = RATE + "  model.image_sharing:\n    distribution: choice\n"
    text += '    values: [none, "qk:0-0",\n      "qk:1-1", 7]\n'
    with pytest.raises(UserError) as caught:
        parse(text, check_value=hook)
    first, second = str(caught.value).splitlines()
    assert first.startswith("space.yaml:9: ") and "'qk:1-1' does not fit model.image_sharing" in first
    assert second.startswith("space.yaml:9: ") and "valid string" in second
    sharing = "model.image_sharing"
    rate = "training.learning_rate"
    assert asked == [(rate, 1e-4), (rate, 1e-2), (sharing, "none"), (sharing, "qk:0-0"), (sharing, "qk:1-1")]


def test_lookup_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert load_space("own").name == "packaged", "a folder without pyproject.toml is no checkout"
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
    """PyYAML alone reads 1e-4 as text, which would be a trap for every learning rate."""
    assert yaml.safe_load("1e-4") == "1e-4"
    assert parse(RATE).sample_values("training.learning_rate") == (1e-4, 1e-2)
