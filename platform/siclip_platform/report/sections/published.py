"""What runs measured on standard evaluation sets, beside the published figures of other models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from siclip_platform.report.draw.blocks import Section, Text
from siclip_platform.report.draw.values import Cell, Table
from siclip_platform.report.read.published import Published, PublishedModel
from siclip_platform.report.read.published import published as figures
from siclip_platform.report.read.runs import Run, Study

BLANK = Cell("–")
EXPLANATION = (
    "Published figures are copied from the sources named, in per cent; “–”: not given there. Behind each of them are "
    "other data, other code and other prompts: they say what to expect, not which method is better."
)


def published(study: Study) -> Section | None:
    """The runs with a figure on one of these sets, and the models with a published one; None without such runs."""
    found = figures()
    runs = [run for run in study.runs if any(run.value(each.metric) is not None for each in found.columns.values())]
    columns = [
        name for name, each in found.columns.items() if any(run.value(each.metric) is not None for run in runs)
    ]
    models = [each for each in found.models if each.figures.keys() & set(columns)]
    if not runs or not models:
        return None
    rows = [_run_row(run, found, columns) for run in runs] + [_row(each, found, columns) for each in models]
    table = Table(
        key="published",
        title="Beside published figures",
        columns=_headings(found, columns),
        rows=rows,
        numeric=[False, False, *[True] * len(columns), False],
        sortable=True,
        marked=frozenset(range(len(runs))),
    )
    return Section("published", "Beside published figures", [Text(EXPLANATION, soft=True), table])


def _headings(found: Published, columns: Iterable[str]) -> list[str]:
    return ["model", "trained on", *(found.columns[name].title for name in columns), "source"]


def _run_row(run: Run, found: Published, columns: Sequence[str]) -> list[Cell]:
    values = (run.value(found.columns[name].metric) for name in columns)
    measured = [BLANK if value is None else _percent(100 * value) for value in values]
    return [
        Cell(run.label, run.label, run.link),
        Cell(run.params.get("data.path", "–")),
        *measured,
        Cell("this store"),
    ]


def _row(model: PublishedModel, found: Published, columns: Iterable[str]) -> list[Cell]:
    source = found.sources[model.source]
    given = [_percent(model.figures[name]) if name in model.figures else BLANK for name in columns]
    return [Cell(model.model), Cell(model.data), *given, Cell(source.title, source.title, source.link)]


def _percent(value: float) -> Cell:
    return Cell(f"{value:.1f}", value)


def as_markdown(found: Published) -> str:
    """All figures as the table of docs/expect.md."""
    columns = list(found.columns)
    head = _headings(found, columns)
    rows = [head, ["---", "---", *["---:"] * len(columns), "---"]]
    for model in found.models:
        *cells, source = _row(model, found, columns)
        rows.append([*(cell.text for cell in cells), f"[{source.text}]({source.link})"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
