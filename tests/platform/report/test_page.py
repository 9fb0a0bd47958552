"""The report of a search shows what was logged, in a store written here with MLflow's own client."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from report_pages import Page, report
from report_store import SyntheticStore

METRIC = "validation/mean_recall@1"
SEARCHED = ["loss.feature_distillation", "loss.negatives", "training.learning_rate"]
COMMIT = "3f2a9d10c4b7e8f6a5d4c3b2a1908f7e6d5c4b3a"


def cost(steps: int, seconds: float) -> dict[str, float]:
    parameters = {"parameters_trainable": 812_345, "parameters_image": 1_050_112, "parameters_text": 640_007}
    values = {"steps": steps, "seconds": seconds, "training_seconds": 0.8 * seconds, **parameters}
    return {f"cost/{name}": float(value) for name, value in values.items()}


def retrieval(mean: float) -> dict[str, float]:
    shifts = {
        "mean_recall@1": 0.0,
        "image_retrieval_recall@1": 0.0113,
        "image_retrieval_recall@5": 0.1021,
        "image_retrieval_recall@10": 0.1503,
        "text_retrieval_recall@1": -0.0113,
        "text_retrieval_recall@5": 0.0997,
        "text_retrieval_recall@10": 0.1402,
        "beats_all_negatives": 0.1807,
    }
    return {f"test/{name}": mean + shift for name, shift in shifts.items()}


def curve(last: float, steps: int, every: int = 40) -> list[tuple[int, float]]:
    return [(step, last * step / steps) for step in range(every, steps + 1, every)]


def loss(steps: int, floor: float) -> list[tuple[int, float]]:
    return [(step, floor + 4 * math.exp(-step / 60)) for step in range(10, steps + 1, 10)]


def params(feature: float, negatives: str, rate: float) -> dict[str, Any]:
    return {
        "loss.feature_distillation": feature,
        "loss.contrastive_relational": 0.0 if feature == 0 else 1.0,
        "loss.interactive_contrastive": 0.0 if feature == 0 else 1.0,
        "loss.negatives": negatives,
        "training.learning_rate": rate,
        "training.seed": 0,
        "model.name": "siclip-nano",
    }


TRIALS: dict[str, dict[str, Any]] = {
    "t0": {"params": params(1234.5678, "hardest", 0.00123), "state": "completed", "last": 0.4312, "steps": 200},
    "t1": {"params": params(12.5, "uniform", 0.0004), "state": "completed", "last": 0.2107, "steps": 200},
    "t2": {"params": params(3000.0, "teacher", 0.05), "state": "pruned", "last": 0.0904, "steps": 80},
    "t3": {"params": params(7.0, "sampled", 0.9), "state": "failed", "last": math.nan, "steps": 40},
}
BEST, CONTROL, TEACHER = retrieval(0.4701), retrieval(0.1893), retrieval(0.8004)


def full_study(store: SyntheticStore, experiment: str, name: str, control_steps: int = 240) -> None:
    tags = {"siclip.study": name, "siclip.git_commit": COMMIT, "siclip.dataset_hash": "d" * 12}
    settings = {"space": "search_spaces/wikd.yaml", "metric": METRIC, "mode": "max", "trials": 4, "seed": 7}
    study_params = {f"study.{key}": value for key, value in settings.items()}
    searched = {"siclip.searched": json.dumps(SEARCHED)}
    study = store.run(experiment, "study", tags=tags | searched, params=study_params)
    for index, (trial, content) in enumerate(TRIALS.items()):
        reasons = {"pruned": "stopped by ASHA at step 80", "failed": "loss is not finite at step 40"}
        reason = reasons.get(content["state"])
        store.run(
            experiment,
            "trial",
            parent=study,
            state=content["state"],
            tags={"siclip.trial": trial, **tags, **({"siclip.reason": reason} if reason else {})},
            params=content["params"],
            metrics=cost(content["steps"], 30.25 + index),
            curves={METRIC: curve(content["last"], content["steps"]), "train/loss": loss(content["steps"], 1.0)},
        )
    roles: Mapping[str, Any] = {
        "teacher": (params(0, "sampled", 0.001), TEACHER, 900, 180.5),
        "best": (TRIALS["t0"]["params"], BEST, 240, 61.5),
        "control": (params(0, "hardest", 0.00123), CONTROL, control_steps, 44.75),
    }
    for kind, (setting, figures, steps, seconds) in roles.items():
        best = {"siclip.best_trial": "t0"} if kind == "best" else {}
        store.run(
            experiment,
            kind,
            parent=study,
            tags=tags | {"siclip.recipe_hash": kind[0] * 12} | best,
            params=setting,
            metrics=figures | cost(steps, seconds),
            curves={METRIC: curve(figures["test/mean_recall@1"], steps), "train/loss": loss(steps, 0.5)},
        )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, mlflow_database: bytes) -> SyntheticStore:
    made = SyntheticStore(tmp_path_factory.mktemp("store"), mlflow_database)
    experiment = made.experiment("siclip")
    full_study(made, experiment, "older", control_steps=120)
    full_study(made, experiment, "wikd-demo")
    return made


@pytest.fixture(scope="module")
def demo(store: SyntheticStore, tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str]:
    return report(store.uri, tmp_path_factory.mktemp("demo"))


def test_comparison_shows_what_was_logged(demo: tuple[Page, str]) -> None:
    rows = {row[0][0]: row[1:] for row in demo[0].tables["comparison"]}
    for name in BEST:
        label = name.replace("image_retrieval_", "text → image ").replace("text_retrieval_", "image → text ")
        label = label.replace("/", " ").replace("recall@", "R@").replace("_", " ")
        best, control, teacher, gap, where = rows[label]
        assert where[0].endswith("held out")
        logged = (BEST[name], CONTROL[name], TEACHER[name])
        assert tuple(float(cell[1]) for cell in (best, control, teacher)) == logged
        assert [cell[0] for cell in (best, control, teacher)] == [f"{100 * value:.1f} %" for value in logged]
        assert float(gap[1]) == pytest.approx(BEST[name] - CONTROL[name])
    assert [cell[0] for cell in rows["optimizer steps"]] == ["240", "240", "900", "", ""]
    assert [cell[1] for cell in rows["wall time"]] == ["61.5", "44.75", "180.5", "", ""]
    assert rows["trainable parameters"][0][0] == "812,345"


def test_trials_are_ranked_with_their_values(demo: tuple[Page, str]) -> None:
    head, *rows = demo[0].tables["trials"]
    assert [cell[0] for cell in head][7:-1] == SEARCHED
    assert [row[0][1] for row in rows] == ["t0", "t1", "t2", "t3"]
    assert rows[0][0][0] == "t0 (leader)"
    assert demo[0].column("trials", "rank") == ["1", "2", "3", "—"]
    # Four trials, teacher, best and control.
    total = sum(30.25 + index for index in range(4)) + 180.5 + 61.5 + 44.75
    for index, (row, content) in enumerate(zip(rows, TRIALS.values(), strict=True)):
        assert row[2][0] == content["state"]
        if math.isnan(content["last"]):
            assert row[3] == ("NaN", "")
        else:
            assert float(row[3][1]) == content["last"]
        assert (int(float(row[4][1])), float(row[5][1])) == (content["steps"], 30.25 + index)
        assert float(row[6][1]) == pytest.approx((30.25 + index) / total)
        assert float(row[7][1]) == content["params"]["loss.feature_distillation"]
        assert row[8][0] == content["params"]["loss.negatives"]
    heads = [attributes for tag, attributes in demo[0].tags if tag == "th" and "aria-sort" in attributes]
    assert len(heads) >= len(head)


def test_summary_names_leader_control_steps_and_seed(demo: tuple[Page, str]) -> None:
    page, twin = demo
    for text in (page.text, twin):
        assert "Leading, unconfirmed: t0, validation mean R@1 43.1 %." in text
        assert "what the search gained is not known" in text  # the study does not record its starting recipe
        assert "Against the control (the same recipe without distillation): +28.1 points test mean R@1" in text
        assert "(47.0 % against 18.9 %), one seed. This is what distillation adds, not the search." in text
        assert "4 trials (2 completed, 1 failed, 1 pruned) over 3 parameters" in text
        assert "t0 is the best" not in text
    assert "feature_distillation 1235, negatives hardest, learning_rate 0.00123 · validation mean R@1" in page.text
    assert demo[0].tables["setting"][1:] == [
        [(path, path), (str(value), str(value))]
        for path, value in zip(SEARCHED, (1234.5678, "hardest", 0.00123), strict=True)
    ]
    reasons = {row[0][0]: row[3][0] for row in demo[0].tables["unfinished"][1:]}
    assert reasons["t2"] == "stopped by ASHA at step 80"
    assert reasons["t3"] == "loss is not finite at step 40; not finite: validation mean R@1"


def test_curves_are_the_logged_points(demo: tuple[Page, str]) -> None:
    import plotly.graph_objects as go

    figures = demo[0].figures()
    for figure in figures.values():
        # plotly validates every property.
        go.Figure(figure)
    lines = figures["plot-validation"]["data"]
    assert len(lines) == 6
    for line, content in zip(lines, TRIALS.values(), strict=False):
        points = curve(content["last"], content["steps"])
        assert line["x"] == [step for step, _ in points]
        assert line["y"] == [None if math.isnan(value) else value for _, value in points]
    assert [sum(bool(line["showlegend"]) for line in lines), lines[0]["name"]] == [3, "trials"]
    assert figures["plot-loss"]["data"][1]["y"] == [value for _, value in loss(240, 0.5)]
    training, rest = figures["plot-cost"]["data"]
    assert [a + b for a, b in zip(training["y"], rest["y"], strict=True)] == pytest.approx(
        [180.5, 30.25, 31.25, 32.25, 33.25, 61.5, 44.75]
    )
    history = {trace["name"]: trace for trace in figures["plot-history"]["data"]}
    # The failed trial has no value.
    assert history["best so far"]["y"] == [0.4312] * 3
    assert history["completed"]["customdata"] == ["t0", "t1"]


def test_reproduction(demo: tuple[Page, str]) -> None:
    page, twin = demo
    command = "siclip-platform tune --space search_spaces/wikd.yaml --trials 4 --seed 7"
    assert f"git checkout {COMMIT}\n{command}" in page.text
    assert f"git checkout {COMMIT}\n{command}" in twin
    rows = {row[0][0]: [row[1][0], row[2][0], row[4][0]] for row in page.tables["provenance"][1:]}
    assert rows["leading"] == [COMMIT, "d" * 12, "b" * 12]
    assert rows["control"] == [COMMIT, "d" * 12, "c" * 12]


def test_compute_adds_up(demo: tuple[Page, str]) -> None:
    totals = dict(zip(demo[0].column("totals", "quantity"), demo[0].column("totals", "value"), strict=True))
    total = sum(30.25 + index for index in range(4)) + 180.5 + 61.5 + 44.75
    assert totals["wall time of all runs"] == f"{total:.1f} s"
    assert totals["of this in training steps"] == f"{0.8 * total:.1f} s"
    # Seven runs of ten seconds each, three of them completed or pruned trials.
    assert totals["trials per hour, completed or pruned"] == f"{3600 * 3 / 70:.1f}"


def test_newest_study_or_the_named_one(store: SyntheticStore, tmp_path: Path, demo: tuple[Page, str]) -> None:
    assert "# Search wikd-demo" in demo[1]
    _, twin = report(store.uri, tmp_path, study="older")
    assert "# Search older" in twin
    assert "Not a fair comparison: leading 240 steps, control 120." in twin


def test_several_studies_in_one_report(store: SyntheticStore, tmp_path: Path) -> None:
    page, twin = report(store.uri, tmp_path, study=["older", "wikd-demo"])
    assert page.column("overview", "study") == ["older", "wikd-demo"]
    # Without the last column, the run's id.
    both = [[row[:-1] for row in page.tables[key]] for key in ("trials", "s2-trials")]
    assert both[0] == both[1]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert "## Search older" in twin and "report_files/plots/s2-validation.png" in twin


def test_mlflow_global_state_is_not_changed(store: SyntheticStore, tmp_path: Path) -> None:
    import mlflow

    before = mlflow.get_tracking_uri()
    report(store.uri, tmp_path)
    assert mlflow.get_tracking_uri() == before != store.uri
