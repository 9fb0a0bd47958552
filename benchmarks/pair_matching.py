"""Does pair matching help? Heads, weights, miners and warm-ups compared with the same student without it.

    python benchmarks/pair_matching.py --digits FOLDER --emoji FOLDER --out FOLDER --report FILE.md

There are two stages, so that no variant wins by chance. The screening trains every variant with a few seeds and ranks
them by their gain on the validation split. The comparison trains the best ones and the base (all distillation, no
pair matching) with other seeds and measures them on the test split. The verdict is computed from the comparison.
Finished runs are stored in ``--out``; a repeated command trains only the missing ones.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, get_args

from study_report import (
    HARD,
    RECALL,
    Estimate,
    estimate,
    holm,
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

from siclip.config import MiningStrategy, PairHead
from siclip.errors import UserError
from siclip_platform.recipes.digits import digits_student

SCREENING_SEED, FINAL_SEED = 0, 1000
LEVEL = 0.05
ENOUGH_SEEDS = 5
BASE = "base: no pair matching"
MINERS = tuple(miner for miner in get_args(MiningStrategy) if miner != "uniform")
NOTES = f"""## How to read it

- Figures are in per cent, mean ± half of the 95 % t interval over seeds. Differences are relative to the base, in
  points, paired by seed, with the 95 % t interval of the paired difference. *Beats all*: the image is closer to its
  caption than to each of its five false ones (chance 1 in 6).
- A variant is head × weight, miner ≤ similarity: pairs whose captions are more similar than that according to the
  teacher are masked as false negatives. *Pairs masked* is their share, *negatives missing* the share of samples
  without a negative, both in the last batch.
- The screening uses only the validation split, the comparison only the test split. The seeds of the screening are not
  used again: the best of many variants owes a part of its gain to the seeds and images on which it was chosen, so its
  gain on these is too high.
