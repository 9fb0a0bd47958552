"""The gain from each part of WIKD: the student from scratch, then one more part at a time, at equal steps.

    python benchmarks/wikd_ablation.py --digits FOLDER --emoji FOLDER --out FOLDER --report FILE.md

Trains a teacher per dataset and every setting with every seed, stores finished runs in ``--out``, and writes a page
and its JSON. A repeated command trains only the missing runs. All settings have the same steps, batches, learning
rate and seeds; the seeds differ from those with which `pair_matching.py` chooses.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from study_report import (
    HARD,
    RECALL,
    estimate,
    mean_seconds,
    paired_difference,
    pipe_table,
    points,
    share,
    teacher_sentence,
    write_page,
)
from study_tools import (
    Run,
    RunStore,
    add_common_options,
    at_least,
    complete,
    make_run,
    open_datasets,
    open_store,
    teacher_runs,
    worker_pool,
)

from siclip.errors import UserError
from siclip_platform.datasets.manifest import Dataset
from siclip_platform.recipes.digits import digits_student
from siclip_platform.recipes.recipe import Recipe

FIRST_SEED = 2000
OFF: dict[str, dict[str, Any]] = {
    "baseline": {},
    "inheritance": {"model.inherit": False},
    "fd": {"loss.feature_distillation": 0.0},
    "crd": {"loss.contrastive_relational": 0.0},
    "icl": {"loss.interactive_contrastive": 0.0},
    # The student's recipe has no pair matching.
    "pm": {},
}
"""Setting, in the order in which parts are added → the fields that remove its part from the student's recipe."""
LABELS = {
    "baseline": "baseline: from scratch, contrastive",
    "inheritance": "+ inheritance, trunk frozen",
    "fd": "+ FD",
    "crd": "+ CRD",
    "icl": "+ ICL",
    "pm": "+ PM",
}
NOTES = """## How to read it

- Each setting adds one part to the previous one. `+ inheritance` trains with only the contrastive loss on the
  teacher's frozen trunk; the teacher's training is not included in the steps or seconds.
- Figures are in per cent on the test split: mean ± half of the 95 % t interval over seeds. *Beats all*: the image is
  closer to its caption than to each of its five false ones (chance 1 in 6).
- Differences are relative to the row above, in points, paired by seed, with the 95 % t interval of the paired
  difference; they are not corrected for the number of comparisons. All seeds share one teacher per dataset, so the
  intervals cover what the student's seed changes (weights, order, captions, sampled negatives), but not another
  teacher or other test images.
- All settings have the same learning rate, which is tuned for none of them."""


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    command = shlex.join(["python", "benchmarks/wikd_ablation.py", *arguments])
    try:
        datasets = open_datasets(options)
        with open_store(options.out) as store, worker_pool(options.jobs) as pool:
            teachers = teacher_runs(datasets, options)
            runs = [
                ablation_run(name, data, teachers[name], setting, seed, options)
                for seed in range(FIRST_SEED, FIRST_SEED + options.seeds)
                for name, data in datasets.items()
                for setting in options.settings
            ]
            complete(list(teachers.values()), store, pool)
            complete(runs, store, pool)
            print(write(store, teachers, runs, options, command))
    except (UserError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common_options(parser)
    parser.add_argument("--seeds", type=at_least(1), default=3, help="(%(default)s)")
    parser.add_argument("--settings", nargs="+", choices=OFF, default=list(OFF), help="(all)")
    parser.add_argument(
        "--pm",
        nargs="+",
        default=["pair_matching=1.0"],
        metavar="FIELD=VALUE",
        help="fields of the loss in the setting pm, for example pair_matching=3 pair_head=mlp negatives=hardest",
    )
    options = parser.parse_args(arguments)
    options.settings = [setting for setting in OFF if setting in options.settings]
    options.report = options.report or options.out / "wikd-ablation.md"
    return options


def pair_matching_fields(texts: Sequence[str]) -> dict[str, Any]:
    """``FIELD=VALUE`` → recipe fields.

    Raises:
        UserError: a text has no ``=``.
    """
    for text in texts:
        if "=" not in text:
            raise UserError(f"--pm {text}: write FIELD=VALUE, for example pair_matching=1.0")
    return {f"loss.{field}": yaml.safe_load(value) for field, _, value in (text.partition("=") for text in texts)}


def setting_fields(setting: str, pair_matching: dict[str, Any]) -> dict[str, Any]:
    """The fields that a setting changes in the student's recipe: all parts that are added later are off."""
    order = list(OFF)
    fields: dict[str, Any] = {}
    for later in order[order.index(setting) + 1 :]:
        fields |= OFF[later]
    return fields | pair_matching if setting == "pm" else fields


def ablation_run(name: str, data: Dataset, teacher: Run, setting: str, seed: int, options: argparse.Namespace) -> Run:
    """One setting with one seed. The baseline has no teacher."""
    student: Recipe = digits_student(data.folder, steps=options.steps, seed=seed)
    fields = setting_fields(setting, pair_matching_fields(options.pm)) | {"training.batch_size": options.batch_size}
    return make_run(
        name, LABELS[setting], data, student.updated(fields), teacher=None if setting == "baseline" else teacher
    )


def write(
    store: RunStore, teachers: Mapping[str, Run], runs: Sequence[Run], options: argparse.Namespace, command: str
) -> str:
    """The page of finished runs; see `write_page`."""
    student = runs[0].recipe
    settings = [
        f"Student {student.model.name}: {options.steps} steps of {options.batch_size} samples, "
        f"learning rate {student.training.learning_rate:g}, {options.seeds} seeds from {FIRST_SEED}. "
        f"PM is {', '.join(options.pm)}."
    ]
    if options.seeds < 5:
        settings.append(
            f"With {options.seeds} seeds the intervals are wide: a part whose interval contains 0 may still help."
        )
    parts = [" ".join(settings)]
    for name, teacher in teachers.items():
        own = [run for run in runs if run.dataset == name]
        parts += [f"## {name}", teacher_sentence(store, teacher), ablation_table(store, own)]
    pages = [*teachers.values(), *runs]
    return write_page(
        options.report,
        title="WIKD, part by part",
        command=command,
        store=store,
        runs=pages,
        jobs=options.jobs,
        parts=[*parts, NOTES],
    )


def ablation_table(store: RunStore, runs: Sequence[Run]) -> str:
    """One row per setting of one dataset, in the order of the runs."""
    by_setting: dict[str, list[Run]] = {}
    for run in runs:
        by_setting.setdefault(run.setting, []).append(run)
    rows = []
    before: list[Run] | None = None
    for setting, own in by_setting.items():
        cells = [setting, str(len(own))]
        for metric in (RECALL, HARD):
            figures = store.figures(own, f"test/{metric}")
            reference = store.figures(before, f"test/{metric}") if before else None
            cells += [
                share(estimate(list(figures.values()))),
                points(paired_difference(figures, reference)) if reference else "",
            ]
        rows.append([*cells, mean_seconds(store, own)])
        before = own
    return pipe_table(["setting", "seeds", "R@1", "difference", "beats all", "difference", "seconds per run"], rows)


if __name__ == "__main__":
    sys.exit(main())
