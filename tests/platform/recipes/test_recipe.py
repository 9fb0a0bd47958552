"""Recipes: identity, updates, what a wrong path or value is answered with, and recipe files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from siclip.errors import UserError
from siclip_platform.recipes.control import without_distillation
from siclip_platform.recipes.digits import digits_student, digits_teacher
from siclip_platform.recipes.load import load_recipe
from siclip_platform.recipes.recipe import Recipe, find_field

HEAD = "data: {path: x}\nmodel: {name: siclip-nano}\n"  # the rest starts in line 3


def test_the_hash_follows_every_change_and_nothing_else() -> None:
    recipe = digits_student(Path("data"))
    assert recipe.hash == digits_student(Path("data")).hash
    assert recipe.hash != recipe.updated({"loss.feature_distillation": 2001.0}).hash
    assert recipe.hash == recipe.updated({"loss.feature_distillation": 2000.0}).hash


@given(st.floats(0, 1e6), st.integers(0, 2**31))
def test_an_update_changes_exactly_the_named_fields(weight: float, seed: int) -> None:
    recipe = digits_teacher(Path("data"))
    after = recipe.updated({"loss.pair_matching": weight, "training.seed": seed}).flat()
    before = recipe.flat()
    assert after["loss.pair_matching"] == weight and after["training.seed"] == seed
    assert {k: v for k, v in after.items() if k not in ("loss.pair_matching", "training.seed")} == {
        k: v for k, v in before.items() if k not in ("loss.pair_matching", "training.seed")
    }


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("loss.feature", "no recipe field 'feature' in LossConfig"),
        ("training.learing_rate", "did you mean 'training.learning_rate'"),
        ("learning_rate", "did you mean 'training.learning_rate'"),
        ("teacher.path", "has no parts"),
        ("x", "'x'"),
    ],
)
def test_a_wrong_path_is_named(path: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        find_field(type(digits_teacher(Path("data"))), path)


def test_a_wrong_value_is_named_with_its_field() -> None:
    with pytest.raises(UserError, match=r"training\.learning_rate: -1 .*greater than 0"):
        digits_student(Path("data")).updated({"training.learning_rate": -1})
    with pytest.raises(UserError, match=r"warmup_steps 4 .* the 4 steps"):
        digits_student(Path("data")).updated({"training.steps": 4})


BAD_FILES = {
    "unknown key": ("training: {steps: 200}\nloss: {fd: 1}", "4: loss.fd: unknown key 'fd'; it takes base"),
    "misspelt key": ("training:\n  stesp: 200", "4: training.stesp: unknown key 'stesp'; did you mean 'steps'?"),
    "key of another section": (
        "training: {steps: 200}\nlearning_rate: 1",
        "4: learning_rate: unknown key 'learning_rate'; did you mean 'training.learning_rate'?",
    ),
    "key of a list": ("training: {steps: 200}\nloss:\n  schedule:\n    - {steps: 3}", "6: loss.schedule.0"),
    "missing section": ("evaluation: {}", "1: lacks training; add it"),
    "no length": ("training:\n  seed: 3", "4: training: lacks its length; add steps or epochs"),
    "two lengths": (
        "training:\n  steps: 4\n  epochs: 2",
        "4: training: epochs 2 and steps 4 say the same in two ways",
    ),
    "missing key": (
        "training: {steps: 200}\nloss:\n  schedule:\n    - {step: 9}",
        "6: loss.schedule.0: lacks weights; add it",
    ),
    "wrong value": (
        "training:\n  steps: many",
        "4: training.steps: 'many' does not fit: Input should be a valid int",
    ),
    "wrong word": (
        "training:\n  steps: 200\n  precision: fp23",
        "5: training.precision: unknown value 'fp23'; did you",
    ),
    "section is a value": ("training: 200", "3: training: not a mapping; write"),
    "list is a value": ("training: {steps: 200}\ndistil_from: a", "4: distil_from: not a list"),
    "value is a list": ("training: {steps: [200]}", "3: training.steps: a list or a mapping; write one value"),
    "neither number nor auto": (
        "training: {steps: 200, micro_batch_size: all}",
        "3: training.micro_batch_size: 'all' does not fit: Input should be a valid integer, unable to parse "
        "string as an integer or Input should be 'auto'; change it",
    ),
    "too few": ("training: {steps: 200, betas: [1]}", "3: training.betas: has too few items"),
    "octal": ("training: {steps: 010}", "3: training.steps: versions of YAML read 010 differently"),
    "base 60": ("training:\n  steps: 200\n  seed: 1:30", "5: training.seed: versions of YAML read 1:30 differently"),
    "word for a number": (
        "training: {steps: 200}\nloss: {contrastive: yes}",
        "4: loss.contrastive: 'yes' does not fit",
    ),
    "key twice": ("training: {steps: 200}\nteacher: a\nteacher: b", "5: teacher: given twice, first in line 4"),
    "key twice, inside": (
        "training:\n  steps: 200\n  seed: 1\n  steps: 30",
        "6: training.steps: given twice, first in line 4; remove one",
    ),
    "key twice, in a list": (
        "training: {steps: 200}\nloss:\n  schedule:\n    - {step: 3, weights: {}, step: 4}",
        "6: loss.schedule.0.step: given twice, first in line 6; remove one",
    ),
    "key is a number": ("training: {steps: 200}\n3: 4", "4: a key is 3, not text"),
    "python object": ("training: {steps: !!python/name:os.system x}", "3: training.steps: 'x' cannot be read"),
    "sections disagree": (
        "training:\n  steps: 200\n  thaw_step: 5\nmodel_:",
        "6: model_: unknown key 'model_'; did you mean 'model'?",
    ),
    "steps of a schedule": (
        "training: {steps: 200}\nloss:\n  schedule:\n    - {step: 300, weights: {contrastive: 1}}",
        "6: loss.schedule.0: step 300 is not before training.steps 200",
    ),
    "itself": ("training: &a {steps: *a}", "3: training.steps: an alias within its own anchor"),
    "not YAML": ("loss: [", "4: not YAML: "),
}


@pytest.mark.parametrize(("text", "words"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_recipe_file_is_refused_with_line_and_path(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"{HEAD}{text}\n")
    with pytest.raises(UserError) as caught:
        load_recipe(file)
    lines = str(caught.value).splitlines()
    assert any(line.startswith(f"{file}:{words}") for line in lines), lines
    assert all(line.startswith(f"{file}:") and ";" in line for line in lines), lines  # ; the remedy


BAD_COMBINATIONS = {
    "thawing": (
        "{steps: 200, thaw_step: 5}\nmodel: {name: n, freeze: none}",
        "2: training.thaw_step: there is nothing",
    ),
    "crops": (
        "{steps: 200}\nmodel: {name: n}\ndata: {path: x, augmentations: 2}",
        "4: data.augmentations: these are",
    ),
    "regression": (
        "{steps: 200}\nmodel:\n  name: n\n  inherit: false\n  block_regression_steps: 3",
        "6: model.block_regression_steps: block regression needs model.inherit",
    ),
    "captions": (
        "{steps: 200}\nmodel: {name: n}\ndata:\n  path: x\n  mix: [{path: y}]\n  unique_captions: true",
        "7: data.unique_captions: unique_captions are arranged within one dataset",
    ),
    "cached trunk": (
        "{steps: 200}\nmodel: {name: n, inherit: false}\ndata:\n  path: x\n  trunk_cache: y",
        "6: data.trunk_cache: it stores outputs of a trunk that never trains: set model.inherit true",
    ),
    "pattern": (
        "{steps: 200}\nmodel:\n  name: siclip2-s0\n  text_sharing: qk:0-0-1-1",
        "5: model.text_sharing: sharing pattern 'qk:0-0-1-1': 4 numbers for 12 blocks; write",
    ),
    "base": (
        "{steps: 200}\nmodel: {name: siclip-s0}\nteacher: open_clip:MobileCLIP2-S0:dfndr2b",
        "4: teacher: siclip-s0 cannot inherit from open_clip's 'MobileCLIP2-S0'; name a checkpoint of mobileclip-s0",
    ),
}


@pytest.mark.parametrize(("text", "words"), BAD_COMBINATIONS.values(), ids=BAD_COMBINATIONS.keys())
def test_fields_that_disagree_are_refused_at_the_line_of_one(tmp_path: Path, text: str, words: str) -> None:
    head = "# the data come below\n" if "data:" in text else "data: {path: x}\n"
    file = tmp_path / "recipe.yaml"
    file.write_text(f"{head}training: {text}\n")
    with pytest.raises(UserError) as caught:
        load_recipe(file)
    assert str(caught.value).startswith(f"{file}:{words}"), str(caught.value)


def test_all_problems_of_a_recipe_file_are_reported_in_its_order(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "data: {path: x, limt: 3}\nmodel: {name: 3}\ntraining:\n  steps: 200\n  seed: -1\n  steps: 300\nlos: {}\n"
    )
    with pytest.raises(UserError) as caught:
        load_recipe(file)
    assert [int(line.split(":")[1]) for line in str(caught.value).splitlines()] == [1, 2, 5, 6, 7]


@pytest.mark.parametrize(("text", "words"), [("", "the file is empty"), ("[1, 2]", "not a mapping")])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=f"{file}:1: {words}"):
        load_recipe(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"recipe\.yaml cannot be read: .*UTF-8"):
        load_recipe(file)
    with pytest.raises(UserError, match="does not exist"):
        load_recipe(tmp_path / "none.yaml")


def test_a_recipe_file_is_read(tmp_path: Path) -> None:
    recipe = digits_student(Path("data"))
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.model_dump_json())
    assert load_recipe(file) == recipe
    file.write_text(yaml.safe_dump(json.loads(recipe.model_dump_json())))
    assert load_recipe(file) == recipe


def test_numbers_and_merge_keys_of_a_recipe_file(tmp_path: Path) -> None:
    """``1e-3`` is a number also in an integer field and in a mapping; ``<<`` gives way to a mapping's own keys."""
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "data: &data {path: x, limit: 1e4, caption_weights: {coca: 1e-1, 'blip:1': 2E0}, captions: ['1e3', off]}\n"
        "model: {name: siclip-nano, inherit: yes}\n"
        "training:\n  <<: {steps: 1_000, learning_rate: 5e-3}\n  learning_rate: 1e-3\n  seed: 0x10\n"
    )
    recipe = load_recipe(file)
    assert (recipe.data.limit, recipe.data.captions) == (10_000, ("1e3", "off"))
    assert recipe.data.caption_weights == {"coca": 0.1, "blip:1": 2.0}
    assert (recipe.training.steps, recipe.training.learning_rate, recipe.training.seed) == (1000, 1e-3, 16)
    assert recipe.model.inherit is True


def test_an_invalid_tree_names_each_field() -> None:
    with pytest.raises(UserError, match=r"recipe is not a valid recipe:\n  training\.steps: .*\n  training\.seed: "):
        digits_student(Path("data")).updated({"training.steps": "many", "training.seed": -1})


def test_the_control_differs_in_the_distillation_weights_alone() -> None:
    recipe = digits_student(Path("data")).updated({"loss.pair_matching": 0.3})
    before, after = recipe.flat(), without_distillation(recipe).flat()
    changed = {path for path in before if before[path] != after[path]}
    weights = ("feature_distillation", "contrastive_relational", "interactive_contrastive")
    assert changed == {f"loss.{weight}" for weight in weights}
    assert all(after[path] == 0 for path in changed)


def test_every_leaf_of_a_recipe_is_a_field() -> None:
    paths = list(digits_student(Path("data")).flat())
    assert len(paths) > 50
    for path in paths:
        assert find_field(Recipe, path) is not None
