"""Study files: what each setting is, and that each mistake is told with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from siclip.errors import UserError
from siclip_platform.recipes.digits import digits_student, digits_teacher
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.recipes.student import recipe_model
from siclip_platform.search.policy.searcher import SettingsSearch
from siclip_platform.spaces.ablation import QUESTIONS, Ablation, ablation_names, load_ablation, parse_ablation
from siclip_platform.studies.ablation import check_settings, named_ablation, setting_values
from siclip_platform.studies.options import Options, check_sharing
from siclip_platform.studies.starting_point import StartingPoint, starting_point

STUDIES = Path(__file__).parents[3] / "search_spaces" / "studies"
HEAD = "name: t\nmetric: validation/mean_recall@1\nbaseline: off\nsettings:\n"  # settings start in line 5
OFF = '  "off": {set: {loss.pair_matching: 0}}\n'


def parse(settings: str, head: str = HEAD) -> Ablation:
    return parse_ablation(head.replace("baseline: off", 'baseline: "off"') + settings, "study.yaml")


@pytest.fixture
def student() -> Recipe:
    return digits_student(Path("data"), Path("teacher.pt"))


@pytest.mark.parametrize("name", ablation_names())
def test_every_shipped_study_makes_valid_recipes(name: str, student: Recipe) -> None:
    ablation = load_ablation(name, check_value=check_sharing("siclip-s0"))
    text = (STUDIES / f"{name}.yaml").read_text()
    assert ablation.name == name and text.startswith(f"# siclip-platform ablate {name}\n")
    recipes = [student.updated(setting.values) for setting in ablation.settings]
    for recipe in recipes:
        recipe_model(recipe)
    teachers = [setting.teacher for setting in ablation.settings]
    assert len({(recipe.hash, teacher) for recipe, teacher in zip(recipes, teachers, strict=True)}) == len(recipes), (
        "no two settings train the same"
    )
    for changes in ablation.teachers.values():
        assert digits_teacher(Path("data")).updated(changes) != digits_teacher(Path("data"))


def test_there_is_a_study_for_each_open_question() -> None:
    studies = [load_ablation(name) for name in ablation_names()]
    assert sorted(study.question for study in studies if study.question) == sorted(QUESTIONS)
    assert {study.name for study in studies if not study.question} == {"paper_experiments", "wikd_ablation"}


def parts(recipe: Recipe) -> str:
    """The parts of the method that a recipe has, as the paper's tables name them."""
    loss = recipe.loss
    found = {
        "WI": recipe.model.inherit,
        "FD": loss.feature_distillation > 0,
        "CRD": loss.contrastive_relational > 0,
        "ICL": loss.interactive_contrastive > 0,
        "PM": loss.pair_matching > 0,
    }
    return " ".join(name for name, there in found.items() if there)


def test_settings_of_the_wikd_ablation(student: Recipe) -> None:
    settings = load_ablation("wikd_ablation").settings
    assert {setting.name: parts(student.updated(setting.values)) for setting in settings} == {
        "baseline": "",
        "wi": "WI",
        "fd": "WI FD",
        "crd": "WI FD CRD",
        "icl": "WI FD CRD ICL",
        "pm": "WI FD CRD ICL PM",
        "without_wi": "FD CRD ICL PM",
        "without_fd": "WI CRD ICL PM",
        "without_crd": "WI FD ICL PM",
        "without_icl": "WI FD CRD PM",
    }


def test_the_papers_experiments(student: Recipe) -> None:
    settings = load_ablation("paper_experiments").settings
    found = [parts(student.updated(setting.values)) for setting in settings]
    assert found == ["", "WI FD CRD ICL", "WI FD CRD ICL PM"]


def test_extends_adds_to_what_is_above() -> None:
    study = parse(
        OFF
        + "  with: {extends: 'off', label: with it, set: {loss.pair_matching: 1}}\n"
        + "  hard: {extends: with, set: {loss.negatives: hardest}}\n"
    )
    assert [setting.values for setting in study.settings] == [
        {"loss.pair_matching": 0.0},
        {"loss.pair_matching": 1.0},
        {"loss.pair_matching": 1.0, "loss.negatives": "hardest"},
    ]
    assert [setting.label for setting in study.settings] == ["off", "with it", "hard"]
    assert [setting.name for setting in study.only(["hard"])] == ["off", "hard"], "with the baseline"
    with pytest.raises(UserError, match="no setting 'hrd'; did you mean 'hard'"):
        study.only(["hrd"])