- A gain counts as larger than seed noise if the difference in *beats all* is above 0 with p below {LEVEL} after
  Holm's correction over all variants compared on test, on all datasets. Intervals and the differences in R@1 are not
  corrected. All seeds share one teacher per dataset, and all are measured on the same test images."""


@dataclass(frozen=True)
class Variant:
    """A variant of pair matching: options of `LossConfig`; ``similarity`` is ``false_negative_similarity``."""

    head: str
    weight: float
    miner: str
    similarity: float
    warmup: float

    def __str__(self) -> str:
        late = f", warm-up {self.warmup:g}" if self.warmup else ""
        return f"{self.head} × {self.weight:g}, {self.miner} ≤ {self.similarity:g}{late}"

    @property
    def fields(self) -> dict[str, Any]:
        return {
            "loss.pair_matching": self.weight,
            "loss.pair_head": self.head,
            "loss.negatives": self.miner,
            "loss.false_negative_similarity": self.similarity,
            "loss.pair_matching_warmup": self.warmup,
        }


@dataclass(frozen=True)
class Comparison:
    """A variant compared with the base on the test split of one dataset; ``p`` is after Holm's correction."""

    dataset: str
    setting: str
    hard: Estimate
    recall: Estimate
    p: float

    @property
    def gains(self) -> bool:
        return self.hard.mean > 0 and self.p < LEVEL


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    command = shlex.join(["python", "benchmarks/pair_matching.py", *arguments])
    try:
        datasets = open_datasets(options)
        with open_store(options.out) as store, worker_pool(options.jobs) as pool:
            teachers = teacher_runs(datasets, options)
            complete(list(teachers.values()), store, pool)
            grid = product(options.heads, options.weights, options.miners, options.similarities, options.warmups)
            variants = [Variant(*values) for values in grid]
            seeds = range(SCREENING_SEED, SCREENING_SEED + options.screening_seeds)
            screening = study_runs(teachers, dict.fromkeys(teachers, variants), seeds, options)
            complete(screening, store, pool)
            best = {name: screened(store, screening, name, variants)[: options.finalists] for name in teachers}
            seeds = range(FINAL_SEED, FINAL_SEED + options.final_seeds)
            final = study_runs(teachers, best, seeds, options)
            complete(final, store, pool)
            print(write(store, teachers, variants, screening, final, options, command))
    except (UserError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common_options(parser)
    add = parser.add_argument
    add("--heads", nargs="+", choices=get_args(PairHead), default=list(get_args(PairHead)), help="(all)")
    add("--weights", nargs="+", type=float, default=[0.3, 1.0], help="(%(default)s)")
    add("--miners", nargs="+", choices=get_args(MiningStrategy), default=list(MINERS), help="(all but uniform)")
    add("--similarities", nargs="+", type=float, default=[0.9], help="false_negative_similarity (%(default)s)")
    add("--warmups", nargs="+", type=float, default=[0.0], help="loss.pair_matching_warmup (%(default)s)")
    add("--screening-seeds", type=at_least(1), default=2, help="(%(default)s)")
    add("--finalists", type=at_least(1), default=2, help="variants per dataset in the comparison (%(default)s)")
    add("--final-seeds", type=at_least(2), default=ENOUGH_SEEDS, help="seeds of the comparison (%(default)s)")
    options = parser.parse_args(arguments)
    if options.screening_seeds > FINAL_SEED - SCREENING_SEED:
        parser.error(
            f"--screening-seeds {options.screening_seeds}: seeds from {FINAL_SEED} on are used by the comparison"
        )
    if min(options.weights) <= 0:
        parser.error("--weights must be above 0: the base already has no pair matching")
    options.report = options.report or options.out / "pair-matching.md"
    return options


def study_runs(
    teachers: Mapping[str, Run], variants: Mapping[str, Sequence[Variant]], seeds: Sequence[int], options: Any
) -> list[Run]:
    """The base and the variants of each dataset with these seeds, ordered by seed."""
    runs = []
    for seed, (name, teacher) in product(seeds, teachers.items()):
        student = digits_student(teacher.data.folder, steps=options.steps, seed=seed)
        student = student.updated({"training.batch_size": options.batch_size})
        runs.append(make_run(name, BASE, teacher.data, student, teacher=teacher))
        for variant in variants[name]:
            recipe = student.updated(variant.fields)
            runs.append(make_run(name, str(variant), teacher.data, recipe, teacher=teacher))
    return runs


def of(runs: Sequence[Run], dataset: str, setting: str) -> list[Run]:
    return [run for run in runs if (run.dataset, run.setting) == (dataset, setting)]


def difference(store: RunStore, runs: Sequence[Run], dataset: str, setting: str, metric: str) -> Estimate:
    """The gain of a setting over the base of the same runs."""
    one, base = (store.figures(of(runs, dataset, name), metric) for name in (setting, BASE))
    return paired_difference(one, base)


def screened(store: RunStore, runs: Sequence[Run], dataset: str, variants: Sequence[Variant]) -> list[Variant]:
    """The variants, best first: by the gain in *beats all*, then in recall, on validation."""
    return sorted(
        variants,
        key=lambda variant: [
            -difference(store, runs, dataset, str(variant), f"validation/{metric}").mean for metric in (HARD, RECALL)
        ],
    )


def comparisons(store: RunStore, runs: Sequence[Run]) -> list[Comparison]:
    """Every variant of the final runs compared with its base; the p values are corrected together."""
    pairs = list(dict.fromkeys((run.dataset, run.setting) for run in runs if run.setting != BASE))
    hard = [difference(store, runs, *pair, f"test/{HARD}") for pair in pairs]
    recall = [difference(store, runs, *pair, f"test/{RECALL}") for pair in pairs]
    corrected = holm([one.p for one in hard])
    return [Comparison(*pair, h, r, p) for pair, h, r, p in zip(pairs, hard, recall, corrected, strict=True)]


def verdict(found: Sequence[Comparison]) -> str:
    """One sentence for all comparisons, and one for each."""
    seeds = min(one.hard.seeds for one in found)
    if seeds < ENOUGH_SEEDS:
        return f"No verdict: the comparison has {seeds} seeds, a verdict requires {ENOUGH_SEEDS}."
    winners = [one for one in found if one.gains]
    if winners:
        names = "; ".join(f"{one.setting} on {one.dataset}" for one in winners)
        text = (
            f"**Yes: pair matching gives a gain larger than seed noise in {len(winners)} of {len(found)}: {names}.**"
        )
    else:
        text = "**No: none of the variants compared gives a gain larger than seed noise.**"
    return "\n".join([text, "", *(f"- {sentence(one)}" for one in found)])


def sentence(one: Comparison) -> str:
    """The verdict on one comparison, with its figures and p value."""
    low, high = (f"{100 * value:+.1f}".replace("-", "−") for value in (one.hard.low, one.hard.high))
    figures = f"{points(one.hard)} points (95 % interval {low} to {high}, Holm p {one.p:.3g})"
    if one.gains:
        answer = "a gain larger than seed noise"
    elif one.hard.mean < 0 and one.p < LEVEL:
        answer = "a loss larger than seed noise"
    else:
        answer = f"no gain larger than seed noise; the interval allows up to {max(100 * one.hard.high, 0):.1f} points"
    return f"{one.dataset}, {one.setting}: {answer}: {figures}."


def screening_table(store: RunStore, runs: Sequence[Run], dataset: str, variants: Sequence[Variant]) -> str:
    columns = ["variant", "beats all, difference", "R@1, difference", "pairs masked", "negatives missing"]
    rows = []
    for variant in screened(store, runs, dataset, variants):
        gains = [difference(store, runs, dataset, str(variant), f"validation/{metric}") for metric in (HARD, RECALL)]
        own = of(runs, dataset, str(variant))
        masked = statistics.fmean(store.figures(own, "train/pair_masked_share").values())
        missing = statistics.fmean(store.figures(own, "train/pair_dropped").values()) / (
            2 * own[0].recipe.training.batch_size
        )
        rows.append([str(variant), *map(points, gains), f"{100 * masked:.1f}", f"{100 * missing:.1f}"])
    return pipe_table(columns, rows)


def final_table(store: RunStore, runs: Sequence[Run], dataset: str, found: Sequence[Comparison]) -> str:
    columns = ["setting", "seeds", "beats all", "difference", "p", "Holm p", "R@1", "difference", "seconds per run"]
    against = {one.setting: one for one in found if one.dataset == dataset}
    rows = []
    for setting in [BASE, *against]:
        own = of(runs, dataset, setting)
        hard, recall = (share(estimate(list(store.figures(own, f"test/{m}").values()))) for m in (HARD, RECALL))
        one = against.get(setting)
        first = [points(one.hard), f"{one.hard.p:.3g}", f"{one.p:.3g}"] if one else [""] * 3
        second = points(one.recall) if one else ""
        rows.append([setting, str(len(own)), hard, *first, recall, second, mean_seconds(store, own)])
    return pipe_table(columns, rows)


def write(
    store: RunStore,
    teachers: Mapping[str, Run],
    variants: Sequence[Variant],
    screening: Sequence[Run],
    final: Sequence[Run],
    options: argparse.Namespace,
    command: str,
) -> str:
    """The page of finished runs; see `write_page`."""
    student = final[0].recipe
    found = comparisons(store, final)
    parts = [
        verdict(found),
        f"Student {student.model.name}, all distillation on: {options.steps} steps of {options.batch_size} samples, "
        f"learning rate {student.training.learning_rate:g}. Screening: {len(variants)} variants, "
        f"{options.screening_seeds} seeds from {SCREENING_SEED}. Comparison: {options.final_seeds} seeds from "
        f"{FINAL_SEED}.",
    ]
    for name, teacher in teachers.items():
        parts += [f"## {name}", teacher_sentence(store, teacher)]
        parts += ["### Comparison, on test", final_table(store, final, name, found)]
        parts += ["### Screening, on validation", screening_table(store, screening, name, variants)]
    return write_page(
        options.report,
        title="Pair matching",
        command=command,
        store=store,
        runs=[*teachers.values(), *screening, *final],
        jobs=options.jobs,
        parts=[*parts, NOTES],
    )


if __name__ == "__main__":
    sys.exit(main())
