"""Search policies compared at equal time, simulated on recorded curves of a real study.

    python benchmarks/search_policies.py

Runs every policy with the same seeds on a virtual clock, pairs them by seed, and writes a page and its JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from siclip.errors import UserError
from siclip_platform.report.judge.statistics import holm, paired_difference, t_interval
from siclip_platform.simulation.curves import Landscape, load_curves
from siclip_platform.simulation.simulator import Simulation, budget_seconds, parse_policy
from siclip_platform.tracking.store import git_commit

POLICIES = (
    *("random+none", "random+asha", "random+median", "tpe+none", "tpe+asha", "tpe+asha+complete", "tpe+hyperband"),
    *("tpe+median", "cmaes+asha", "gp+asha", "gp+asha+complete"),
)
# Largest budget of a Gaussian process, in whole trials: it takes most of a second per suggestion.
GP_TRIALS = 12
CLAIMS = (
    ("tpe+asha", "tpe+asha+complete", "TPE + ASHA: reporting PRUNED instead of COMPLETE"),
    ("gp+asha", "gp+asha+complete", "GP + ASHA: reporting PRUNED instead of COMPLETE"),
    ("tpe+asha", "random+asha", "TPE + ASHA instead of random + ASHA"),
    ("random+asha", "random+none", "random + ASHA instead of random without early stopping"),
)
"""(better policy, worse policy, the claim)."""


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    try:
        landscape = Landscape(load_curves(options.curves))
        started = time.monotonic()
        results = run(options)
        seconds = time.monotonic() - started
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    command = shlex.join(["python", "benchmarks/search_policies.py", *arguments])
    text = page(landscape, results, options, command, seconds)
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(text)
    options.report.with_suffix(".json").write_text(
        json.dumps({"command": command, **environment(), "seconds": round(seconds), "results": results}, indent=1)
        + "\n"
    )
    print(text)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--curves", default="digits-wikd", help="(%(default)s)")
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), metavar="POLICY", help="(eleven)")
    parser.add_argument("--trials", type=int, nargs="+", default=[12, 24], help="budgets, in whole trials")
    parser.add_argument("--workers", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--repetitions", type=int, default=20, help="(%(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    parser.add_argument("--report", type=Path, default=Path("docs/results/search.md"), metavar="FILE.md")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Budget in trials → policy → figure → its value for each seed."""
    tasks = [
        (options.curves, policy, options.workers, trials, seed)
        for trials in options.trials
        for policy in options.policies
        if trials <= GP_TRIALS or not policy.startswith("gp+")
        for seed in range(options.repetitions)
    ]
    # Before the processes start: a misspelt policy ends the command at once.
    for policy in options.policies:
        parse_policy(policy)
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(repetition, tasks, chunksize=4))
    results: dict[str, dict[str, dict[str, list[float]]]] = {}
    for (_, policy, _, trials, _), figures in zip(tasks, found, strict=True):
        of_policy = results.setdefault(str(trials), {}).setdefault(policy, {})
        for key, value in figures.items():
            of_policy.setdefault(key, []).append(value)
    return results


_landscapes: dict[str, Landscape] = {}


def repetition(task: tuple[str, str, int, int, int]) -> dict[str, float]:
    """One simulated study."""
    curves, policy, workers, trials, seed = task
    landscape = _landscapes.get(curves) or _landscapes.setdefault(curves, Landscape(load_curves(curves)))
    budget = budget_seconds(landscape, workers, trials)
    trace = Simulation(
        landscape, parse_policy(policy), workers=workers, budget=budget, seed=seed, planned=trials
    ).run()
    return {"best": trace.best_at(budget), "begun": len(trace.trials), "whole": trace.complete}


def page(
    landscape: Landscape, results: dict[str, Any], options: argparse.Namespace, command: str, seconds: float
) -> str:
    curves = landscape.curves
    made = environment()
    best = max(curve.scores[curves.steps] or 0.0 for curve in curves.whole)
    lines = [
        "# Ways of searching, compared on recorded curves",
        "",
        f"Made by the command below in {seconds:.0f} s; commit {made['commit']}; "
        + ", ".join(f"{name} {value}" for name, value in made["versions"].items())
        + ". Every repetition: `search.json`.",
        "",
        f"```sh\n{command}\n```",
        "",
        f"The curves are of {len(curves.whole)} settings, drawn at random from `{curves.space}.yaml` and "
        f"trained for {curves.steps} steps on {curves.dataset.split()[0]}, `{curves.made_by.split()[1]}`. "
        "Other settings are interpolated by randomised trees: "
        f"R² {landscape.fit_quality():.2f} on the last score of held-out settings (10 folds). "
        f"The optimum is therefore no better than the best recorded setting ({best:.3f}), there is no training "
        "noise, and the results apply to landscapes of this kind. Searcher and schedulers are those of a real study.",
    ]
    for trials, policies in results.items():
        lines += [
            "",
            f"## Time of {trials} whole trials on {options.workers} workers",
            "",
            *table(curves.metric, policies),
        ]
    lines += ["", "## Claims", "", *claims(results), "", *NOTES]
    return "\n".join(lines) + "\n"


def table(metric: str, policies: dict[str, dict[str, list[float]]]) -> list[str]:
    rows = [
        f"| policy | best {metric} | 95 % interval | trials started | complete |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, figures in policies.items():
        best = t_interval(figures["best"])
        begun, whole = (sum(figures[key]) / len(figures[key]) for key in ("begun", "whole"))
        rows.append(f"| {name} | {best.mean:.4f} | {best.low:.4f} – {best.high:.4f} | {begun:.1f} | {whole:.1f} |")
    return rows


def claims(results: dict[str, Any]) -> list[str]:
    """Each claim at each budget, paired by seed, with p values adjusted over all of them."""
    found = []
    for better, worse, claim in CLAIMS:
        for trials, policies in results.items():
            if better in policies and worse in policies:
                pair = paired_difference(by_seed(policies[better]), by_seed(policies[worse]))
                assert pair is not None
                found.append((claim, trials, pair))
    adjusted = holm([pair.p for _, _, pair in found])
    rows = [
        "| claim | budget | difference | 95 % interval | p (Holm) | verdict |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for (claim, trials, pair), p in zip(found, adjusted, strict=True):
        shown = "–" if math.isnan(p) else f"{p:.3f}"
        rows.append(
            f"| {claim} | {trials} | {pair.mean:+.4f} | {pair.low:+.4f} – {pair.high:+.4f} | {shown} | "
            f"{verdict(pair, p)} |"
        )
    return rows


def by_seed(figures: dict[str, list[float]]) -> dict[int, float]:
    return dict(enumerate(figures["best"]))


def verdict(pair: Any, p: float) -> str:
    if pair.low == pair.high == 0:
        return "the same in every repetition"
    if p < 0.05:
        return "better" if pair.mean > 0 else "**worse**"
    return "**not shown**"


def environment() -> dict[str, Any]:
    return {
        "commit": git_commit(),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("optuna", "ray", "scikit-learn")},
    }


NOTES = [
    "- *Best*: the score at its last step of the best trial that reached it in the time; mean over the repetitions.",
    "- *+complete*: a trial that was stopped early is reported to Optuna as COMPLETE with its score at that step, as "
    "by plain `OptunaSearch`. TPE learns from the best tenth of the trials: if a stopped trial's early score is not "
    "among these, it makes no difference to TPE how the trial is reported. A Gaussian process learns from the value "
    "of every complete trial.",
    "- Intervals are 95 % Student t intervals over repetitions; differences are paired by the seed of the search.",
]


if __name__ == "__main__":
    sys.exit(main())
