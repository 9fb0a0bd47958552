"""How to reproduce the study: commands, commit, versions and hashes."""

from __future__ import annotations

import shlex
from importlib.metadata import PackageNotFoundError, version

from siclip_platform.report.draw.blocks import Code, Section, Text
from siclip_platform.report.draw.values import Cell, Table, text_cell
from siclip_platform.report.read.runs import Run, Study

HASHES = ("git_commit", "dataset_hash", "teacher_hash", "recipe_hash")
PACKAGES = ("siclip-platform", "mlflow", "optuna", "plotly", "scipy")


def reproduce(study: Study) -> Section:
    """The commands that repeat the study, and what identifies its code and data."""
    versions = ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name)))
    return Section(
        "reproduce",
        "How to reproduce",
        [
            Code(command(study)),
            provenance(study),
            *_versions(study),
            Text(f"This report was made with {versions}.", soft=True),
        ],
    )


def command(study: Study) -> str:
    """Shell lines that repeat the study: its recorded command, else one built from its parameters."""
    # Quoted, because a reader pastes these lines into a shell and tags may come from any store.
    lines = []
    if commit := study.run.tag("git_commit"):
        lines.append(f"git checkout {shlex.quote(commit.removesuffix('-dirty'))}")
        if commit.endswith("-dirty"):
            lines.append("# the code that ran also had uncommitted changes")
    recorded = study.run.tag("command")
    if recorded:
        return "\n".join([*lines, recorded])
    if study.type != "search":
        return "\n".join([*lines, "# the runs do not record the command that started them"])
    arguments = ["siclip-platform", "tune"]
    for option in ("space", "trials", "seed"):
        value = study.run.params.get(f"study.{option}")
        arguments += [f"--{option}", value] if value is not None else []
    return "\n".join([*lines, shlex.join(arguments)])


def provenance(study: Study) -> Table:
    """Commit and hashes of data, teacher and recipe of each run that the report compares."""
    rows = []
    for run in _named(study):
        tags = [text_cell(run.tag(name)) for name in HASHES]
        rows.append([Cell(run.label, run.label, run.link), *tags, text_cell(run.run_id)])
    columns = ["run", "git commit", "dataset hash", "teacher hash", "recipe hash", "MLflow run"]
    return Table(
        key="provenance", title="Code, data and recipe", columns=columns, rows=rows, numeric=[False] * 6, limit=60
    )


def _named(study: Study) -> list[Run]:
    roles = [run for run in (study.best, study.control, study.teacher) if run]
    if study.type == "search":
        return [study.run, *roles]
    return [*([study.run] if study.run.run_id else []), *roles, *study.trials]


def _versions(study: Study) -> list[Table]:
    """Package versions that the study recorded in tags ``siclip.version.NAME``."""
    prefix = "siclip.version."
    found = {key.removeprefix(prefix): value for key, value in study.run.tags.items() if key.startswith(prefix)}
    if not found:
        return []
    rows = [[Cell(name, name), Cell(value, value)] for name, value in sorted(found.items())]
    return [
        Table(key="versions", title="Versions", columns=["package", "version"], rows=rows, numeric=[False, False]),
    ]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
