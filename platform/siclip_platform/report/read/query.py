"""Select the studies and runs of a report and read them from a tracking store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from siclip.errors import UserError
from siclip_platform.metrics import metric_name
from siclip_platform.report.read import items
from siclip_platform.report.read.history import with_curves
from siclip_platform.report.read.runs import MEAN_RECALL, Run, Study, StudyType
from siclip_platform.report.read.store import Store, json_list, listed

DATA_SUMMARY = "data_summary.json"
NO_TRIAL_TAG = "The best run does not record which trial it retrains."


@dataclass(frozen=True)
class Selection:
    """Which studies and runs to report; an empty selection means the newest study.

    Attributes:
        studies: Names or run ids of studies.
        runs: Names, run ids, or prefixes of run ids.
        tags: ``NAME=VALUE``; the prefix ``siclip.`` may be omitted from a name.
        search: An MLflow filter string.
        experiment: Name of the MLflow experiment to search; None searches all.
    """

    studies: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    search: str | None = None
    experiment: str | None = None

    @property
    def empty(self) -> bool:
        return not (self.studies or self.runs or self.tags or self.search)


def read_studies(store: Store, selection: Selection) -> tuple[Study, ...]:
    """Return the selected studies with all their runs.

    Selected runs that are in none of these studies form one more study, of type ``runs``. With an empty selection
    and no study in the store, that holds all top-level runs. The result is empty only if the store has no runs.

    Raises:
        UserError: An experiment, study, run, tag or search matches nothing; the message lists what exists.
    """
    experiments = store.experiment_ids(selection.experiment)
    # Newest first: the store returns the oldest first.
    studies = store.search(experiments, "tags.`siclip.kind` = 'study'")[::-1]
    if selection.empty:
        chosen, loose = studies[:1], []
        if not studies:
            loose = [run for run in store.search(experiments) if run.parent is None]
    else:
        found = _selected(store, experiments, studies, selection)
        chosen = [run for run in found if run.kind == "study"]
        parents = {run.run_id for run in chosen}
        loose = [run for run in found if run.kind != "study" and run.parent not in parents]
    result = [_study(store, run) for run in chosen]
    return (*result, *([_loose(store, loose)] if loose else []))


def find_runs(store: Store, names: Sequence[str], experiment: str | None = None) -> list[Run]:
    """Return one run for each run id, prefix of a run id (at least six characters), trial id or run name.

    Raises:
        UserError: A name matches no run or several runs.
    """
    everything = store.search(store.experiment_ids(experiment))
    return [_find_run(everything, name) for name in names]


def _find_run(runs: list[Run], name: str) -> Run:
    # From exact to loose: an id must win over a run that somebody named like it. Prefixes below six characters would
    # match too many ids.
    tests: tuple[Callable[[Run], bool], ...] = (
        lambda run: run.run_id == name,
        lambda run: len(name) >= 6 and run.run_id.startswith(name),
        lambda run: name in (run.name, run.tag("trial")),
    )
    for test in tests:
        found = [run for run in runs if test(run)]
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(run.run_id for run in found[:8])
            raise UserError(f"{len(found)} runs match {name!r}: select one by its run id ({ids})")
    recent = listed(f"{run.name} ({run.run_id[:8]})" for run in runs[:-9:-1])
    raise UserError(f"no run {name!r} in this tracking store; the newest runs are {recent}")


def _selected(store: Store, experiments: list[str], studies: list[Run], selection: Selection) -> list[Run]:
    found = [_named(studies, name) for name in selection.studies]
    if selection.runs:
        everything = store.search(experiments)
        found += [_find_run(everything, name) for name in selection.runs]
    for tag in selection.tags:
        found += _tagged(store, experiments, tag)
    if selection.search:
        matching = store.search(experiments, selection.search)
        if not matching:
            raise UserError(
                f"no run matches the search {selection.search!r}: use a broader filter, or check --experiment"
            )
        found += matching
    return list({run.run_id: run for run in found}.values())


def _named(studies: list[Run], name: str) -> Run:
    for run in studies:
        if name in (run.tag("study") or run.name, run.run_id):
            return run
    names = dict.fromkeys(run.tag("study") or run.name for run in studies)
    raise UserError(f"no study {name!r} in this tracking store: it has {listed(names)}")


def _tagged(store: Store, experiments: list[str], text: str) -> list[Run]:
    name, equals, value = text.partition("=")
    if not equals or not name or "`" in name:
        raise UserError(f"tag {text!r}: write NAME=VALUE, for example question=sharing")
    for key in (f"siclip.{name}", name):
        # The value is compared here, not in the filter: a value with quotes cannot be written in MLflow's grammar.
        runs = [run for run in store.search(experiments, f"tags.`{key}` LIKE '%'") if run.tags.get(key) == value]
        if runs:
            studies = [run for run in runs if run.kind == "study"]
            return studies or runs
    raise UserError(f"no run has the tag {name} = {value!r}: check the tags in MLflow, or --experiment")


def _study(store: Store, run: Run) -> Study:
    children = store.search([run.experiment_id], f"tags.`mlflow.parentRunId` = '{run.run_id}'")
    trials = [child for child in children if child.kind == "trial"]
    ids = {trial.run_id for trial in trials}
    # A filter cannot list parents, so all seed runs of the experiment are read and selected below.
    seeds = store.search([run.experiment_id], "tags.`siclip.kind` = 'seed'")
    metric = run.params.get("study.metric")
    study = Study(
        run=run,
        experiment=store.experiments.get(run.experiment_id, run.experiment_id),
        type=_type(run),
        metric=metric_name(metric) if metric else MEAN_RECALL,
        mode=run.params.get("study.mode", "max"),
        searched=tuple(str(path) for path in json_list(run.tag("searched"))),
        trials=tuple(trials),
        seeds=tuple(child for child in seeds if child.parent in ids),
        confirms=tuple(child for child in children if child.kind == "confirm"),
        teachers=tuple(sorted(_of(children, "teacher"), key=lambda child: child.state != "completed")),
        best=_chosen(_of(children, "best")),
        control=_chosen(_of(children, "control")),
    )
    data = (store.text_artifact(candidate, DATA_SUMMARY) for candidate in _with_artifacts(study))
    study = replace(
        study,
        notes=_notes(study, children),
        data=next((text for text in data if text), None),
        items=store.text_artifact(run, items.NAME),
        page=store.runs_page(run, study.name, study.metric, study.mode),
    )
    return with_curves(store, study)


def _type(run: Run) -> StudyType:
    return "ablation" if run.tag("study_type") == "ablation" else "search"


def _of(children: Iterable[Run], kind: str) -> list[Run]:
    return [child for child in children if child.kind == kind]


def _chosen(runs: list[Run]) -> Run | None:
    """Of several runs of one role the completed one that was not superseded, and of equals the newest."""
    if not runs:
        return None

    def rank(item: tuple[int, Run]) -> tuple[bool, bool, int]:
        index, run = item
        return run.state == "completed", not run.tag("superseded_by"), index

    return max(enumerate(runs), key=rank)[1]


def _with_artifacts(study: Study) -> list[Run]:
    """Runs to search for a data summary, in order: study, best, a confirmation, teacher and two others."""
    single = [run for run in (study.best, *study.confirms[:1], study.teacher, *study.leaves[:2]) if run]
    return [study.run, *single]


def _notes(study: Study, children: Sequence[Run]) -> tuple[str, ...]:
    notes: list[str] = []
    if "study.metric" not in study.run.params:
        notes.append(f"The study does not record its metric; {MEAN_RECALL} is shown.")
    if study.type == "search" and not study.searched:
        notes.append("The study does not record which parameters it searched.")
    if not study.trials:
        notes.append("The study has no trials.")
    if study.type == "search":
        for kind in ("teacher", "best", "control"):
            same = _of(children, kind)
            if not same:
                notes.append(f"The study has no {kind} run.")
            elif len(same) > 1:
                notes.append(
                    f"The study has {len(same)} {kind} runs; the report uses the newest, preferring completed ones."
                )
        if study.best is not None and study.best_trial is None:
            tag = study.best.tag("best_trial")
            notes.append(f"The best run names trial {tag!r}, which is not in the study." if tag else NO_TRIAL_TAG)
    elif study.baseline is None:
        notes.append("The ablation does not record which setting is its baseline.")
    elif study.baseline not in {trial.label for trial in study.trials}:
        notes.append(f"The baseline {study.baseline!r} has no run in the store.")
    return tuple(notes)


def _loose(store: Store, runs: list[Run]) -> Study:
    """Selected runs of no study, as the trials of a study of type ``runs``."""
    metric = next((name for name in _metric_order(runs)), MEAN_RECALL)
    first = runs[0]
    frame = Run(
        run_id="",
        name="chosen runs" if len(runs) > 1 else first.name,
        kind="runs",
        state="completed" if all(run.state == "completed" for run in runs) else "not all completed",
        started=min((run.started for run in runs if run.started), default=None),
        # Tags that all runs share (commit, dataset) describe the selection as a whole.
        tags={key: value for key, value in first.tags.items() if all(run.tags.get(key) == value for run in runs)}
        | {"siclip.study": "chosen runs"},
    )
    paths = sorted({path for run in runs for path in run.params})
    differing = tuple(path for path in paths if len({run.params.get(path) for run in runs}) > 1)
    experiment = ", ".join(dict.fromkeys(store.experiments.get(run.experiment_id, "") for run in runs))
    summary = next((text for run in runs[:8] if (text := store.text_artifact(run, DATA_SUMMARY))), None)
    study = Study(
        run=frame,
        experiment=experiment,
        type="runs",
        metric=metric,
        trials=tuple(runs),
        searched=differing,
        data=summary,
    )
    return with_curves(store, study)


def _metric_order(runs: list[Run]) -> list[str]:
    """Metrics that the runs can be shown by, the preferred one first."""
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    preferred = [MEAN_RECALL, "test/mean_recall@1"]
    return [
        *(n for n in preferred if n in names),
        *(n for n in names if n.startswith(("validation/", "test/", "eval/"))),
    ]
