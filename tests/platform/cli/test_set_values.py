"""``--set PATH=VALUE``: values are read as in a recipe file."""

from __future__ import annotations

from pathlib import Path

import pytest

from siclip.errors import UserError
from siclip_platform.cli.experiments import set_values
from siclip_platform.recipes.digits import digits_student


def test_values_are_yaml() -> None:
    """Lists and mappings with an ``e`` in them too, as docs/data.md has them."""
    values = set_values(
        [
            "data.captions=[coca-filtered]",
            "data.caption_weights={coca: 1e-1}",
            "training.learning_rate=1e-3",
            "distil_from=[open_clip:ViT-B-32:openai]",
            "teacher=open_clip:MobileCLIP2-S0:dfndr2b",
            "model.inherit=false",
            "data.teacher_embeddings=null",
        ]
    )
    assert values["data.captions"] == ["coca-filtered"]
    recipe = digits_student(Path("data")).updated(values)
    assert recipe.data.captions == ("coca-filtered",)
    assert recipe.data.caption_weights == {"coca": 0.1}
    assert recipe.training.learning_rate == 1e-3 and recipe.model.inherit is False
    assert (recipe.teacher, *recipe.distil_from) == (
        "open_clip:MobileCLIP2-S0:dfndr2b",
        "open_clip:ViT-B-32:openai",
    )
    assert recipe.data.teacher_embeddings is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("training.steps", "write PATH=VALUE"),
        ("data.captions=[coca", "--set data.captions: '\\[coca' is not YAML"),
        ("training.seed=010", "--set training.seed: versions of YAML read 010 differently"),
    ],
)
def test_a_wrong_change_is_refused(change: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        set_values([change])
