from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siclip.errors import UserError
from siclip_platform.recipes.presets import digits_student, digits_teacher, preset, without_distillation
from siclip_platform.recipes.recipe import find_field, load_recipe


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
    ("path", "said"),
    [("loss.feature", "no recipe field 'feature' in LossConfig"), ("teacher.path", "has no parts"), ("x", "'x'")],
)
def test_a_wrong_path_is_named(path: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        find_field(type(digits_teacher(Path("data"))), path)


def test_a_wrong_value_is_named_with_its_field() -> None:
    with pytest.raises(UserError, match=r"training\.learning_rate: .*greater than 0"):
        digits_student(Path("data")).updated({"training.learning_rate": -1})
    with pytest.raises(UserError, match=r"warmup_steps 4 leaves none of the 4 steps"):
        digits_student(Path("data")).updated({"training.steps": 4})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: {path: x}\nmodel: {name: siclip-nano}\ntraining: {steps: 200}\nloss: {fd: 1}", r"loss\.fd: Extra"),
        ("data: {path: x}\nmodel: {name: siclip-nano}\ntraining: {steps: many}", r"training\.steps: .*integer"),
        ("data: [", "not YAML"),
        ("[1, 2]", "not a valid recipe"),
    ],
)
def test_a_bad_recipe_file_names_file_and_field(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=said) as error:
        load_recipe(file)
    assert str(file) in str(error.value)


def test_a_recipe_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(digits_student(Path("data")).model_dump_json())
    assert load_recipe(file) == digits_student(Path("data"))


def test_the_control_differs_in_the_distillation_weights_alone() -> None:
    recipe = digits_student(Path("data")).updated({"loss.pair_matching": 0.3})
    before, after = recipe.flat(), without_distillation(recipe).flat()
    changed = {path for path in before if before[path] != after[path]}
    weights = ("feature_distillation", "contrastive_relational", "interactive_contrastive")
    assert changed == {f"loss.{weight}" for weight in weights}
    assert all(after[path] == 0 for path in changed)


def test_an_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(UserError, match="digits-teacher, digits-student"):
        preset("digits", Path("data"))
