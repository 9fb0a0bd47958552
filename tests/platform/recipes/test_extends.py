"""``extends``: whose field counts, where each problem is reported, and circles."""

from __future__ import annotations

from pathlib import Path

import pytest

from siclip.errors import UserError
from siclip_platform.recipes.load import load_recipe

BASE = """\
data:
  path: base
  captions: [coca, blip]
  caption_weights: {coca: 1, blip: 2}
  augment: {jitter: 0.1, hue: 0.2}
model: {name: siclip-nano, freeze: none}
teacher: base.pt
training:
  epochs: 3
  seed: 4
  warmup_steps: 7
"""


class Files:
    """Recipe files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, **texts: str) -> None:
        for name, text in texts.items():
            (self.folder / f"{name}.yaml").write_text(text)

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.yaml"

    def refused(self, name: str) -> list[str]:
        """The lines with which a recipe is refused, without the folder's name."""
        with pytest.raises(UserError) as error:
            load_recipe(self.path(name))
        return str(error.value).replace(f"{self.folder}/", "").splitlines()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    made = Files(tmp_path)
    made.write(base=BASE)
    return made


def test_a_file_replaces_the_fields_that_it_has_and_keeps_the_others(files: Files) -> None:
    files.write(
        middle="extends: base.yaml\ndata: {augment: {hue: 0.3}, captions: [own]}\nteacher: null\n",
        top="extends: middle.yaml\ndata: {caption_weights: {own: 5}}\ntraining: {seed: 9}\n",
    )
    recipe = load_recipe(files.path("top"))
    written_out = load_recipe(files.path("base")).updated(
        {
            "data.captions": ["own"],
            "data.caption_weights": {"own": 5},  # a mapping that is a value is replaced whole
            "data.augment.hue": 0.3,  # and a section field by field
            "teacher": None,
            "training.seed": 9,
        }
    )
    assert recipe == written_out
    assert recipe.data.augment.jitter == 0.1 and recipe.hash == written_out.hash  # what a run stores names no base


def test_a_length_replaces_the_bases_length_in_either_unit(files: Files) -> None:
    files.write(top="extends: base.yaml\ntraining: {steps: 50, warmup_share: 0.1}\n")
    training = load_recipe(files.path("top")).training
    assert (training.steps, training.epochs, training.warmup_share, training.warmup_steps) == (50, 0, 0.1, 0)
    files.write(top="extends: base.yaml\ntraining: {steps: 50, epochs: 1}\n")
    assert files.refused("top") == [
        "top.yaml:2: training: epochs 1 and steps 50 say the same in two ways; remove one"
    ]


def test_a_name_is_a_shipped_recipe_and_a_path_starts_at_the_file(
    files: Files, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (files.folder / "inner").mkdir()
    (files.folder / "inner" / "top.yaml").write_text("extends: ../base.yaml\ntraining: {seed: 1}\n")
    # a shipped name is not a file beside the recipe, so a copy may have the name of what it extends
    (files.folder / "siclip-nano.yaml").write_text("extends: siclip-nano\ntraining: {seed: 1}\n")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load_recipe(files.folder / "inner" / "top.yaml").teacher == "base.pt"
    assert load_recipe(files.folder / "siclip-nano.yaml") == load_recipe("siclip-nano").updated({"training.seed": 1})


def test_a_problem_is_reported_in_the_file_that_has_the_field(files: Files) -> None:
    files.write(
        middle="extends: base.yaml\n# a comment\nmodel: {nam: x}\ntraining:\n  seed: -1\n  seed: -2\n",
        top="extends: middle.yaml\ndata:\n  limit: many\ntraining: {warmup_steps: 10, steps: 5}\n",
    )
    lines = files.refused("top")
    assert [line.split(": ")[:2] for line in lines] == [
        ["top.yaml:3", "data.limit"],
        ["middle.yaml:3", "model.nam"],
        ["middle.yaml:5", "training.seed"],
        ["middle.yaml:6", "training.seed"],
    ]
    assert lines[-1] == "middle.yaml:6: training.seed: given twice, first in line 5; remove one"
    files.write(top="extends: base.yaml\nmodel:\n  name: siclip-nano\ntraining:\n  warmup_steps: 10\n  steps: 5\n")
    assert files.refused("top") == ["top.yaml:5: training: warmup_steps 10 must be below the 5 steps of the training"]
    # of a list that is replaced, what lacks is in the file that has the list
    files.write(top="extends: base.yaml\ntraining:\n  betas: [0.9]\n")
    assert files.refused("top") == ["top.yaml:3: training.betas: has too few items; add what is missing"]
    files.write(top="extends: base.yaml\n\ntraining: 7\n")
    assert files.refused("top") == ["top.yaml:3: training: not a mapping; write `key: value` lines"]


def test_a_base_that_cannot_be_read_is_named_with_its_line(files: Files) -> None:
    files.write(top="# x\nextends: digits-student-1\n", middle="extends: none.yaml\n")
    (line,) = files.refused("top")
    assert line.startswith("top.yaml:2: extends: no recipe 'digits-student-1'; did you mean 'digits-student'")
    (line,) = files.refused("middle")
    assert line.startswith("middle.yaml:1: extends: recipe none.yaml does not exist; name a file or one of digits-")
    files.write(middle="data: [\n", top="extends: middle.yaml\n")
    assert files.refused("top")[0].startswith("middle.yaml:2: not YAML")
    files.write(middle="[1]\n", top="extends: middle.yaml\n")
    assert files.refused("top") == ["middle.yaml:1: not a mapping; write `key: value` lines"]
    files.write(top="data: {path: x}\nextend: base.yaml\n")
    assert files.refused("top") == ["top.yaml:2: extend: unknown key 'extend'; did you mean 'extends'?"]
    files.write(top="extends: [base.yaml]\n")
    assert files.refused("top") == [
        "top.yaml:1: extends: ['base.yaml'] is not a recipe; write a shipped name or a file"
    ]


def test_a_circle_is_refused_at_the_line_that_closes_it(files: Files) -> None:
    files.write(itself="# x\nextends: itself.yaml\n")
    assert files.refused("itself") == [
        "itself.yaml:2: extends: itself.yaml → itself.yaml is a circle; remove one extends"
    ]
    files.write(a="extends: b.yaml\n", b="extends: c.yaml\n", c="\nextends: ./b.yaml\n")
    assert files.refused("a") == ["c.yaml:2: extends: b.yaml → c.yaml → b.yaml is a circle; remove one extends"]
