"""Statistics over the seeds of a study, and the page to which they are written."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats
from study_tools import Run, RunStore, environment

CONFIDENCE = 0.95
RECALL, HARD = "mean_recall@1", "beats_all_negatives"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % Student t interval.

    Attributes:
        mean: over the seeds.
        half: half the width of the interval; nan for one seed.
        p: two-sided p value of a mean of 0; nan for one seed.
        seeds: their number.
    """

    mean: float
    half: float
    p: float
    seeds: int

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and t interval; equal values have an interval of width 0."""
    count, mean = len(values), statistics.fmean(values)
    if count < 2:
        return Estimate(mean, math.nan, math.nan, count)
    error = statistics.stdev(values) / math.sqrt(count)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, count - 1)) if error else float(mean == 0)
    return Estimate(mean, half, p, count)


def paired_difference(one: Mapping[int, float], other: Mapping[int, float]) -> Estimate:
    """``one`` − ``other``, paired by seed, so that effects of a seed on both cancel."""
    if one.keys() != other.keys():
        raise ValueError(f"seeds {sorted(one)} and {sorted(other)} cannot be paired")
    return estimate([one[seed] - other[seed] for seed in sorted(one)])


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Scand. J. Statist. 6, 1979), in the order given.

    Raises:
        ValueError: a p value is not between 0 and 1 (for a single seed it is nan).
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p values {list(p_values)} are not all between 0 and 1")
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def share(value: Estimate) -> str:
    """The value in per cent with its interval."""
    return f"{100 * value.mean:.1f} ± {100 * value.half:.1f}" if value.seeds > 1 else f"{100 * value.mean:.1f}"


def points(value: Estimate) -> str:
    """A difference in percentage points with its interval."""
    return f"{100 * value.mean:+.1f}".replace("-", "−") + (f" ± {100 * value.half:.1f}" if value.seeds > 1 else "")


def mean_seconds(store: RunStore, runs: Sequence[Run]) -> str:
    """Mean seconds of pure training, measured while all jobs were running."""
    return f"{statistics.fmean(store.figures(runs, 'cost/training_seconds').values()):.0f}"


def pipe_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is left-aligned, the others, which are numbers, right-aligned."""
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows))


def teacher_sentence(store: RunStore, teacher: Run) -> str:
    """The dataset's size and the teacher's metrics on the test split."""
    metrics = store.rows[teacher.key]["metrics"]
    rows = {split: teacher.data.rows(split) for split in teacher.data.split_names}
    sizes = ", ".join(f"{count:,} in {split}" for split, count in rows.items())
    return (
        f"{sizes} (dataset {teacher.data.hash}). Teacher {teacher.recipe.model.name}, "
        f"{teacher.recipe.training.steps} steps: test R@1 {100 * metrics[f'test/{RECALL}']:.1f}, "
        f"beats all negatives {100 * metrics[f'test/{HARD}']:.1f}, "
        f"{metrics['cost/training_seconds']:.0f} s. R@1 by chance: {100 / rows['test']:.2f}."
    )


def write_page(
    target: Path, *, title: str, command: str, store: RunStore, runs: Sequence[Run], jobs: int, parts: Sequence[str]
) -> str:
    """Write the Markdown page and, beside it, a JSON file with every run.

    Args:
        target: the page.
        title: its heading.
        command: the command line that made it.
        store: has the rows of ``runs``.
        runs: all runs of the study.
        jobs: runs trained at a time.
        parts: the page's paragraphs, tables and headings.

    Returns:
        The Markdown.
    """
    rows = [store.rows[run.key] | {"dataset": run.dataset, "setting": run.setting} for run in runs]
    found = environment([row["commit"] for row in rows])
    made = (
        f"Made by the command below; commit {', '.join(found['commits'])}; {found['machine']['cores']} cores, "
        f"{jobs} runs at a time with one thread each; torch {found['versions']['torch']}. Every run: "
        f"`{target.with_suffix('.json').name}`."
    )
    text = "\n\n".join([f"# {title}", made, f"```sh\n{command}\n```", *parts]) + "\n"
    content: dict[str, Any] = {"command": command, **found, "runs": rows}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")
    target.write_text(text)
    return text
