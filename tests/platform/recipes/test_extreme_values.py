"""Extreme values in configs: either a config that every file format gives back, or an error that names the field."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from siclip.captioning.sampling import Sampling
from siclip.config import Config, ModelConfig
from siclip.data.config import AugmentConfig, CaptionPolicy
from siclip.errors import UserError
from siclip.models.registry import model_config
from siclip_platform.datasets.derived.captions.config import CaptionConfig, CleanRules, SimilarityFilter
from siclip_platform.datasets.derived.embeddings.config import EmbedConfig
from siclip_platform.datasets.digits.composition import DigitScenesConfig
from siclip_platform.datasets.importing.images import ImageRules
from siclip_platform.datasets.importing.parts import ImportConfig
from siclip_platform.recipes.digits import digits_student
from siclip_platform.recipes.fields import read_value
from siclip_platform.recipes.load import load_recipe
from siclip_platform.recipes.recipe import Recipe, leaf_paths, parse_recipe
from siclip_platform.recipes.yaml_file import dump_yaml, read_model
from siclip_platform.spaces.policy import SamplerConfig, SchedulerConfig
from siclip_platform.storage.sizes import parse_bytes
from siclip_platform.studies.options import Options

HEAD = "data: {path: x}\nmodel: {name: n}\n"
EXTREME: list[Any] = [
    *(math.inf, -math.inf, math.nan, 1e308, -1e308, 5e-324, 1e33, -0.0, 0.0, 1.0, -1.0, 0.5),
    *(0, 1, -1, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**11, 10**30, 10**400),
    *(True, False, None, "", "1", "nan", "inf", "1e400", "9" * 5000, "true", [], {}, [math.nan], {"a": math.inf}),
    *([0.9, 1.0], [math.nan, 0.9], [0.9, True], [{"step": 10**30, "weights": {"contrastive": math.inf}}]),
]
PATHS = sorted(leaf_paths())


def tree(values: dict[str, Any]) -> dict[str, Any]:
    """A valid recipe with these values at dotted paths."""
    whole = digits_student(Path("data"), Path("teacher.pt")).model_dump(mode="json")
    for path, value in values.items():
        *sections, name = path.split(".")
        node = whole
        for section in sections:
            node = node[section]
        node[name] = value
    return whole


def numbers(value: Any) -> list[float]:
    """Every number in a value."""
    if isinstance(value, dict | list):
        return [n for item in (value.values() if isinstance(value, dict) else value) for n in numbers(item)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


@settings(max_examples=400)
@given(st.dictionaries(st.sampled_from(PATHS), st.sampled_from(EXTREME), min_size=1, max_size=3))
def test_a_recipe_is_valid_and_survives_every_format_or_names_the_field(values: dict[str, Any]) -> None:
    try:
        recipe = parse_recipe(tree(values), "recipe")
    except UserError as error:
        first, *lines = str(error).splitlines()
        # Fields that contradict each other are named with one of them, which may not have been changed.
        ends = {path.rpartition(".")[2] for path in (*values, *PATHS)}
        assert first == "recipe is not a valid recipe:" and lines
        assert all(any(end in line for end in ends) for line in lines), error
        assert len(str(error)) < 3000
        return
    stored = recipe.model_dump(mode="json")
    assert all(math.isfinite(number) and abs(number) <= 1e32 for number in numbers(stored))
    again = (
        Recipe.model_validate_json(recipe.model_dump_json()),
        Recipe.model_validate(json.loads(json.dumps(stored, allow_nan=False))),
        read_model(dump_yaml(stored), "recipe.yaml", Recipe, remedy="none"),
        recipe.updated({}),
    )
    for other in again:
        assert other == recipe and other.hash == recipe.hash


@pytest.mark.parametrize("path", PATHS)
def test_every_field_of_a_recipe_has_a_finite_range(path: str) -> None:
    for value in (math.inf, -math.inf, math.nan, 1e40, 10**11 * 10**30, -(10**30)):
        with pytest.raises(UserError, match=rf"(?m)^  {path}(\.|:)"):
            parse_recipe(tree({path: value}), "recipe")
        assert read_value(path, value)[1], f"a search space could hold {value}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rate: .inf", "training.learning_rate: inf does not fit: Input should be a finite number"),
        ("learning_rate: .nan", "training.learning_rate: nan does not fit: Input should be a finite number"),
        ("learning_rate: 1e999", "training.learning_rate: inf does not fit"),
        ("betas: [0.9, 1.0]", "training.betas.1: 1.0 does not fit: Input should be less than 1"),
        ("betas: [.nan, 0.9]", "training.betas.0: nan does not fit"),
        ("clip_norm: .inf", "training.clip_norm: inf does not fit"),
        ("weight_decay: .nan", "training.weight_decay: nan does not fit"),
        ("batch_size: 100000000000", "training.batch_size: 100000000000 does not fit: .*equal to 1048576"),
        ("threads: 100000", "training.threads: 100000 does not fit: .*equal to 1024"),
        ("learning_rate: true", "training.learning_rate: true and false are not numbers; write a number"),
        ("betas: [true, 0.9]", "training.betas: true and false are not numbers"),
        ("seed: 0x" + "F" * 5000, "training.seed: '0xF.* cannot be read; write a number"),
        ("seed: " + "9" * 5000, "training.seed: '9.* cannot be read; write a number"),
        ("betas: " + "[" * 60 + "]" * 60, "training: nested more than 50 deep"),
        ("betas: " + "[" * 100_000, "nested too deeply"),
        ("<<: " + "{a: " * 300 + "1" + "}" * 300, "nested more than 50 deep"),
        ('teacher: "a\\0b"', r"training.teacher: 'a\\x00b' cannot be read"),
        ('teacher: "\\ud800"', r"training.teacher: '\\ud800' cannot be read"),
    ],
)
def test_a_recipe_file_with_an_extreme_value_is_refused_in_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"{HEAD}training:\n  steps: 200\n  {text}\n")
    with pytest.raises(UserError, match=words) as caught:
        load_recipe(file)
    assert len(str(caught.value)) < 700


def test_aliases_that_multiply_are_refused_before_they_do(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="more than 100,000 values, with those of its aliases"):
        load_recipe(tmp_path / "bomb.yaml")


def test_a_file_that_no_person_wrote_is_not_read_as_a_whole(tmp_path: Path) -> None:
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(8_000_000_000)
    with pytest.raises(UserError, match="at most 4,000,000 are read"):
        load_recipe(tmp_path / "large.yaml")


# The others are paths, which need no range, and bytes, which are compared with what is free.
NUMBERS = {Options: ("trials", "seeds", "seed", "concurrent", "workers", "confirm")}
OTHERS: list[tuple[type[Config], dict[str, Any]]] = [
    (CaptionPolicy, {}),
    (AugmentConfig, {}),
    (CaptionConfig, {}),
    (Sampling, {}),
    (CleanRules, {}),
    (SimilarityFilter, {"teacher": "t", "min_similarity": 0.2}),
    (EmbedConfig, {"teacher": "t"}),
    (ImportConfig, {}),
    (ImageRules, {}),
    (DigitScenesConfig, {}),
    (SamplerConfig, {}),
    (SchedulerConfig, {}),
    (Options, {"out": "o"}),
    *(
        (type(config), config.model_dump())
        for model in ("siclip-nano", "mobileclip-nano")
        for config in (model_config(model).image, model_config(model).text, model_config(model))
    ),
]


@pytest.mark.parametrize(("config", "valid"), OTHERS, ids=[config.__name__ for config, _ in OTHERS])
def test_every_number_of_every_config_has_a_finite_range(config: type[Config], valid: dict[str, Any]) -> None:
    assert config.model_validate(valid)
    for name in NUMBERS.get(config, config.model_fields):
        for value in (math.inf, -math.inf, math.nan, 10**33, -(10**33), [math.nan], [10**33], {"a": math.inf}):
            with pytest.raises(ValidationError) as caught:
                config.model_validate(valid | {name: value})
            assert any(name in error["loc"] for error in caught.value.errors()), caught.value


def test_a_checkpoints_config_with_a_huge_layer_is_refused() -> None:
    stored = model_config("siclip-nano").model_dump(mode="json")
    stored["image"]["widths"] = [10**9] * len(stored["image"]["widths"])
    with pytest.raises(ValidationError, match=r"image\.widths\.0"):
        ModelConfig.model_validate(stored)


def test_a_size_without_end_is_refused() -> None:
    assert parse_bytes("1.5TB") == 1_500_000_000_000
    with pytest.raises(UserError, match="is not a size"):
        parse_bytes("9" * 400 + "GB")
