"""Write the report: one HTML file that needs no network, a Markdown twin, its plots as PNG and all data as CSV."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from siclip.errors import UserError
from siclip_platform.report.draw import markdown
from siclip_platform.report.draw.csv_files import table_rows, write_csv
from siclip_platform.report.draw.plotly_figures import figure
from siclip_platform.report.draw.png import draw_png
from siclip_platform.report.parts import Part, make_parts, overview
from siclip_platform.report.read.query import Selection, read_studies
from siclip_platform.report.read.runs import Study
from siclip_platform.report.read.store import Store

FILES = "report_files"


@dataclass(frozen=True)
class ReportPaths:
    """``files``: the folder with ``plots/*.png`` and ``data/*.csv``. ``running``: whether a study has not ended."""

    html: Path
    markdown: Path
    files: Path
    running: bool = False


def write_report(
    tracking_uri: str,
    out_dir: Path,
    *,
    study: str | Sequence[str] | None = None,
    experiment: str | None = None,
    selection: Selection | None = None,
    mlflow_url: str | None = None,
    log_artifacts: bool = False,
    watch_seconds: int = 0,
) -> ReportPaths:
    """Write ``report.html``, ``report.md`` and ``report_files/`` into ``out_dir``, over older ones.

    ``selection`` says what of the store; without it the studies called ``study``, or the newest. ``mlflow_url``:
    where MLflow's pages are, for links to runs (default: the tracking server's). ``log_artifacts``: also log all
    files with each study's run, under ``report/``. ``watch_seconds``: the page of a running study loads itself again.

    Raises:
        UserError: the store, experiment, study or run does not exist, ``out_dir`` cannot be a folder, or the store
            does not take the artifacts.
    """
    names = () if study is None else (study,) if isinstance(study, str) else tuple(study)
    chosen = selection or Selection(studies=names, experiment=experiment)
    store = Store(tracking_uri, mlflow_url)
    studies = read_studies(store, chosen)
    running = any(each.run.state == "running" for each in studies)
    paths = ReportPaths(out_dir / "report.html", out_dir / "report.md", out_dir / FILES, running)
    parts = make_parts(studies)
    page = render_html(studies, parts, watch_seconds if running else 0)
    twin = render_markdown(studies, parts)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        _write_files(paths.files, studies, parts)
        _replace_text(paths.html, page)
        _replace_text(paths.markdown, twin)
    except OSError as error:
        raise UserError(f"cannot write the report into {out_dir}: {error}; name another folder") from None
    if log_artifacts:
        _log(store, studies, paths)
    return paths


def render_html(studies: Sequence[Study], parts: Sequence[Part], watch_seconds: int = 0) -> str:
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
    figures = {plot.key: figure(plot) for part in parts for plot in part.drawn}
    return environment.get_template("report.html.j2").render(
        title=_title(parts),
        subtitle=_subtitle(parts),
        opening=_opening(studies),
        overview=overview(studies),
        parts=parts,
        figures=figures,
        watch_seconds=watch_seconds,
        plotly=get_plotlyjs().replace("</script", r"<\/script") if figures else "",
    )


def render_markdown(studies: Sequence[Study], parts: Sequence[Part]) -> str:
    return markdown.document(_title(parts), _subtitle(parts), _opening(studies), overview(studies), parts, FILES)


def _title(parts: Sequence[Part]) -> str:
    if not parts:
        return "Nothing to report"
    return parts[0].title if len(parts) == 1 else f"{len(parts)} studies"


def _subtitle(parts: Sequence[Part]) -> str:
    return parts[0].subtitle if len(parts) == 1 else ", ".join(part.title for part in parts)


def _opening(studies: Sequence[Study]) -> list[str]:
    if studies:
        return []
    return [
        "The tracking store holds no runs: start a study with `siclip-platform tune`, then make the report again."
    ]


def _write_files(folder: Path, studies: Sequence[Study], parts: Sequence[Part]) -> None:
    """Plots and data, made beside the old folder and then put in its place."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".report-") as name:
        made = Path(name) / FILES
        (made / "plots").mkdir(parents=True)
        (made / "data").mkdir()
        for part in parts:
            for plot in part.drawn:
                draw_png(plot, made / "plots" / f"{plot.key}.png")
                write_csv(made / "data" / f"{plot.key}.csv", plot.rows())
        for table in [*overview(studies), *(table for part in parts for table in part.tables)]:
            write_csv(made / "data" / f"{table.key}.csv", table_rows(table))
        if folder.is_symlink() or folder.is_file():
            raise OSError(f"{folder} is not a folder")
        if folder.exists():
            shutil.rmtree(folder)
        made.replace(folder)


def _replace_text(path: Path, text: str) -> None:
    """Whole or not at all: a browser may be loading the old one."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _log(store: Store, studies: Sequence[Study], paths: ReportPaths) -> None:
    targets = [each.run.run_id for each in studies if each.run.run_id]
    if not targets:
        raise UserError("the report is of no study, so there is no run to log it with: leave --log-artifacts out")
    try:
        for run_id in targets:
            for path in (paths.html, paths.markdown):
                store.client.log_artifact(run_id, str(path), "report")
            store.client.log_artifacts(run_id, str(paths.files), f"report/{FILES}")
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the store does not take the report as an artifact: {reason}; leave --log-artifacts out"
        ) from None
