"""What a recipe can be distilled from, and a student that sees shorter captions than its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from siclip.checkpoints.formats import load_model, save_checkpoint
from siclip.models import create_model
from siclip.teachers import ModelTeacher, TeacherEnsemble
from siclip.training.loop import Save
from siclip.training.step import fitted_tokens
from siclip_platform.errors import UserError
from siclip_platform.presets import digits_student
from siclip_platform.recipe import Recipe
from siclip_platform.trainer import build_trainer, prepare, run_in_process


@pytest.fixture
def recipe(digits: Path, nano_teacher: Path) -> Recipe:
    base = digits_student(digits, nano_teacher, steps=3)
    return base.updated({"training.batch_size": 16, "training.log_every": 1, "training.evaluate_every": 0})


class Losses:
    def __init__(self) -> None:
        self.values: list[float] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if "train/loss" in metrics:
            self.values.append(metrics["train/loss"])

    def milestone(self, step: int, metrics: Mapping[str, float], save: Save | None) -> None: ...


def losses(recipe: Recipe) -> list[float]:
    record = Losses()
    run_in_process(recipe, record)
    return record.values


def test_naming_the_own_teacher_changes_nothing(recipe: Recipe) -> None:
    named = recipe.updated({"distil_from": [recipe.teacher]})
    teacher = build_trainer(named).teacher
    assert isinstance(teacher, ModelTeacher) and all(teacher.shares.values())
    assert losses(named) == losses(recipe)


def test_two_teachers_are_an_ensemble(recipe: Recipe) -> None:
    both = recipe.updated({"distil_from": [recipe.teacher, recipe.teacher]})
    trainer = build_trainer(both)
    assert isinstance(trainer.teacher, TeacherEnsemble) and trainer.teacher.widths == (256, 256)
    assert trainer.objective.image_projection is not None
    assert len(losses(both)) == 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("open_clip:ViT-B-32", "write open_clip:NAME:TAG"),
        ("open_clip:ViT-Z-32:laion", "ViT-Z-32"),
        ("nowhere.pt", r"nowhere\.pt does not exist"),
    ],
)
def test_a_source_that_is_none_is_refused(recipe: Recipe, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_trainer(recipe.updated({"distil_from": [name]}))


def test_a_shorter_context_cuts_captions_and_positions_and_the_teacher_sees_all(recipe: Recipe) -> None:
    short = recipe.updated({"model.context_length": 12})
    prepared = prepare(short)
    model, teacher = prepared.trainer.model, prepared.trainer.teacher
    batch = next(prepared.stream.batches(16, 0, 16))
    assert batch.tokens.shape == (16, 20) and fitted_tokens(model, batch).shape == (16, 12)
    assert isinstance(teacher, ModelTeacher) and teacher.shares == {"image": True, "text": False}
    positions = model.text_encoder.positional_embedding.pos_embed.pos_embed
    theirs = load_model(str(recipe.teacher)).text_encoder.positional_embedding.pos_embed.pos_embed
    assert torch.equal(positions, theirs[:, :, :12]) and not positions.requires_grad
    images = torch.zeros(16, 3, 64, 64)
    _, expected = load_model(str(recipe.teacher)).eval()(images, batch.tokens)
    features = model.trunk(images, fitted_tokens(model, batch))
    torch.testing.assert_close(teacher.embed(batch, features).text, expected)
    assert len(losses(short)) == 3


def test_a_longer_context_than_the_teachers_is_refused(recipe: Recipe) -> None:
    with pytest.raises(UserError, match="another context length"):
        build_trainer(recipe.updated({"model.context_length": 30}))


def test_a_teacher_of_other_images_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "large.pt", create_model("mobileclip-nano", image={"image_size": 128}))
    with pytest.raises(UserError, match=r"another image size \(128\)"):
        build_trainer(recipe.updated({"distil_from": [str(tmp_path / "large.pt")]}))


def test_a_trunk_cache_refuses_a_teacher_with_another_trunk_before_it_is_built(
    recipe: Recipe, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "other.pt", create_model("mobileclip-nano"))
    cached = {"data.trunk_cache": str(tmp_path / "cache")}
    with pytest.raises(UserError, match="with a trunk of its own needs images"):
        prepare(recipe.updated({"distil_from": [str(tmp_path / "other.pt")], **cached}))
    with pytest.raises(UserError, match="distil_from to checkpoints of the same trunk"):
        recipe.updated({"distil_from": ["open_clip:ViT-B-32:openai"], **cached})
    assert not (tmp_path / "cache").exists()
