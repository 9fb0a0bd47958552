"""Writes the command reference while the site is built, from the commands themselves."""

from __future__ import annotations

from typing import Any

from mkdocs.structure.files import File, Files


def on_files(files: Files, config: Any) -> Files:
    """Add ``reference/commands.md``."""
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    return files


def commands() -> str:
    """Every command with its help, arguments and options, as Markdown."""
    import typer.main

    from siclip_platform.cli import app

    return "# Commands\n\n" + "".join(_pages(typer.main.get_command(app), "siclip-platform"))


def _pages(command: Any, name: str) -> list[str]:
    if hasattr(command, "commands"):
        return [page for sub in sorted(command.commands) for page in _pages(command.commands[sub], f"{name} {sub}")]
    rows = [row for parameter in command.params if (row := _row(parameter))]
    table = "| option | default | |\n| --- | --- | --- |\n" + "".join(rows) if rows else ""
    return [f"## {name}\n\n{_text(command.help or '')}\n\n{table}\n\n"]


def _row(parameter: Any) -> str:
    if getattr(parameter, "hidden", False) or parameter.name == "help":
        return ""
    names = ", ".join(f"`{name}`" for name in parameter.opts) if parameter.opts[0].startswith("-") else ""
    label = names or f"`{parameter.name.upper()}`"
    default = "" if parameter.default is None or callable(parameter.default) else f"`{parameter.default}`"
    return f"| {label} | {_text(default)} | {_text(getattr(parameter, 'help', None) or '')} |\n"


def _text(text: str) -> str:
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.replace("\b", "").split("\n\n")]
    return "\n\n".join(paragraph.replace("|", "\\|").replace("<", "&lt;") for paragraph in paragraphs)
