"""Write the report: one HTML file that needs no network, and a Markdown twin beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from siclip_platform.errors import UserError
from siclip_platform.report import markdown, plots, summary, tables
from siclip_platform.report.query import Study, read_study
from siclip_platform.report.values import Table


@dataclass(frozen=True)
class ReportPaths:
    html: Path
    markdown: Path


def write_report(
    tracking_uri: str, out_dir: Path, *, study: str | None = None, experiment: str = "siclip"
) -> ReportPaths:
    """Write ``report.html`` and ``report.md`` into ``out_dir``, over older ones; study None takes the newest.

    Raises:
        UserError: the store, experiment or study does not exist, or ``out_dir`` cannot be a folder.
    """
    found = read_study(tracking_uri, study, experiment)
    paths = ReportPaths(out_dir / "report.html", out_dir / "report.md")
    pages = {paths.html: render_html(found), paths.markdown: render_markdown(found)}
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for path, text in pages.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the report into {out_dir}: {error}; name another folder") from None
    return paths


def render_html(study: Study) -> str:
    """The page; everything that came from the store is escaped by the template."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("siclip_platform.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = plots.plots(study)
    return environment.get_template("report.html.j2").render(
        title=_title(study),
        subtitle=_subtitle(study),
        tiles=summary.tiles(study),
        sentences=summary.sentences(study),
        notes=study.notes,
        setting=tables.best_setting(study),
        comparison=[table for table in (tables.comparison(study), tables.differences(study)) if table],
        trials=tables.trials(study),
        plots=[plot for plot in drawn if plot.key != "cost"],
        cost_plots=[plot for plot in drawn if plot.key == "cost"],
        costs=tables.costs(study),
        unfinished=tables.unfinished(study),
        provenance=tables.provenance(study),
        command=summary.command(study),
        plotly=get_plotlyjs().replace("</script", r"<\/script") if drawn else "",
    )


def render_markdown(study: Study) -> str:
    optional = tables.differences(study)
    content: list[Table] = [tables.best_setting(study), tables.comparison(study)]
    content += [optional] if optional else []
    content += [tables.trials(study), tables.costs(study), tables.unfinished(study), tables.provenance(study)]
    return markdown.document(
        title=_title(study),
        subtitle=_subtitle(study),
        sentences=summary.sentences(study),
        notes=study.notes,
        tables=content,
        command=summary.command(study),
    )


def _title(study: Study) -> str:
    return f"Study {study.name}"


def _subtitle(study: Study) -> str:
    started = f"{study.run.started:%Y-%m-%d %H:%M} UTC" if study.run.started else "at an unknown time"
    return f"MLflow experiment {study.experiment} · started {started} · state: {study.run.state}"
