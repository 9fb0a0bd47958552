"""Write the report: one self-contained HTML file, a Markdown twin with plots as PNG, and all data as CSV."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from siclip.errors import UserError
from siclip_platform.report.draw import markdown
from siclip_platform.report.draw.blocks import Part
from siclip_platform.report.draw.csv_files import table_rows, write_csv
from siclip_platform.report.draw.plotly_figures import figure
from siclip_platform.report.draw.png import draw_png
from siclip_platform.report.read.query import Selection, read_studies
from siclip_platform.report.read.runs import Study
from siclip_platform.report.read.store import Store
from siclip_platform.report.sections.advice import Step, next_steps
from siclip_platform.report.sections.parts import make_parts, overview
from siclip_platform.report.sections.statement import statement
from siclip_platform.storage.atomic import write_text_atomically

FILES = "report_files"


@dataclass(frozen=True)
class Result:
    """What a study shows, as its report says it.

    Attributes:
        statement: A few sentences.
        next: What to do next.
        page: MLflow's table of the study's runs, if the store has pages.
    """

    statement: tuple[str, ...]
    next: Step | None
    page: str | None

    @classmethod
    def of(cls, study: Study) -> Result:
        """The result of a study."""
        return cls(tuple(statement(study)), next(iter(next_steps(study)), None), study.page)


def read_result(tracking_uri: str, study: str, mlflow_url: str | None = None) -> Result:
    """The result of a study of this name, without a report.

    Raises:
        UserError: The store cannot be read, or does not have the study.
    """
    (found,) = read_studies(Store(tracking_uri, mlflow_url), Selection(studies=(study,)))
    return Result.of(found)


@dataclass(frozen=True)
class ReportPaths:
    """The files of a report.

    Attributes:
        files: The folder with ``plots/*.png`` and ``data/*.csv``.
        running: Whether any study of the report is still running.
        result: The result of the first study; None without a study.
    """

    html: Path
    markdown: Path
    files: Path
    running: bool = False
    result: Result | None = None


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
    """Write ``report.html``, ``report.md`` and ``report_files/`` into ``out_dir``, replacing older ones.

    Args:
        tracking_uri: The MLflow tracking store to read.
        out_dir: The output folder; it is created if needed.
        study: Names of the studies to report (default: the newest study). Ignored with ``selection``.
        experiment: Name of the MLflow experiment (default: all). Ignored with ``selection``.
        selection: Studies and runs to report, selected in any other way.
        mlflow_url: URL of MLflow's pages, for links to runs (default: the tracking server).
        log_artifacts: Also log all files to each study's run, under ``report/``.
        watch_seconds: The page of a running study reloads itself at this interval; 0 for never.

    Raises:
        UserError: The store, experiment, study or run does not exist, the files cannot be written to ``out_dir``, or
            the store rejects the artifacts.
    """
    names = () if study is None else (study,) if isinstance(study, str) else tuple(study)
    chosen = selection or Selection(studies=names, experiment=experiment)
    store = Store(tracking_uri, mlflow_url)
    studies = read_studies(store, chosen)
    running = any(each.run.state == "running" for each in studies)
    found = Result.of(studies[0]) if studies else None
    paths = ReportPaths(out_dir / "report.html", out_dir / "report.md", out_dir / FILES, running, found)
    parts = make_parts(studies)
    page = render_html(studies, parts, watch_seconds if running else 0)
    twin = render_markdown(studies, parts)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        _write_files(paths.files, studies, parts)
        # Atomically: a browser may be loading the old page.
        write_text_atomically(paths.html, page)
        write_text_atomically(paths.markdown, twin)
    except OSError as error:
        raise UserError(f"cannot write the report to {out_dir}: {error}; choose another folder") from None
    if log_artifacts:
        _log(store, studies, paths)
    return paths


def render_html(studies: Sequence[Study], parts: Sequence[Part], watch_seconds: int = 0) -> str:
    """Render the page. The template escapes everything that comes from the store."""
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
        # A closing tag inside a string of the library would end the page's script element.
        plotly=get_plotlyjs().replace("</script", r"<\/script") if figures else "",
    )


def render_markdown(studies: Sequence[Study], parts: Sequence[Part]) -> str:
    """Render the Markdown twin."""
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
    return ["The tracking store has no runs. Start a study with `siclip-platform tune`, then report it again."]


def _write_files(folder: Path, studies: Sequence[Study], parts: Sequence[Part]) -> None:
    """Write plots and data to a temporary folder, then replace the old one."""
    # Beside the target, because a rename works only within one filesystem.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".report-") as name:
        staged = Path(name) / FILES
        (staged / "plots").mkdir(parents=True)
        (staged / "data").mkdir()
        for part in parts:
            for plot in part.drawn:
                draw_png(plot, staged / "plots" / f"{plot.key}.png")
                write_csv(staged / "data" / f"{plot.key}.csv", plot.rows())
        for table in [*overview(studies), *(table for part in parts for table in part.tables)]:
            write_csv(staged / "data" / f"{table.key}.csv", table_rows(table))
        if folder.is_symlink() or folder.is_file():
            raise OSError(f"{folder} is not a folder")
        if folder.exists():
            shutil.rmtree(folder)
        staged.replace(folder)


def _log(store: Store, studies: Sequence[Study], paths: ReportPaths) -> None:
    targets = [each.run.run_id for each in studies if each.run.run_id]
    if not targets:
        raise UserError("the report has no study whose run it could be logged to: omit --log-artifacts")
    try:
        for run_id in targets:
            for path in (paths.html, paths.markdown):
                store.client.log_artifact(run_id, str(path), "report")
            store.client.log_artifacts(run_id, str(paths.files), f"report/{FILES}")
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the store rejected the report as an artifact: {reason}; omit --log-artifacts") from None
