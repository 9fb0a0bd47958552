"""What the first screen says of three simulated searches: one without a gain, one with, one with a tie of three."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from report_pages import report
from report_store import Scored, SyntheticStore, add_scored_search
from scipy import stats

from siclip_platform.report import read_result
from siclip_platform.report.draw.blocks import Code, Text, Tile, Tiles
from siclip_platform.report.judge.winner import find_winner
from siclip_platform.report.read.query import Selection, read_studies
from siclip_platform.report.read.runs import Run, Study
from siclip_platform.report.read.store import Store, active
from siclip_platform.report.sections.advice import late_gain, next_steps
from siclip_platform.report.sections.statement import statement
from siclip_platform.report.sections.summary import summary
from siclip_platform.studies.summary import print_search

IMAGES = 1000
GENERATOR = np.random.default_rng(11)
SHARED = np.array([0.40, 0.42, 0.39, 0.41, 0.43])
GAIN = SHARED + 0.05 + np.array([0.002, -0.001, 0.0, 0.001, -0.002])
FRESH = {"trial-002": [0.30, 0.31, 0.29, 0.32, 0.30], "baseline": [0.25, 0.262, 0.241, 0.268, 0.249]}


def hits(right: int) -> np.ndarray:
    """Which of the images are right, as fixed as the generator."""
    found = np.zeros(IMAGES)
    found[GENERATOR.permutation(IMAGES)[:right]] = 1
    return found


# Leading and starting recipe are right on 264 and 266 of the same 1,000 images both ways, the control on 196.
RIGHT = {name: (hits(n), hits(n)) for name, n in (("leading", 264), ("start", 266), ("control", 196))}
ITEMS = {
    "split": "test",
    "captions": [1] * IMAGES,
    "models": {
        name: {
            "trial": "trial-002" if name == "leading" else "",
            "text_to_image": text.tolist(),
            "image_to_text": image.tolist(),
        }
        for name, (text, image) in RIGHT.items()
    },
}
SEARCHES = {
    "nothing": Scored(
        {"trial-000": [368 / 600], "trial-001": [0.5], "trial-002": [370 / 600], "trial-003": [369 / 600]},
        {"best": 0.264, "control": 0.196},
        {},
        {"validation": 300, "test": IMAGES},
        ITEMS,
    ),
    "gains": Scored(
        {"trial-000": SHARED.tolist(), "trial-001": (SHARED - 0.03).tolist(), "trial-002": GAIN.tolist()}, {}, {}, {}
    ),
    "confirmed": Scored({"trial-000": [0.4], "trial-002": [0.45]}, {}, FRESH, {}),
    "tie": Scored(
        {"trial-000": [0.42], "trial-001": [0.5], "trial-002": [0.5], "trial-003": [0.48], "trial-004": [0.5]},
        {},
        {},
        {},
    ),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, mlflow_database: bytes) -> SyntheticStore:
    made = SyntheticStore(tmp_path_factory.mktemp("store"), mlflow_database)
    for name, plan in SEARCHES.items():
        add_scored_search(made, name, plan)
    return made


@pytest.fixture(scope="module")
def studies(store: SyntheticStore) -> dict[str, Study]:
    found = read_studies(Store(store.uri), Selection(studies=tuple(SEARCHES)))
    return {study.name: study for study in found}


def tiles(study: Study) -> dict[str, Tile]:
    (found,) = (block for block in summary(study).blocks if isinstance(block, Tiles))
    return {tile.label: tile for tile in found.tiles}


def edges(low: float, high: float) -> str:
    return f"{100 * low:+.1f} to {100 * high:+.1f}".replace("-", "−")


def test_a_search_that_gains_nothing_says_so_first(studies: dict[str, Study]) -> None:
    study = studies["nothing"]
    first, second, third = statement(study)
    assert first.startswith(
        "The search shows no gain over its starting recipe: trial-002 leads with +0.3 points validation mean R@1 "
        "(61.7 % against 61.3 %) over the starting recipe (trial-000), one seed; −0.2 points on 1,000 test images, "
    )
    error = 100 * math.sqrt(37 / 60 * 23 / 60 / 300)
    tied = f"trial-000 (the starting recipe), trial-003 (within one standard error, {error:.1f} points)."
    assert first.endswith(f"Tied with it: {tied}")
    assert second.startswith(
        "Against the control (the same recipe without distillation): +6.8 points test mean R@1 (26.4 % against "
        "19.6 %), one seed; 95 % interval "
    )
    assert "over 1,000 test images (covers test items, not seeds)." in second
    assert second.endswith("This is what distillation adds, not the search.")
    assert third == (
        "Validation: 300 images, chance 0.33 %, chose the setting. Test: 1,000 images, chance 0.1 %, held out."
    )
    labels = list(tiles(study))
    assert labels == [
        "Gain over the starting recipe",
        "Gain over the control",
        "Leading, unconfirmed",
        "Cost of the study",
    ]
    gain, control, leading, _ = tiles(study).values()
    assert gain.value == "+0.3 points" and gain.detail.startswith(
        "no gain shown · tied with trial-000 (the starting recipe), trial-003 · "
    )
    assert "300 images, chance 0.33 %, chose the setting" in gain.detail
    assert control.value == "+6.8 points" and control.detail.startswith("distillation, not the search")
    assert "1,000 images, chance 0.1 %, held out" in control.detail and "over test items, not seeds" in control.detail
    assert leading.value == "trial-002"


def test_the_intervals_over_items_are_those_of_a_paired_bootstrap(studies: dict[str, Study]) -> None:
    text = " ".join(statement(studies["nothing"]))
    means = {name: (one + other) / 2 for name, (one, other) in RIGHT.items()}
    shown = re.findall(r"95 % interval (\S+ to \S+)", text)
    for other, found in zip(("start", "control"), shown, strict=True):
        gaps = means["leading"] - means[other]
        expected = stats.bootstrap((gaps,), np.mean, method="percentile", n_resamples=4000, rng=3).confidence_interval
        low, high = (float(edge.replace("−", "-")) for edge in found.split(" to "))
        # Two bootstraps of this many draws agree to about a tenth of a point.
        assert (low, high) == pytest.approx((100 * expected.low, 100 * expected.high), abs=0.3)
        # Not the unpaired error, which is larger or smaller as the outcomes agree.
        assert high - low == pytest.approx(2 * 1.96 * 100 * gaps.std(ddof=1) / math.sqrt(IMAGES), rel=0.1)


def test_a_gain_of_five_seeds_is_unconfirmed_until_fresh_seeds_show_it(studies: dict[str, Study]) -> None:
    study = studies["gains"]
    low, high = stats.ttest_rel(GAIN, SHARED).confidence_interval()
    (first,) = (line for line in statement(study) if "trial-002" in line)
    assert first == (
        f"Leading, unconfirmed: trial-002, +5.0 points validation mean R@1 over the starting recipe (trial-000), "
        f"95 % interval {edges(low, high)} over 5 seeds, which also chose it."
    )
    assert tiles(study)["Gain over the starting recipe"].value == "+5.0 points"
    assert "no gain" not in tiles(study)["Gain over the starting recipe"].detail
    step = next_steps(study)[0]
    assert step.what == "Confirm with fresh seeds" and "5 other seeds of it and of the starting recipe" in step.why
    assert step.command == "siclip-platform tune --resume gains --out runs/digits --confirm 5"

    shown = studies["confirmed"]
    low, high = stats.ttest_rel(FRESH["trial-002"], FRESH["baseline"]).confidence_interval()
    gap = 100 * np.subtract(FRESH["trial-002"], FRESH["baseline"]).mean()
    assert statement(shown)[0] == (
        f"trial-002 is the best setting found: {gap:+.1f} points test mean R@1 over the starting recipe (trial-000), "
        f"95 % interval {edges(low, high)} over 5 fresh seeds."
    )
    assert tiles(shown)["Best setting"].value == "trial-002" and "Leading, unconfirmed" not in tiles(shown)
    assert all("Confirm" not in step.what for step in next_steps(shown))


def test_a_tie_of_three_is_named(studies: dict[str, Study]) -> None:
    study = studies["tie"]
    assert statement(study)[0] == (
        "Leading, unconfirmed: trial-001, +8.0 points validation mean R@1 (50.0 % against 42.0 %) over the starting "
        "recipe (trial-000), one seed. Tied with it: trial-002, trial-004 (same value)."
    )
    assert "tied with trial-002, trial-004" in tiles(study)["Gain over the starting recipe"].detail


def test_a_starting_recipe_that_leads_is_said_to_lead(studies: dict[str, Study]) -> None:
    study = studies["tie"]
    trials = tuple(
        Run(**{**vars(run), "metrics": {study.metric: 0.6}}) if run.label == "trial-000" else run
        for run in study.trials
    )
    led = Study(**{**vars(study), "trials": trials})
    assert statement(led)[0] == (
        "The search found nothing better than its starting recipe: trial-000 leads with validation mean R@1 60.0 %."
    )
    assert tiles(led)["Gain over the starting recipe"].value == "none"
    step = next_steps(led)[0]
    assert (step.what, step.why) == ("Search further", "none of 5 trials is better than the starting recipe")
    assert step.command == "siclip-platform tune --resume tie --out runs/digits --trials 10"


def test_fresh_seeds_against_the_control_do_not_make_a_setting_the_best(studies: dict[str, Study]) -> None:
    """They show what distillation does."""
    study = studies["confirmed"]
    against = tuple(
        Run(**{**vars(run), "tags": {**run.tags, "siclip.setting": "control"}})
        if run.tag("setting") == "baseline"
        else run
        for run in study.confirms
    )
    changed = Study(**{**vars(study), "confirms": against})
    winner = find_winner(changed)
    assert (winner.status, winner.reference, winner.best) == ("confirmed", "control", False)
    assert "Leading, unconfirmed" in tiles(changed) and "is the best" not in " ".join(statement(changed))
    assert next_steps(changed)[0].what == "Confirm with fresh seeds"


def test_page_twin_and_terminal_say_the_same(
    store: SyntheticStore, studies: dict[str, Study], tmp_path: Path
) -> None:
    page, twin = report(store.uri, tmp_path, study="nothing", mlflow_url="http://mlflow.example")
    said: list[str] = []
    experiment: Any = SimpleNamespace(
        name="nothing",
        folder=Path("runs/digits/nothing"),
        options=SimpleNamespace(out=Path("runs/digits")),
        display=SimpleNamespace(say=said.append),
        tracker=SimpleNamespace(uri=store.uri, address=store.uri, known_experiment="7"),
    )
    best = SimpleNamespace(trial_id="trial-002", values={"training.learning_rate": 0.003})
    result: Any = SimpleNamespace(best=best, trials=[best] * 4, metric="validation/mean_recall@1")
    print_search(experiment, result)
    lines = statement(studies["nothing"])
    assert said[: len(lines)] == lines
    for line in lines:
        assert line in " ".join(page.text.split()) and line.replace("_", r"\_") in twin.replace("\\_", "_").replace(
            "_", r"\_"
        )
    command = "siclip-platform tune --resume nothing --out runs/digits --confirm 5"
    assert any(line.strip() == command for line in said) and command in page.text and f"```sh\n{command}\n```" in twin
    (link,) = (line for line in said if line.startswith("Runs:"))
    assert link.endswith(
        "http://127.0.0.1:5000/#/experiments/7/runs?workflowType=machine_learning&searchFilter=tags.%60siclip.study%60"
        "%20%3D%20%27nothing%27&orderByKey=metrics.%60validation%2Fmean_recall_at_1%60&orderByAsc=false"
    )
    assert f"http://mlflow.example/#/experiments/{store.experiment('nothing')}/runs?workflowType" in page.text
    # A part that is off has no options, on the page and in the data.
    files = (tmp_path / "out" / "report_files" / "data").glob("*.csv")
    everything = [page.text, twin, *said, *(path.read_text(encoding="utf-8") for path in files)]
    assert not any("pair_head" in text for text in everything)
    assert page.figures()["plot-gain"]["data"][1]["error_x"]["array"][0] > 0
    assert read_result(store.uri, "nothing").statement == tuple(lines)


def test_the_commands_of_the_advice_are_those_of_the_study(studies: dict[str, Study]) -> None:
    study = studies["gains"]
    rising = tuple((step, 0.2 + step / 1000) for step in (20, 40, 60, 80, 90, 100))
    seeds = tuple(Run(**{**vars(run), "curves": {study.metric: rising}}) for run in study.seeds)
    frame = Run(
        **{**vars(study.run), "tags": {**study.run.tags, "siclip.command": "python jobs/tune_wikd.py --trials 8"}}
    )
    steps = {step.what: step for step in next_steps(Study(**{**vars(study), "seeds": seeds, "run": frame}))}
    assert steps["Confirm with fresh seeds"].command == "siclip-platform demo --resume gains --confirm 5"
    longer = steps["Train longer"]
    assert "improved by 2.0 points in the last fifth of its 100 steps" in longer.why
    assert longer.command == (
        "siclip-platform train --recipe runs/digits/gains/leading.yaml --set training.steps=200"
    )
    code = [block.text for block in summary(study).blocks if isinstance(block, Code)]
    assert code == [next_steps(study)[0].command]
    assert any(isinstance(block, Text) and block.text.startswith("Next: ") for block in summary(study).blocks)


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        # Evaluated at two thirds, five sixths and the end: it rose before the last fifth, and fell in it.
        (((40, 0.50), (80, 0.56), (100, 0.61), (120, 0.60)), 0.60 - (0.56 + 0.8 * 0.05)),
        (((40, 0.5), (80, 0.56), (120, 0.61)), None),  # no evaluation in the last fifth
        (((80, 0.5), (100, 0.52)), 0.02),  # evaluated at its beginning
        (((80, 0.5), (90, 0.51), (100, 0.52)), 0.02),
        (((90, 0.5), (100, 0.52)), None),
        ((), None),
    ],
)
def test_the_last_fifth_is_the_last_fifth(
    curve: tuple[tuple[int, float], ...], expected: float | None, studies: dict[str, Study]
) -> None:
    found = late_gain(studies["gains"], curve)
    if expected is None:
        assert found is None
        return
    values = np.interp([0.8 * curve[-1][0], curve[-1][0]], *zip(*curve, strict=True))
    assert found == pytest.approx(expected) == pytest.approx(values[1] - values[0])


def test_items_that_do_not_fit_are_named(store: SyntheticStore, studies: dict[str, Study]) -> None:
    broken = ITEMS | {"captions": [1] * 3}
    study = Study(**{**vars(studies["nothing"]), "items": json.dumps(broken)})
    assert "items.json cannot be read" in str(summary(study).blocks)
    other = json.loads(json.dumps(ITEMS))
    other["models"]["leading"]["trial"] = "trial-001"  # of a leader before the study grew
    assert "covers test items" not in " ".join(statement(Study(**{**vars(study), "items": json.dumps(other)})))


def test_options_of_a_part_that_is_off_are_no_parameters() -> None:
    options = {"loss.pair_head": "mlp", "loss.negatives": "hardest"}
    assert active({"loss.pair_matching": "0.0", **options, "x": "1"}) == {"loss.pair_matching": "0.0", "x": "1"}
    for params in ({"loss.pair_matching": "0.3", **options}, options, {"loss.pair_matching": "?", **options}):
        assert active(params) == params