ON = "  'on': {set: {loss.pair_matching: 1}}\n"
BAD = {
    "unknown field": ("  a: {set: {loss.pair_matchin: 1}}", 6, "did you mean 'loss.pair_matching'"),
    "wrong value": ("  a:\n    set:\n      loss.pair_matching: -1", 8, "greater than or equal to 0"),
    "what no study varies": ("  a: {set: {training.seed: 1}}", 6, "cannot be varied"),
    "unknown parent": ("  a: {extends: of, set: {loss.pair_matching: 1}}", 6, "did you mean 'off'"),
    "itself": ("  a: {extends: a, set: {loss.pair_matching: 1}}", 6, "not above it"),
    "the same twice": ("  a: {extends: 'off'}", 6, "is the same as off"),
    "unknown teacher": ("  a: {teacher: weak, set: {loss.pair_matching: 1}}", 6, "unknown teacher 'weak'"),
    "unknown key": ("  a: {sets: {loss.pair_matching: 1}}", 6, "did you mean 'set'"),
    "name": ("  a b: {set: {loss.pair_matching: 1}}", 6, "use letters"),
}


@pytest.mark.parametrize(("text", "line", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_setting_is_told_with_its_line(text: str, line: int, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(OFF + text + "\n")
    told = str(caught.value)
    assert told.startswith(f"study.yaml:{line}: ") and words in told, told


BAD_HEADS = {
    "question": (HEAD.replace("name: t", "name: t\nquestion: size"), 2, "choose one of scaling"),
    "metric": (HEAD.replace("validation", "test"), 2, "would select on the test split"),
    "seeds": (HEAD.replace("name: t", "name: t\nseeds: 0"), 2, "greater than or equal to 1"),
    "baseline": (HEAD.replace("baseline: off", "baseline: of"), 3, "did you mean 'off'"),
    "teacher": (HEAD.replace("name: t", "name: t\nteachers: {teacher: {training.steps: 5}}"), 2, "not 'teacher'"),
    "no baseline": (HEAD.replace("baseline: off\n", ""), 1, "lacks baseline"),
}


@pytest.mark.parametrize(("head", "line", "words"), BAD_HEADS.values(), ids=BAD_HEADS.keys())
def test_a_bad_head_is_told_with_its_line(head: str, line: int, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(OFF + ON, head)
    told = str(caught.value)
    assert told.startswith(f"study.yaml:{line}: ") and words in told, told


def test_one_setting_is_no_ablation() -> None:
    with pytest.raises(UserError, match="fewer than two"):
        parse(OFF)


def test_a_study_that_is_not_there() -> None:
    with pytest.raises(UserError, match="did you mean 'sharing'"):
        load_ablation("sharin")


def test_the_searcher_gives_the_settings_in_order() -> None:
    settings: list[dict[str, Any]] = [{"a": 1}, {"a": 2}]
    search = SettingsSearch(settings, "m")
    assert [search.suggest(f"trial-00{number}") for number in (0, 1, 0, 2)] == [
        *settings,
        settings[0],
        Searcher.FINISHED,
    ]


def test_a_weaker_teacher_is_a_teacher_of_its_own(student: Recipe) -> None:
    study = load_ablation("teacher")
    weak = next(setting for setting in study.settings if setting.teacher == "weak")
    assert setting_values(weak, {"weak": Path("w.pt")})["teacher"] == "w.pt"
    check_settings(study.settings, student, trains_teachers=True)
    with pytest.raises(UserError, match="setting both_weak needs the teacher 'weak'"):
        check_settings(study.settings, student, trains_teachers=False)


def test_settings_are_checked_against_the_recipe(student: Recipe) -> None:
    four = load_ablation("sharing").settings
    other = student.updated({"model.name": "mobileclip-nano"})
    with pytest.raises(UserError, match="setting unshared: "):
        check_settings(four, other, trains_teachers=False)
    with pytest.raises(UserError, match="needs a teacher"):
        check_settings(four, student.updated({"teacher": None}), trains_teachers=False)


def test_a_study_starts_from_the_shipped_student_or_from_a_named_recipe(tmp_path: Path, student: Recipe) -> None:
    options = Options(out=tmp_path, seed=3)
    changes = {"loss.pair_matching": 1}
    start = starting_point(options, None, changes, steps=24, teacher_steps=30)
    assert start.base.data.path == str(tmp_path / "digit-scenes") and start.base.teacher is None
    training = start.base.training
    assert (training.steps, training.seed, start.base.loss.pair_matching) == (24, 3, 1)
    assert start.teaching is not None and start.teaching.training.steps == 30
    start.check_teacher()
    named = student.updated({"training.steps": 99})
    start = starting_point(options, named, {}, steps=24, teacher_steps=30)
    assert start.base.training.steps == 99 and start.teaching is None
    assert start.base.teacher == str(Path("teacher.pt").resolve()) and start.options.data == Path("data").resolve()
    start.check_teacher()


def test_a_recipe_without_the_teacher_that_it_needs_is_refused(tmp_path: Path, student: Recipe) -> None:
    start = StartingPoint(Options(out=tmp_path), student.updated({"teacher": None}))
    with pytest.raises(UserError, match="needs a teacher and has none: name one with --teacher"):
        start.check_teacher()


def test_an_ablation_is_named_unless_a_study_is_resumed() -> None:
    with pytest.raises(UserError, match="name a study file, or a study to resume"):
        named_ablation(None)
