"""The commands in README and docs: extracted from the Markdown and parsed by the programs that they call."""

from __future__ import annotations

import argparse
import functools
import itertools
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main

from siclip_platform.cli import app
from siclip_platform.cli.experiments import read_recipe
from siclip_platform.plan.cards import find_card
from siclip_platform.recipes.load import SUFFIXES
from siclip_platform.spaces import load_space
from siclip_platform.spaces.ablation import load_ablation
from siclip_platform.studies.options import check_sharing

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md")))
PROGRAMS = ("siclip-platform", "python", "make", "ray", "mlflow", "pytest", "kubectl")
# Lines that set up a shell, and programs whose options are not checked.
SHELL = (".", "export", "curl", "rm", "ulimit")
# Commands that run a job.
JOBS = {"demo": "tune_wikd", "train": "train_siclip", "ablate": "ablate_siclip"}


@functools.cache
def main_command() -> Any:
    """`siclip-platform` as a click command."""
    return typer.main.get_command(app)


@functools.cache
def job_parser(name: str) -> Any:
    return typer.main.get_command(runpy.run_path(str(ROOT / "jobs" / f"{name}.py"))["app"])


@dataclass(frozen=True)
class Command:
    """A command line in a document.

    Attributes:
        document: the document.
        words: of the command line.
        mention: it is inside a sentence, where it may be incomplete; only the command and its options are checked.
    """

    document: str
    words: tuple[str, ...]
    mention: bool

    @property
    def subject(self) -> str:
        """The command without arguments: `siclip-platform data import`, `python benchmarks/plan.py`, `make demo`."""
        program = self.words[0].removeprefix(".venv/bin/")
        if program == "siclip-platform":
            return " ".join([program, *_path(main_command(), self.words[1:])])
        words = [word for word in self.words[1:] if program != "make" or "=" not in word]
        count = 2 if program in ("ray", "mlflow") and words[0] in ("job", "models") else 1
        return " ".join([program, *words[:count]])


def commands(document: str) -> list[Command]:
    """Every command in a document: each line of its `sh` blocks, and inline code that starts with a program."""
    text = (ROOT / document).read_text(encoding="utf-8")
    fenced = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    found = []
    for language, code in fenced.findall(text):
        if language == "sh":
            for line in code.replace("\\\n", " ").splitlines():
                found += [Command(document, words, False) for words in _split(line)]
    for code in re.findall(r"`([^`\n]+)`", fenced.sub("", text)):
        program, *more = code.split() or [""]
        if program.removeprefix(".venv/bin/") in PROGRAMS and more:
            found += [Command(document, words, True) for words in _split(code)]
    return found


def _split(line: str) -> Iterator[tuple[str, ...]]:
    for part in line.split("&&"):
        words = tuple(shlex.split(part, comments=True))
        if words:
            yield words


def check(command: Command) -> None:
    """Parse the command with its program's own parser.

    Raises:
        AssertionError, click's UsageError, UserError: it would not run.
    """
    program, *arguments = command.words
    program = program.removeprefix(".venv/bin/")
    assert program in (*PROGRAMS, *SHELL), f"{program}: no test parses its command lines"
    functions = (_siclip_platform, _script, _make, _ray, _mlflow, _pytest, _kubectl)
    checks: dict[str, Callable[[Sequence[str], bool], None]] = dict(zip(PROGRAMS, functions, strict=True))
    if program in checks:
        checks[program](arguments, command.mention)


def _path(group: Any, words: Sequence[str]) -> list[str]:
    """The leading words that name a (nested) command."""
    command = group.get_command(None, words[0]) if words and hasattr(group, "commands") else None
    return [words[0], *_path(command, words[1:])] if command else []


def _read(group: Any, words: Sequence[str], mention: bool) -> dict[str, Any]:
    """The parameters that click parses from a command line; empty for a mention."""
    path = _path(group, words)
    for name in path:
        group = group.get_command(None, name)
    assert not hasattr(group, "commands"), f"no command {' '.join(words)}"
    rest = list(words[len(path) :])
    if mention:
        known = {option for parameter in group.params for option in (*parameter.opts, *parameter.secondary_opts)}
        unknown = {word.partition("=")[0] for word in rest if word.startswith("--")} - known
        assert not unknown or group.ignore_unknown_options, f"{' '.join(path)} has no {', '.join(unknown)}"
        return {}
    context = group.make_context(path[-1] if path else "", rest)
    return {**context.params, "rest": context.args}


def _siclip_platform(words: Sequence[str], mention: bool) -> None:
    if words[0] in JOBS:
        _job(JOBS[words[0]], words[1:], mention)
        return
    values = _read(main_command(), words, mention)
    if values and words[0] in ("submit", "job"):
        _job(values.get("job") or values["name"], values["rest"], mention)
    _check_values(values)


def _job(name: str, words: Sequence[str], mention: bool) -> None:
    _check_values(_read(job_parser(name), words, mention))


def _check_values(values: dict[str, Any]) -> None:
    """Check values that are any string to the parser and that the command looks up."""
    sharing = check_sharing("siclip-nano")
    recipe = values.get("recipe")
    if recipe and "changes" in values and Path(recipe).suffix not in SUFFIXES:
        read_recipe(recipe, values["data"], values["teacher"], list(values["changes"] or []))
    if values.get("card"):
        find_card(values["card"])
    if values.get("ablation") and "settings" in values:
        load_ablation(values["ablation"], check_value=sharing)
    if "trials" in values and values.get("space") and not values["space"].endswith(".yaml"):
        load_space(values["space"], check_value=sharing)


class _Parsed(Exception):
    """Ends a script after argparse has parsed its command line."""


def _script(words: Sequence[str], mention: bool) -> None:
    if words[0] == "-c":
        return
    script = ROOT / words[0]
    assert script.is_file(), f"no script {words[0]}"
    if script.parent.name == "jobs":
        _job(script.stem, words[1:], mention)
        return
    real = argparse.ArgumentParser.parse_args

    def parse(parser: argparse.ArgumentParser, given: Any = None, namespace: Any = None) -> None:
        real(parser, list(words[1:]))
        raise _Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        patch.setattr(sys, "argv", [str(script), *words[1:]])
        patch.syspath_prepend(str(script.parent))
        with pytest.raises(_Parsed):
            runpy.run_path(str(script), run_name="__main__")


def _make(words: Sequence[str], mention: bool) -> None:
    make = shutil.which("make")
    assert make
    done = subprocess.run([make, "-n", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _ray(words: Sequence[str], mention: bool) -> None:
    from ray.scripts.scripts import cli

    values = _read(cli, words, mention)
    if entrypoint := values.get("entrypoint"):
        assert entrypoint[0] == "python"
        _script(entrypoint[1:], mention)
    for key in ("runtime_env", "cluster_config_file"):
        assert not values.get(key) or (ROOT / values[key]).is_file(), f"no file {values[key]}"


def _mlflow(words: Sequence[str], mention: bool) -> None:
    from mlflow.cli import cli

    _read(cli, words, mention)


def _pytest(words: Sequence[str], mention: bool) -> None:
    for word in words:
        assert word.startswith("-") or (ROOT / word).exists(), f"no test {word}"


def _kubectl(words: Sequence[str], mention: bool) -> None:
    for option, file in itertools.pairwise(words):
        assert option != "-f" or (ROOT / file).is_file(), f"no file {file}"
