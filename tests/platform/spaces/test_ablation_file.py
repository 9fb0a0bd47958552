"""Files of ablations: each mistake is reported with its line, its path and a remedy."""

from __future__ import annotations

from typing import Any

import pytest

from siclip.errors import UserError
from siclip_platform.spaces.ablation import Ablation, parse_ablation

HEAD = "name: t\nmetric: validation/mean_recall@1\nbaseline: off\nsettings:\n"  # settings start in line 5
SETTINGS = "  off: {set: {loss.pair_matching: 0}}\n  with: {set: {loss.pair_matching: 1}}\n"  # more in line 7


def parse(settings: str, head: str = HEAD, **options: Any) -> Ablation:
    return parse_ablation(head + SETTINGS + settings, "study.yaml", **options)


def test_numbers_and_names_are_read_as_in_a_space() -> None:
    """``1e-3`` is a number and ``off``, which YAML 1.1 reads as false, is a name."""
    study = parse("  rate: {extends: off, label: 1.5e-3 and off, set: {training.learning_rate: 1.5e-3}}\n")
    assert study.baseline == "off" and study.seeds == 3
    assert study.settings[2].values == {"loss.pair_matching": 0.0, "training.learning_rate": 1.5e-3}
    assert (study.settings[2].label, study.settings[2].extends) == ("1.5e-3 and off", "off")


def test_a_setting_inherits_the_teacher_of_the_setting_that_it_extends() -> None:
    head = "teachers:\n  weak: {training.steps: 60, training.seed: 3}\n" + HEAD
    study = parse("  a: {extends: with, teacher: weak}\n  b: {extends: a, set: {loss.pair_head: mlp}}\n", head)
    assert study.teachers == {"weak": {"training.steps": 60, "training.seed": 3}}
    assert [setting.teacher for setting in study.settings] == ["teacher", "teacher", "weak", "weak"]


BAD_SETTINGS = {
    "setting twice": ("  off: {set: {loss.pair_matching: 2}}", "7: settings.off: given twice, first in line 5"),
    "path twice": (
        "  a:\n    set:\n      loss.contrastive: 1\n      loss.contrastive: 2",
        "10: settings.a.set.loss.contrastive: given twice, first in line 9",
    ),
    "misspelt path": (
        "  a: {set: {loss.contrastiv: 1}}",
        "7: settings.a.set.loss.contrastiv: no recipe field 'contrastiv' in LossConfig",
    ),
    "value": ("  a: {set: {loss.contrastive: -1}}", "7: settings.a.set.loss.contrastive: -1 does not fit"),
    "word": (
        "  a: {set: {loss.negatives: hardst}}",
        "7: settings.a.set.loss.negatives: 'hardst' does not fit loss.negatives: ",
    ),
    "list": ("  a: {set: {training.betas: [0.9, 0.98]}}", "7: settings.a.set.training.betas: a list or a mapping"),
    "octal": ("  a: {set: {data.limit: 010}}", "7: settings.a.set.data.limit: versions of YAML read 010"),
    "not varied": ("  a: {set: {training.steps: 9}}", "7: settings.a.set.training.steps: 'training.steps' cannot be"),
    "set is a list": ("  a: {set: [1]}", "7: settings.a.set: not a mapping; write {PATH: VALUE}"),
    "setting is a value": ("  a: 1", "7: settings.a: not a mapping"),
    "misspelt key": ("  a: {extend: off}", "7: settings.a.extend: unknown key 'extend'; did you mean 'extends'?"),
    "parent": ("  a: {extends: wth}", "7: settings.a.extends: 'wth' is not above it; did you mean 'with'?"),
    "the same": ("  a: {extends: with}", "7: settings.a: it is the same as with"),
    "teacher": ("  a: {teacher: weak, extends: off}", "7: settings.a.teacher: unknown teacher 'weak'"),
    "name": ("  a b: {set: {loss.contrastive: 3}}", "7: settings.a b: not a plain name; use letters"),
}


@pytest.mark.parametrize(("text", "words"), BAD_SETTINGS.values(), ids=BAD_SETTINGS.keys())
def test_a_bad_setting_is_reported_with_its_line_and_path(text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text + "\n")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"study.yaml:{words}"), lines
    assert all(line.startswith("study.yaml:") and ";" in line for line in lines), lines  # ; the remedy


def test_a_misspelt_word_gets_a_hint() -> None:
    with pytest.raises(UserError, match=r"did you mean 'hardest'\?$"):
        parse("  a: {set: {loss.negatives: hardst}}\n")


def test_all_problems_of_a_file_are_reported_in_its_order() -> None:
    with pytest.raises(UserError) as caught:
        parse(
            "  a: {set: {loss.contrastive: -1, loss.nothing: 2}}\n",
            "name: a/b\nqestion: scaling\nseeds: no\nmetric: validation/los\nbaseline: off\nsettings:\n",
        )
    lines = [int(line.split(":")[1]) for line in str(caught.value).splitlines()]
    assert lines == [1, 2, 3, 4, 9, 9]


def test_the_callers_check_is_asked() -> None:
    with pytest.raises(UserError, match=r"^study.yaml:6: .*: 1 does not fit loss.pair_matching: too much; change"):
        parse("", check_value=lambda path, value: "too much" if value == 1.0 else None)
