"""Shell commands for a study, built from the command that began it."""

from __future__ import annotations

import shlex

from siclip_platform.report.read.runs import Study

PROGRAM = "siclip-platform"
JOBS = {"tune_wikd.py": "demo", "ablate_siclip.py": "ablate", "train_siclip.py": "train"}
LEADING_RECIPE = "leading_recipe"
"""The tag of a study's run that names the recipe file of its leading setting."""


def resume(study: Study, *options: str) -> str:
    """Resume the study, with further options; only the folder is repeated from the command that began it."""
    words = _words(study)
    begin = words[:2] or [PROGRAM, "ablate" if study.type == "ablation" else "tune"]
    out = _option(words, "--out")
    return shlex.join([*begin, "--resume", study.name, *(["--out", out] if out else []), *options])


def again(study: Study, option: str, value: str) -> str:
    """The command that began the study with another value of an option; empty if the store does not have it."""
    words = _words(study)
    if not words or "--resume" in words:
        return ""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == option:
            next(rest, None)
        elif not word.startswith(f"{option}="):
            kept.append(word)
    return shlex.join([*kept, option, value])


def train_leading(study: Study, steps: int) -> str:
    """Train the leading setting alone for a number of steps; empty if the store does not name its recipe file."""
    recipe = study.run.tag(LEADING_RECIPE)
    if not recipe:
        return ""
    return shlex.join([PROGRAM, "train", "--recipe", recipe, "--set", f"training.steps={steps}"])


def _words(study: Study) -> list[str]:
    """The recorded command as words, a job as its subcommand; empty if none of ours is recorded."""
    try:
        words = shlex.split(study.run.tag("command") or "")
    except ValueError:
        return []
    if len(words) > 1 and words[0] == "python":
        job = JOBS.get(words[1].rpartition("/")[2])
        words = [PROGRAM, job, *words[2:]] if job else []
    return words if len(words) > 1 and words[0] == PROGRAM else []


def _option(words: list[str], option: str) -> str | None:
    for index, word in enumerate(words):
        if word == option and index + 1 < len(words):
            return words[index + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None
