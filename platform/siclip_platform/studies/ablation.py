"""An ablation: its teachers, its trials, and what it prints."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from siclip.errors import UserError
from siclip_platform.datasets.epochs import with_steps
from siclip_platform.recipes.recipe import Recipe
from siclip_platform.recipes.student import recipe_model
from siclip_platform.spaces.ablation import OWN_TEACHER, Ablation, Setting, load_ablation
from siclip_platform.studies.confirmation import confirm
from siclip_platform.studies.summary import print_addresses, print_next

if TYPE_CHECKING:
    from siclip_platform.report import ReportPaths
    from siclip_platform.search.result import StudyResult, TrialOutcome
    from siclip_platform.studies.experiment import Experiment


def named_ablation(name: str | None) -> Ablation:
    """The ablation that a command line names.

    Raises:
        UserError: it names none, or there is no such study file, or the file is wrong.
    """
    if name is None:
        raise UserError("name a study file, or a study to resume with --resume")
    return load_ablation(name)


def train_teachers(
    experiment: Experiment, ablation: Ablation, settings: Sequence[Setting], teaching: Recipe | None
) -> dict[str, Path]:
    """Train the teacher, if the study trains one, and the others that the settings name; name → checkpoint."""
    if teaching is None:
        return {}
    recipes = {OWN_TEACHER: teaching}
    for name in dict.fromkeys(setting.teacher for setting in settings if setting.teacher != OWN_TEACHER):
        recipes[f"{OWN_TEACHER}-{name}"] = with_steps(teaching.updated(ablation.teachers[name]))
    trained = experiment.train(recipes)
    return {name.removeprefix(f"{OWN_TEACHER}-"): run.checkpoint for name, run in trained.items()}


def setting_values(setting: Setting, teachers: Mapping[str, Path]) -> dict[str, Any]:
    """What a trial changes in the base recipe.

    Raises:
        UserError: ``teachers`` lacks the setting's teacher.
    """
    if setting.teacher == OWN_TEACHER:
        return dict(setting.values)
    if setting.teacher in teachers:
        return dict(setting.values) | {"teacher": str(teachers[setting.teacher])}
    raise UserError(
        f"setting {setting.name} needs the teacher {setting.teacher!r}: omit --recipe and --teacher so that it "
        "is trained, or choose other settings with --setting"
    )


def check_settings(settings: Sequence[Setting], base: Recipe, trains_teachers: bool) -> None:
    """Check before anything is computed that the base with each setting is a valid recipe and has its teacher.

    Raises:
        UserError: naming the setting.
    """
    for setting in settings:
        try:
            recipe = base.updated(setting.values)
            recipe_model(recipe)
        except UserError as error:
            raise UserError(f"setting {setting.name}: {error}") from None
        if trains_teachers:
            continue
        setting_values(setting, {})
        if not base.teacher and (recipe.model.inherit or recipe.loss.needs_teacher):
            raise UserError(f"setting {setting.name} needs a teacher, the recipe has none: name one with --teacher")


def run_ablation(
    experiment: Experiment,
    ablation: Ablation,
    settings: Sequence[Setting],
    base: Recipe,
    teachers: Mapping[str, Path],
    confirm: int = 0,
) -> StudyResult:
    """Train every setting with the same seeds; each is a trial, with its name and position as tags.

    Args:
        teachers: name → checkpoint, of `train_teachers`.
        confirm: number of fresh seeds with which the leading setting and the baseline are trained afterwards.
    """
    from siclip_platform.search.policy.searcher import SettingsSearch

    if OWN_TEACHER in teachers:
        base = base.updated({"teacher": str(teachers[OWN_TEACHER])})
    values = [setting_values(setting, teachers) for setting in settings]
    order = {_key(one): (s.name, index) for index, (s, one) in enumerate(zip(settings, values, strict=True))}

    def tags(trial: Mapping[str, Any]) -> dict[str, str]:
        name, index = order[_key(trial)]
        return {"setting": name, "setting_order": str(index)}

    result = experiment.study(
        base,
        title=f"{len(settings)} settings with {experiment.options.seeds} seeds",
        metric=ablation.metric,
        trials=len(settings),
        searcher=SettingsSearch(values, ablation.metric),
        tags=tags,
    )
    experiment.log_summary(result.best.checkpoint)
    confirm_ablation(experiment, ablation, settings, result, confirm)
    return result


def begin_ablation(
    experiment: Experiment,
    ablation: Ablation,
    settings: Sequence[Setting],
    base: Recipe,
    teaching: Recipe | None = None,
) -> None:
    """Describe the study and open its MLflow run, with the tags by which a report recognises an ablation."""
    varied = sorted({path for setting in settings for path in setting.values})
    tags = {
        "study_type": "ablation",
        "baseline": ablation.baseline,
        "searched": json.dumps(varied),
        **({"question": ablation.question} if ablation.question else {}),
    }
    params = {
        "study.metric": ablation.metric,
        "study.mode": "max",
        "study.trials": len(settings),
        "study.seeds": experiment.options.seeds,
    }
    experiment.describe("ablation", base, teaching)
    experiment.begin(base, params, tags)


def print_ablation(
    experiment: Experiment, ablation: Ablation, settings: Sequence[Setting], result: StudyResult, report: ReportPaths
) -> None:
    """Print a row per setting: the metric's mean over the seeds, and the difference to the baseline."""
    say = experiment.display.say
    by_name = trial_settings(settings, result)
    reference = by_name[ablation.baseline].value if ablation.baseline in by_name else float("nan")
    table = Table(title=f"{ablation.metric}, mean of {experiment.options.seeds} seeds; intervals: the report")
    table.add_column("setting")
    for title in ("metric", "against the baseline", "state"):
        table.add_column(title, justify="right")
    for setting in settings:
        trial = by_name.get(setting.name)
        if trial is not None:
            table.add_row(setting.label, f"{trial.value:.4f}", f"{trial.value - reference:+.4f}", trial.state)
    experiment.display.table(table)
    for line in report.result.statement if report.result else ():
        say(line)
    print_next(experiment, report.result)
    print_addresses(experiment, ablation.metric)
    say(f"Report:  {report.html}")


def _key(values: Mapping[str, Any]) -> str:
    return json.dumps(dict(values), sort_keys=True)


def confirm_ablation(
    experiment: Experiment, ablation: Ablation, settings: Sequence[Setting], result: StudyResult, seeds: int
) -> None:
    """Train the setting with the best mean and the ablation's baseline with fresh seeds."""
    if not seeds:
        return
    names = trial_settings(settings, result)
    done = {name: trial for name, trial in names.items() if trial.state == "completed" and math.isfinite(trial.value)}
    leader = max(done, key=lambda name: done[name].value, default=ablation.baseline)
    if leader == ablation.baseline or ablation.baseline not in done:
        why = "no setting is above the baseline" if leader == ablation.baseline else "the baseline did not complete"
        experiment.display.say(f"{why}: there is nothing to confirm")
        return
    best, rival = done[leader], done[ablation.baseline]
    confirm(experiment, best.recipe, rival.recipe, seeds, best.trial_id, setting=leader, against=ablation.baseline)


def trial_settings(settings: Sequence[Setting], result: StudyResult) -> dict[str, TrialOutcome]:
    """Setting → its trial, for trials that ended; trials are numbered in the order of the settings."""
    by_number = {int(trial.trial_id.rpartition("-")[2]): trial for trial in result.trials}
    return {setting.name: by_number[n] for n, setting in enumerate(settings) if n in by_number}
