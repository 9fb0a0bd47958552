"""The end of a study: its report, and what is printed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from siclip.errors import UserError
from siclip_platform.cluster.interrupt import Interrupted
from siclip_platform.studies.experiment import LEADING
from siclip_platform.tracking.pages import LOCAL, runs_page

if TYPE_CHECKING:
    from siclip_platform.report import ReportPaths, Result
    from siclip_platform.search.result import StudyResult
    from siclip_platform.studies.experiment import Experiment
    from siclip_platform.studies.final_runs import Finished

MEASURED = ("mean_recall@1", "image_retrieval_recall@1", "text_retrieval_recall@1", "beats_all_negatives")
COSTS = {
    "cost/steps": "steps",
    "cost/parameters_trainable": "parameters trained",
}
SHOWN = {"best": "leading"}  # nothing is called best before fresh seeds have shown it


def study_report(experiment: Experiment) -> ReportPaths:
    """Write the report of a study that is complete."""
    from siclip_platform.report import write_report

    try:
        return write_report(experiment.tracker.uri, experiment.options.out, study=experiment.name)
    except KeyboardInterrupt:
        command = f"siclip-platform report --study {experiment.name} --out {experiment.options.out}"
        experiment.display.say(f"stopped; the study is complete. To write its report: {command}")
        raise Interrupted from None


def print_summary(
    experiment: Experiment, study: StudyResult, finished: Mapping[Any, Finished], report: ReportPaths
) -> None:
    """Print the report's statement, the leading setting, the finished models, the next step and where to look."""
    say = experiment.display.say
    say("")
    print_statement(experiment, study, report.result)
    experiment.display.table(_finished_table(experiment.final_split, finished))
    print_next(experiment, report.result)
    print_addresses(experiment, study.metric)
    say(f"Report:  {report.html}")


def print_search(experiment: Experiment, study: StudyResult) -> None:
    """Print the result of a search that trains nothing after it: as `print_summary`, without a report."""
    from siclip_platform.report import read_result

    say, out = experiment.display.say, experiment.options.out
    try:
        result = read_result(experiment.tracker.uri, experiment.name)
    except UserError as error:
        # The search is complete: that the store cannot be read now must not make it fail.
        say(f"what the search gained cannot be read from MLflow now: {error}")
        result = None
    print_statement(experiment, study, result)
    say(f"Train:   siclip-platform train --recipe {experiment.folder / LEADING}")
    print_next(experiment, result)
    print_addresses(experiment, study.metric)
    say(f"Report:  siclip-platform report --study {experiment.name} --out {out}")


def print_statement(experiment: Experiment, study: StudyResult, result: Result | None) -> None:
    """Print what the study gained, as in its report, and the leading setting."""
    say = experiment.display.say
    for line in result.statement if result else ():
        say(line)
    best = study.best
    say(f"Setting of {best.trial_id}, which leads {len(study.trials)} trials:")
    for path, value in best.values.items():
        say(f"  {path}: {value:.4g}" if isinstance(value, float) else f"  {path}: {value}")


def print_next(experiment: Experiment, result: Result | None) -> None:
    """Print the next step of the report, with the command that does it."""
    if result is None or result.next is None:
        return
    experiment.display.say(f"Next:    {result.next}")
    for line in result.next.command.splitlines():
        experiment.display.say(f"         {line}")


def print_addresses(experiment: Experiment, metric: str) -> None:
    """Print where MLflow has the study: its store, and the table of its runs, sorted by the metric."""
    say, address = experiment.display.say, experiment.tracker.address
    remote = address.startswith("http")
    say(f"MLflow:  {address}")
    if not remote:
        say(f"Look:    mlflow ui --backend-store-uri {address}")
    # A server that has not answered yet has given the experiment no number.
    if known := experiment.tracker.known_experiment:
        say(f"Runs:    {runs_page(address if remote else LOCAL, known, experiment.name, metric)}")


def _finished_table(split: str, finished: Mapping[Any, Finished]) -> Table:
    from siclip_platform.report.draw.values import metric_label

    table = Table(title=f"{split.capitalize()} split, one seed")
    table.add_column("")
    for kind in finished:
        table.add_column(SHOWN.get(kind, kind), justify="right")
    names = {f"{split}/{name}": metric_label(f"{split}/{name}") for name in MEASURED}
    for name, title in (names | COSTS).items():
        table.add_row(title, *(_show(name, run.metrics.get(name)) for run in finished.values()))
    return table


def _show(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if name in COSTS else f"{100 * value:.1f} %"
