"""The teachers that a recipe can be distilled from, and a student with shorter captions than its teacher."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from siclip.checkpoints.formats import load_model, save_checkpoint
from siclip.errors import UserError
from siclip.models import create_model
from siclip.teachers import ModelTeacher, StoredTeacher, TeacherEnsemble
from siclip.training.loop import Save
from siclip.training.step import fitted_tokens
from siclip_platform.datasets.derived.embeddings.config import EmbedConfig
from siclip_platform.datasets.derived.embeddings.embed import embed_dataset, plan_embedding
from siclip_platform.datasets.derived.stage import Pool
from siclip_platform.recipes.control import DISTILLATION, without_distillation
from siclip_platform.recipes.digits import digits_student
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.training.build import build_trainer, check, prepare
from siclip_platform.training.in_process import run_recipe


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
    run_recipe(recipe, record)
    return record.values


def test_naming_the_inherited_teacher_changes_nothing(recipe: Recipe) -> None:
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
    ("name", "message"),
    [
        ("open_clip:ViT-B-32", "write open_clip:NAME:TAG"),
        ("open_clip:ViT-Z-32:laion", "ViT-Z-32"),
        ("nowhere.pt", r"nowhere\.pt does not exist"),
    ],
)
def test_an_unknown_teacher_is_refused(recipe: Recipe, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_trainer(recipe.updated({"distil_from": [name]}))


def test_a_shorter_context_cuts_captions_and_positions_but_not_the_teachers(recipe: Recipe) -> None:
    short = recipe.updated({"model.context_length": 12})
    prepared = prepare(short)
    model, teacher = prepared.trainer.model, prepared.trainer.teacher
    batch = next(prepared.batches(0, 16))
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


OFF = {f"loss.{name}": 0.0 for name in DISTILLATION}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"distil_from": ["a.pt"], **OFF},
            "distil_from has no effect: no part of the loss uses a teacher; set one of",
        ),
        (
            {"model.inherit": False, **OFF},
            "teacher has no effect: no part of the loss uses a teacher, and model.inher",
        ),
        (
            {"model.inherit": False, "distil_from": ["a.pt"]},
            "teacher has no effect: distil_from names what to distil",
        ),
    ],
)
def test_a_teacher_without_effect_is_refused(recipe: Recipe, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(recipe.updated(changes), with_data=False)


def test_a_control_inherits_from_its_teacher_without_distillation(recipe: Recipe) -> None:
    control = without_distillation(recipe.updated({"distil_from": ["nowhere.pt"]}))
    assert control == without_distillation(recipe)
    check(control, with_data=False)
    trainer = build_trainer(control)
    assert trainer.teacher is None and trainer.model.trunk_is_frozen()
    mined = recipe.updated({"distil_from": ["a.pt"], "loss.pair_matching": 1.0, "loss.negatives": "teacher"})
    assert without_distillation(mined).distil_from == ("a.pt",)


def test_a_trial_whose_weights_are_all_0_loads_no_teacher(recipe: Recipe) -> None:
    assert build_trainer(recipe.updated({"distil_from": ["nowhere.pt"], **OFF})).teacher is None


@pytest.fixture(scope="module")
def embedded(digits: Path, nano_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digit scenes and the teacher's embeddings of one crop, the plain image."""
    folder = tmp_path_factory.mktemp("embedded") / "data"
    shutil.copytree(digits, folder)
    plan = plan_embedding(folder, "nano", EmbedConfig(teacher=str(nano_teacher), crop_scale=1.0), ["train"])
    embed_dataset(plan, pool=Pool(here=True))
    return folder


def from_stored(recipe: Recipe, embedded: Path, **changes: object) -> Recipe:
    return recipe.updated({"data.path": str(embedded), "data.teacher_embeddings": "nano", **changes})


def test_stored_embeddings_train_like_their_teacher(recipe: Recipe, embedded: Path) -> None:
    """Up to the rounding of bf16, in which they are stored."""
    stored = from_stored(recipe, embedded)
    teacher = build_trainer(stored).teacher
    assert isinstance(teacher, StoredTeacher) and teacher.widths == (128, 128)
    assert teacher.name == ModelTeacher(load_model(str(recipe.teacher))).identity
    online = losses(recipe.updated({"data.path": str(embedded)}))
    assert losses(stored) == pytest.approx(online, rel=0.02)
    assert losses(from_stored(recipe, embedded, distil_from=[recipe.teacher])) == losses(stored)


def test_stored_embeddings_of_another_teacher_than_named_are_refused(
    recipe: Recipe, embedded: Path, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "other.pt", create_model("mobileclip-nano"))
    other = from_stored(recipe, embedded, distil_from=[str(tmp_path / "other.pt")])
    with pytest.raises(UserError, match=r"'nano' are of the teacher 'mobileclip-nano \w{16}', and distil_from names"):
        build_trainer(other)


def test_datasets_with_embeddings_of_different_teachers_are_refused(
    recipe: Recipe, embedded: Path, digits: Path, tmp_path: Path
) -> None:
    shutil.copytree(digits, tmp_path / "more")
    save_checkpoint(tmp_path / "other.pt", create_model("mobileclip-nano"))
    plan = plan_embedding(tmp_path / "more", "nano", EmbedConfig(teacher=str(tmp_path / "other.pt")), ["train"])
    embed_dataset(plan, pool=Pool(here=True))
    mixed = from_stored(recipe, embedded, **{"data.mix": [{"path": str(tmp_path / "more")}]})
    with pytest.raises(UserError, match="embed every dataset with the same teacher"):
        build_trainer(mixed)


def test_stored_embeddings_without_effect_are_refused(recipe: Recipe, embedded: Path) -> None:
    with pytest.raises(UserError, match=r"data\.teacher_embeddings has no effect: no part of the loss"):
        check(from_stored(recipe, embedded, **OFF), with_data=False)


def test_a_trunk_cache_refuses_a_teacher_with_another_trunk_before_it_is_built(
    recipe: Recipe, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "other.pt", create_model("mobileclip-nano"))
    cached = {"data.trunk_cache": str(tmp_path / "cache")}
    with pytest.raises(UserError, match="has another trunk than the student and needs images"):
        prepare(recipe.updated({"distil_from": [str(tmp_path / "other.pt")], **cached}))
    with pytest.raises(UserError, match="distil_from to checkpoints of the same trunk"):
        recipe.updated({"distil_from": ["open_clip:ViT-B-32:openai"], **cached})
    assert not (tmp_path / "cache").exists()
