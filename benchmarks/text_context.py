"""The quality that a student loses with a shorter text context, while the teacher still sees whole captions.

    python benchmarks/text_context.py --digits FOLDER [--emoji FOLDER] --out FOLDER --report FILE.md

The student of the digit scenes with WIKD, with the model's own context and with fewer tokens, at equal steps and
seeds. Finished runs are stored in ``--out``. The gain in speed at full size is variant (h) of `training_step.py`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from study_report import teacher_sentence, write_page
from study_tools import (
    Run,
    add_common_options,
    at_least,
    complete,
    make_run,
    open_datasets,
    open_store,
    teacher_runs,
    worker_pool,
)
from wikd_ablation import ablation_table

from siclip.errors import UserError
from siclip.models.registry import model_config
from siclip_platform.recipes.digits import digits_student
from siclip_platform.recipes.recipe import Recipe

FIRST_SEED = 3000
NOTES = """## How to read it

- Each row is the row above with a shorter context: captions are truncated with the end-of-text token kept, inherited
  positions are truncated, and the student's text trunk is no longer the teacher's, which runs its own.
- Per cent on the test split, whose captions are truncated too: mean ± half of the 95 % t interval over seeds.
  Differences are relative to the row above and paired by seed.
- Captions of digit scenes have 11 to 18 tokens with start and end, those of the test split 11 or 12."""


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_common_options(parser)
    parser.add_argument("--seeds", type=at_least(1), default=3, help="(%(default)s)")
    parser.add_argument("--contexts", type=at_least(8), nargs="+", default=[16, 12, 8], help="(%(default)s)")
    options = parser.parse_args(arguments)
    try:
        datasets = open_datasets(options)
        with open_store(options.out) as store, worker_pool(options.jobs) as pool:
            teachers = teacher_runs(datasets, options)
            runs = [
                context_run(name, datasets, teachers[name], context, seed, options)
                for seed in range(FIRST_SEED, FIRST_SEED + options.seeds)
                for name in datasets
                for context in (None, *options.contexts)
            ]
            complete(list(teachers.values()), store, pool)
            complete(runs, store, pool)
            parts = []
            for name, teacher in teachers.items():
                own = [run for run in runs if run.dataset == name]
                parts += [f"## {name}", teacher_sentence(store, teacher), ablation_table(store, own)]
            page = write_page(
                options.report or options.out / "text-context.md",
                title="A shorter text context",
                command=shlex.join(["python", "benchmarks/text_context.py", *arguments]),
                store=store,
                runs=[*teachers.values(), *runs],
                jobs=options.jobs,
                parts=[*parts, NOTES],
            )
        print(page)
    except (UserError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def context_run(
    name: str, datasets: dict, teacher: Run, context: int | None, seed: int, options: argparse.Namespace
) -> Run:
    data = datasets[name]
    student = digits_student(data.folder, steps=options.steps, seed=seed)
    fields = {"training.batch_size": options.batch_size, "model.context_length": context}
    setting = f"{context or own_context(student)} tokens"
    return make_run(name, setting, data, student.updated(fields), teacher=teacher)


def own_context(recipe: Recipe) -> int:
    """The context length of the recipe's model by default."""
    return model_config(recipe.model.name).text.context_length


if __name__ == "__main__":
    sys.exit(main())
