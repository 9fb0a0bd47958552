"""``--resume``: every option agrees with the study, changes what may change, or is refused."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from siclip.errors import UserError
from siclip_platform.cli import app
from siclip_platform.recipes.digits import digits_student
from siclip_platform.studies.options import Options
from siclip_platform.studies.study_file import read_study

JOBS = Path(__file__).resolve().parents[3] / "jobs"
COMMANDS = {"tune": "wikd", "train": "train", "demo": "wikd", "ablate": "small"}
PROGRAMS = {"train": "train_siclip", "demo": "tune_wikd", "ablate": "ablate_siclip"}
ABLATION = """\
name: small
metric: validation/mean_recall@1
baseline: plain
settings:
  plain: {set: {loss.pair_matching: 0}}
  pm: {set: {loss.pair_matching: 1}}
  more: {set: {loss.pair_matching: 2}}
"""


class Opened(Exception):
    """The command has read its options and begins to work."""


class Commands:
    """Runs the commands up to the start of their work, in one output folder."""

    def __init__(self, folder: Path, digits: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.digits, self.teacher = folder, digits, teacher
        self.opened: Options | None = None
        self.monkeypatch = monkeypatch
        (folder / "small.yaml").write_text(ABLATION)
        recipe = digits_student(digits, teacher, steps=24)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))

    def out(self, command: str) -> Path:
        return self.folder / command

    def first(self, command: str) -> list[str]:
        """The options of a new study."""
        data = ["--data", str(self.digits), "--teacher", str(self.teacher)]
        recipe = ["--recipe", str(self.folder / "recipe.yaml"), *data]
        return {
            "tune": [*recipe, "--trials", "6", "--seeds", "2", "--seed", "3", "--sampler", "random"],
            "train": [*recipe, "--set", "training.learning_rate=0.01", "--workers", "2"],
            "demo": [*data, "--trials", "6", "--steps", "24", "--checkpoints", str(self.folder / "kept")],
            "ablate": [str(self.folder / "small.yaml"), *data, "--steps", "24", "--setting", "pm", "--seeds", "2"],
        }[command]

    def __call__(self, command: str, *words: str) -> Options:
        """The options that the command would work with.

        Raises:
            UserError: as the command.
        """
        program = app if command == "tune" else runpy.run_path(str(JOBS / f"{PROGRAMS[command]}.py"))["app"]
        arguments = [*(["tune"] if command == "tune" else []), *words, "--out", str(self.out(command))]
        self.opened = None
        self.monkeypatch.setattr(sys, "argv", ["pytest"])  # the program's name must not matter
        result = CliRunner().invoke(program, arguments)
        if isinstance(result.exception, UserError):
            raise result.exception
        assert self.opened is not None, result.output
        return self.opened

    def begin(self, command: str) -> Options:
        return self(command, *self.first(command))

    def resume(self, command: str, *words: str) -> Options:
        return self(command, "--resume", COMMANDS[command], *words)


@pytest.fixture
def commands(
    tmp_path: Path, digits: Path, nano_teacher: Path, monkeypatch: pytest.MonkeyPatch, mlflow_database: bytes
) -> Commands:
    made = Commands(tmp_path, digits, nano_teacher, monkeypatch)
    for command in COMMANDS:
        made.out(command).mkdir()
        (made.out(command) / "mlflow.db").write_bytes(mlflow_database)

    @contextmanager
    def no_ray(*given: object) -> Iterator[None]:
        yield

    def stop(self: Any, *given: object, **more: object) -> Any:
        made.opened = self.options
        raise Opened

    monkeypatch.setattr("siclip_platform.studies.session.ray_cluster", no_ray)
    for work in ("search", "train", "study"):
        monkeypatch.setattr(f"siclip_platform.studies.experiment.Experiment.{work}", stop)
    return made


AGREEING = {
    "tune": [
        ["--seeds", "2"],
        ["--seed", "3"],
        ["--space", "wikd"],
        ["--sampler", "random"],
        ["--backend", "process"],
    ],
    "train": [["--set", "training.learning_rate=1e-2"], ["--set", "training.steps=24"], ["--name", "train"]],
    "demo": [["--steps", "24"], ["--seed", "0"], ["--space", "wikd"]],
    "ablate": [["--setting", "pm"], ["--seeds", "2"], ["--steps", "24"]],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_that_agrees_with_the_study_is_accepted(command: str, commands: Commands) -> None:
    begun = commands.begin(command)
    before = read_study(commands.out(command) / COMMANDS[command])
    data = ["--data", str(commands.digits), "--teacher", str(commands.teacher)]
    recipe = ["--recipe", str(commands.folder / "recipe.yaml")] if command in ("tune", "train") else []
    changed = [] if command != "train" else ["--set", "training.learning_rate=0.01"]
    for words in ([], *AGREEING[command], data, [*recipe, *data, *changed], commands.first(command)):
        resumed = commands.resume(command, *words)
        expected = {"resume": COMMANDS[command], "tracking_uri": before.options.tracking_uri}
        assert resumed == begun.model_copy(update=expected)
        assert read_study(commands.out(command) / COMMANDS[command]) == before


CHANGES: dict[str, list[tuple[list[str], dict[str, Any]]]] = {
    "tune": [
        (["--trials", "9"], {"trials": 9}),
        (["--concurrent", "2"], {"concurrent": 2}),
        (["--disk-budget", "2GB"], {"disk_budget": 2 * 10**9}),
        (["--confirm", "3"], {"confirm": 3}),
        (["--rerun"], {"rerun": True}),
    ],
    "train": [(["--workers", "4"], {"workers": 4})],
    "demo": [(["--trials", "9", "--concurrent", "1"], {"trials": 9, "concurrent": 1})],
    "ablate": [(["--concurrent", "2"], {"concurrent": 2}), (["--confirm", "1"], {"confirm": 1})],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_that_may_change_is_applied_and_stored(command: str, commands: Commands) -> None:
    commands.begin(command)
    for words, fields in CHANGES[command]:
        resumed = commands.resume(command, *words)
        stored = read_study(commands.out(command) / COMMANDS[command]).options
        again = commands.resume(command)
        for options in (resumed, stored, again):
            assert {name: getattr(options, name) for name in fields} == fields


REFUSED = {
    "tune": [
        (["--seeds", "5"], "--seeds: the study has 2, 5 was given"),
        (["--seeds", "1"], "--seeds: the study has 2, 1 was given"),  # the default
        (["--seed", "0"], "--seed: the study has 3, 0 was given"),
        (["--space", "data_scaling"], "--space: the study has wikd, data_scaling was given"),
        (["--sampler", "tpe"], "--sampler: the study has random, tpe was given"),
        (["--scheduler", "none"], "--scheduler: the study has (not set), none was given"),
        (["--backend", "train"], "--backend: the study has process, train was given"),
        (["--register", "m"], "--register: the study has (not set), m was given"),
        (["--data", "other"], "--data: the study has DIGITS, "),
        (["--teacher", "other.pt"], "--teacher: the study has "),
        (["--set", "training.steps=25"], "training.steps: the study has 24, 25 was given"),
        (["--recipe", "digits-teacher"], "model.name: the study has siclip-nano, mobileclip-nano was given"),
    ],
    "train": [
        (["--register", "m"], "--register: the study has (not set), m was given"),
        (["--name", "other"], "--name: the study has train, other was given"),
        (["--set", "training.learning_rate=0.02"], "training.learning_rate: the study has 0.01, 0.02 was given"),
        (["--recipe", "RECIPE"], "training.learning_rate: the study has 0.01, 0.004 was given"),
        (["--checkpoints", "elsewhere"], "--checkpoints: the study has "),
    ],
    "demo": [
        (["--steps", "48"], "--steps: the study has 24, 48 was given"),  # the default
        (["--teacher-steps", "200"], "--teacher-steps: the study has (not set), 200 was given"),
        (["--space", "data_scaling"], "--space: the study has wikd, data_scaling was given"),
        (["--checkpoints", "elsewhere"], "--checkpoints: the study has "),
        (["--recipe", "RECIPE", "--set", "training.steps=30"], "training.steps: the study has 24, 30 was given"),
    ],
    "ablate": [
        (["--seeds", "3"], "--seeds: the study has 2, 3 was given"),
        (["--setting", "more"], "--setting: the study has pm, more was given"),
        (["wikd_ablation"], "STUDY: the study has "),
        (["--set", "loss.base=siglip"], "loss.base: the study has clip, siglip was given"),
    ],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_any_other_option_is_refused_with_both_values(command: str, commands: Commands) -> None:
    commands.begin(command)
    file = commands.out(command) / COMMANDS[command] / "study.json"
    before = file.read_text()
    for words, message in REFUSED[command]:
        with pytest.raises(UserError) as refused:
            commands.resume(
                command, *(word.replace("RECIPE", str(commands.folder / "recipe.yaml")) for word in words)
            )
        assert message.replace("DIGITS", str(commands.digits)) in str(refused.value)
        assert str(refused.value).endswith("omit them to resume it, or begin a new study without --resume")
    assert file.read_text() == before


def test_every_difference_is_listed(commands: Commands) -> None:
    commands.begin("tune")
    with pytest.raises(UserError) as refused:
        commands.resume(
            "tune", "--seeds", "5", "--space", "data_scaling", "--trials", "9", "--set", "training.steps=25"
        )
    assert str(refused.value).splitlines() == [
        "study wikd was begun with other options:",
        "  --seeds: the study has 2, 5 was given",
        "  --space: the study has wikd, data_scaling was given",
        "  training.steps: the study has 24, 25 was given",
        "omit them to resume it, or begin a new study without --resume",
    ]


def test_a_study_is_resumed_by_the_command_that_began_it(commands: Commands) -> None:
    commands.begin("demo")
    commands.monkeypatch.setattr(commands, "out", lambda command: commands.folder / "demo")
    with pytest.raises(UserError, match=r"begun by siclip-platform demo, not tune: resume it with .* demo --resume"):
        commands.resume("tune")


def test_the_space_of_a_study_is_its_copy_even_if_the_file_changes(commands: Commands) -> None:
    space = commands.folder / "mine.yaml"
    text = (JOBS.parent / "search_spaces" / "wikd.yaml").read_text()
    space.write_text(text)
    commands("tune", *commands.first("tune"), "--space", str(space))
    commands.resume("tune", "--space", str(space))
    commands.resume("tune", "--space", "wikd")  # the same text
    space.write_text(text + "# changed\n")
    commands.resume("tune")
    with pytest.raises(UserError, match=r"--space: the study has an earlier text of .*, .* as it is now was given"):
        commands.resume("tune", "--space", str(space))


def test_an_ablation_of_the_version_before_is_refused(commands: Commands) -> None:
    commands.begin("ablate")
    folder = commands.out("ablate") / "small"
    (folder / "ablation.yaml").unlink()
    with pytest.raises(UserError, match=r"lacks ablation\.yaml: the version that began small did not store it"):
        commands.resume("ablate")


def test_checkpoints_that_were_moved_are_found_again(commands: Commands) -> None:
    commands.begin("demo")
    (commands.folder / "kept").rename(commands.folder / "moved")
    resumed = commands.resume("demo", "--checkpoints", str(commands.folder / "moved"))
    assert resumed.checkpoints == commands.folder / "moved"
    file = commands.folder / "moved" / "wikd" / "study.json"
    content = json.loads(file.read_text())
    assert content["options"]["checkpoints"] == str(commands.folder / "moved")

    another = commands.folder / "another" / "wikd"
    another.mkdir(parents=True)
    (another / "study.json").write_text(json.dumps(content | {"key": "another"}))
    with pytest.raises(UserError, match="--checkpoints: the study has"):
        commands.resume("demo", "--checkpoints", str(another.parent))
