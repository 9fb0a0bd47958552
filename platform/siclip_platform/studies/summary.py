"""The end of a study: its report, and what is printed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from siclip_platform.cluster.interrupt import Interrupted

if TYPE_CHECKING:
    from siclip_platform.report import ReportPaths
    from siclip_platform.search.result import StudyResult
    from siclip_platform.studies.experiment import Experiment
    from siclip_platform.studies.final_runs import Finished

MEASURED = {
    "mean_recall@1": "retrieval R@1, mean of both ways",
    "image_retrieval_recall@1": "text → image R@1",
    "text_retrieval_recall@1": "image → text R@1",
    "beats_all_negatives": "beats all one-attribute negatives",
}
COSTS = {
    "cost/steps": "steps",
    "cost/parameters_trainable": "parameters trained",
}


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
    """Print the best setting, best and control on the `final_split`, and where the store and the report are."""
    best = study.best
    say = experiment.display.say
    say(f"\nBest setting of {len(study.trials)} trials ({study.metric} {best.value:.3f} at step {best.steps}):")
    for path, value in best.values.items():
        say(f"  {path}: {value:.4g}" if isinstance(value, float) else f"  {path}: {value}")
    split = experiment.final_split
    table = Table(
        title=f"{split.capitalize()} split, one seed: a difference this size may be noise until it is repeated"
    )
    table.add_column("")
    for kind in finished:
        table.add_column(kind, justify="right")
    for name, title in ({f"{split}/{name}": title for name, title in MEASURED.items()} | COSTS).items():
        table.add_row(title, *(_show(run.metrics.get(name)) for run in finished.values()))
    experiment.display.table(table)
    say(f"MLflow:  {experiment.tracker.address}")
    say(f"Look:    mlflow ui --backend-store-uri {experiment.tracker.address}")
    say(f"Report:  {report.html}")


def _show(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 2 else f"{value:.3f}"
