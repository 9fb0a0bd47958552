"""The sections of a report compared with values computed here from the logged metrics."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_pages import Page, report
from report_store import METRIC, PATTERNS, Ablation, SyntheticStore, add_ablation, add_search
from scipy import stats
from statsmodels.stats.multitest import multipletests

MEANS = {"from scratch": 0.30, "+ FD": 0.36, "+ CRD": 0.301, "+ PM": 0.26}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, mlflow_database: bytes) -> SyntheticStore:
    made = SyntheticStore(tmp_path_factory.mktemp("store"), mlflow_database)
    sharing = dict(zip(MEANS, PATTERNS, strict=False))
    params = {
        name: {"model.text_sharing": pattern, "model.image_sharing": "qk:0-0"} for name, pattern in sharing.items()
    }
    studies: dict[str, Ablation] = {
        "ablation": Ablation(MEANS, seeds=range(4), confirm="+ FD", question="sharing", params=params),
        "divergence": Ablation(MEANS, question="divergence", params=params),
        "pm": Ablation(MEANS, question="pair_matching"),
        "ratio": Ablation(
            {"none": 0.3, "half": 0.35, "all": 0.32},
            question="caption_ratio",
            params={name: {"data.synthetic_share": x} for name, x in (("none", 0.0), ("half", 0.5), ("all", 1.0))},
        ),
        "scaling": Ablation(
            {str(size): 1 - 2 * size**-0.2 for size in (1000, 4000, 16000, 64000)},
            noise=0.001,
            shared_noise=0.0,
            question="scaling",
            params={str(size): {"data.limit": size} for size in (1000, 4000, 16000, 64000)},
        ),
    }
    for name, plan in studies.items():
        add_ablation(made, made.experiment(name), name, plan)
    add_search(made, made.experiment("search"), "search", trials=60)
    return made


@pytest.fixture(scope="module")
def pages(store: SyntheticStore, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    names = ("ablation", "divergence", "pm", "ratio", "scaling", "search")
    return {name: report(store.uri, tmp_path_factory.mktemp(name), experiment=name)[0] for name in names}


def logged(store: SyntheticStore, experiment: str, kind: str, metric: str = METRIC) -> dict[tuple[str, int], float]:
    """(setting, seed) → value, read with MLflow's client."""
    found = store.client.search_runs([store.experiment(experiment)], f"tags.`siclip.kind` = '{kind}'")
    key = metric.replace("@", "_at_")
    return {
        (run.data.tags["siclip.setting"], int(run.data.tags["siclip.seed"])): run.data.metrics[key] for run in found
    }


def test_the_ablation_table_equals_scipy(store: SyntheticStore, pages: dict[str, Page]) -> None:
    values = logged(store, "ablation", "seed")
    arrays = {name: np.array([values[name, seed] for seed in range(4)]) for name in MEANS}
    base = arrays["from scratch"]
    tests = {name: stats.ttest_rel(arrays[name], base) for name in list(MEANS)[1:]}
    corrected = multipletests([test.pvalue for test in tests.values()], method="holm")[1]
    head, *rows = pages["ablation"].tables["ablation"]
    assert [row[0][1] for row in rows] == list(MEANS)
    for row, (name, test), p in zip(rows[1:], tests.items(), corrected, strict=True):
        cells = dict(zip((cell[0].rstrip() for cell in head), row, strict=True))
        assert float(cells["mean"][1]) == pytest.approx(arrays[name].mean())
        assert float(cells["difference"][1]) == pytest.approx((arrays[name] - base).mean())
        low, high = (100 * edge for edge in test.confidence_interval())
        assert cells["95 % interval of difference"][0] == f"{low:+.1f} to {high:+.1f}".replace("-", "−")
        assert float(cells["Holm p"][1]) == pytest.approx(p)
        expected = "not distinguishable" if p >= 0.05 else "better" if test.statistic > 0 else "worse"
        assert cells["verdict"][1] == expected
    verdicts = pages["ablation"].column("ablation", "verdict")
    assert verdicts[0] == "● baseline" and verdicts[1] == "▲ better (4 seeds)" and verdicts[3] == "▼ worse (4 seeds)"
    assert "≈ not distinguishable with 4 seeds; " in verdicts[2]


def test_only_fresh_seeds_make_a_setting_the_best(store: SyntheticStore, pages: dict[str, Page]) -> None:
    fresh = logged(store, "ablation", "confirm", "test/mean_recall@1")
    gaps = [fresh["+ FD", seed] - fresh["from scratch", seed] for seed in range(100, 105)]
    low, high = (100 * edge for edge in stats.ttest_1samp(gaps, 0).confidence_interval())
    text = pages["ablation"].text
    assert f"+ FD is the best: 5 fresh seeds, not used to select it, give {100 * np.mean(gaps):+.1f} points" in text
    assert f"(same fresh seeds), 95 % interval {low:+.1f} to {high:+.1f}." in text
    assert "Best setting" in text
    text = pages["ratio"].text
    assert " is the best:" not in text
    assert "Leading, unconfirmed" in text or "No setting is called the best" in text


def test_seeds_are_drawn_as_bands(store: SyntheticStore, pages: dict[str, Page]) -> None:
    values = logged(store, "ablation", "seed")
    traces = pages["ablation"].figures()["plot-validation"]["data"]
    lines = {trace["name"]: trace for trace in traces if "fill" not in trace}
    bands = {trace["name"]: trace for trace in traces if "fill" in trace}
    ends = [values["+ FD", seed] for seed in range(4)]
    assert lines["+ FD"]["y"][-1] == pytest.approx(np.mean(ends))
    low, high = stats.t.interval(0.95, 3, np.mean(ends), stats.sem(ends))
    count = len(lines["+ FD"]["x"])
    assert bands["+ FD"]["y"][count - 1] == pytest.approx(high)
    assert bands["+ FD"]["y"][count] == pytest.approx(low)


def test_importance_finds_the_decisive_parameter(pages: dict[str, Page]) -> None:
    """In the synthetic search the learning rate decides nearly everything."""
    shares = dict(zip(pages["search"].column("importances", "parameter"), _shares(pages["search"]), strict=True))
    assert max(shares, key=lambda name: shares[name][1]) == "training.learning_rate"
    assert sum(share[0] for share in shares.values()) == pytest.approx(1)
    heat = pages["search"].figures()["plot-interaction"]["data"][0]
    counted = sum(int(text.split("n=")[1].rstrip(")")) for row in heat["text"] for text in row if text)
    assert counted == pages["search"].column("trials", "state").count("completed")


def _shares(page: Page) -> list[tuple[float, float]]:
    rows = page.tables["importances"][1:]
    return [(float(row[1][1]), float(row[2][1])) for row in rows]


def test_search_history_and_front(store: SyntheticStore, pages: dict[str, Page]) -> None:
    found = store.client.search_runs(
        [store.experiment("search")], "tags.`siclip.kind` = 'trial'", order_by=["attributes.start_time ASC"]
    )
    key = METRIC.replace("@", "_at_")
    best, expected = math.nan, []
    for run in found:
        value = run.data.metrics[key]
        if run.data.tags["siclip.state"] == "completed" and not value <= best:
            best = value
        expected.append(None if math.isnan(best) else best)
    history = {trace["name"]: trace for trace in pages["search"].figures()["plot-history"]["data"]}
    assert history["best so far"]["y"] == expected
    front = {trace["name"]: trace for trace in pages["search"].figures()["plot-pareto-parameters"]["data"]}[
        "Pareto front"
    ]
    done = [run.data for run in found if run.data.tags["siclip.state"] == "completed"]
    points = [(d.metrics["cost/parameters_image"] + d.metrics["cost/parameters_text"], d.metrics[key]) for d in done]
    kept = [p for p in points if not any(c <= p[0] and q >= p[1] and (c, q) != p for c, q in points)]
    assert sorted(zip(front["x"], front["y"], strict=True)) == sorted(kept)
    reasons = pages["search"].column("unfinished", "reason")
    assert all(reason.startswith("stopped by ASHA") or reason == "loss is NaN" for reason in reasons)
    assert "at 11, 33 steps" in pages["search"].text


def test_scaling_recovers_the_true_law(pages: dict[str, Page]) -> None:
    text = pages["scaling"].text
    assert "How quality scales with the number of pairs" in text
    exponent = float(text.partition("N^−")[2].partition(",")[0])
    assert exponent == pytest.approx(0.2, abs=0.01)
    low, high = text.partition("interval of the exponent ")[2].partition(". Its interval excludes 0")[0].split(" to ")
    assert float(low) < exponent < float(high)


@pytest.mark.parametrize(
    ("name", "title", "figure"),
    [
        ("ablation", "Which sharing pattern is best", "plot-forest"),
        ("divergence", "Whether shared blocks stay similar during training", "plot-divergence-text"),
        ("pm", "Whether pair matching helps beyond retrieval", "plot-pair-positive-accuracy"),
        ("ratio", "Which ratio of synthetic captions is best", "plot-ratio"),
        ("scaling", "How quality scales with the number of pairs", "plot-scaling"),
    ],
)
def test_a_study_answers_its_question(pages: dict[str, Page], name: str, title: str, figure: str) -> None:
    assert title in pages[name].text
    assert figure in pages[name].figures()
    assert title not in pages["search"].text


def test_answers_contain_the_computed_values(store: SyntheticStore, pages: dict[str, Page]) -> None:
    assert "Pairs that share weights drift apart: change +0.0" in pages["divergence"].text
    values = logged(store, "pm", "seed", "test/beats_all_negatives")
    expected = stats.ttest_rel(*([values[name, seed] for seed in range(3)] for name in ("+ PM", "+ CRD")))
    # The one setting with pair matching, and the nearest in order of those without it.
    rows = {row[0][0]: row for row in pages["pm"].tables["beyond"][1:]}
    assert [cell[0] for cell in rows["test beats all negatives"][1:3]] == ["+ PM", "+ CRD"]
    gap = np.mean([values["+ PM", seed] - values["+ CRD", seed] for seed in range(3)])
    assert float(rows["test beats all negatives"][4][1]) == pytest.approx(gap)
    assert float(rows["test beats all negatives"][6][1]) == pytest.approx(expected.pvalue * len(rows))
    ratio: dict[str, Any] = pages["ratio"].figures()["plot-ratio"]["data"][0]
    assert ratio["x"] == [0.0, 0.5, 1.0]
    ranked = [float(row[2][1]) for row in pages["ablation"].tables["ranked"][1:]]
    assert ranked == sorted(ranked, reverse=True)
    shared = dict(
        zip(pages["ablation"].column("patterns", "text"), pages["ablation"].column("patterns", "saved"), strict=True)
    )
    assert set(shared) == set(PATTERNS[:4])
    diagrams = [a["aria-label"] for tag, a in pages["ablation"].tags if tag == "svg"]
    assert "text qk:0-0-1-1: weights A A B B" in diagrams and "image qk:0-0: weights A A" in diagrams


def test_device_time_and_bytes_are_sums_over_runs(store: SyntheticStore, pages: dict[str, Page]) -> None:
    page = pages["ablation"]
    totals = dict(zip(page.column("totals", "quantity"), page.column("totals", "value"), strict=True))
    key = "cost/device_seconds_cuda"
    seconds = [value for kind in ("seed", "confirm") for value in logged(store, "ablation", kind, key).values()]
    assert len(seconds) == 4 * 4 + 2 * 5
    assert totals["device time, GPU, 26 runs"] == f"{sum(seconds):.1f} s"
    assert totals["last checkpoint of each run, 26 runs"] == "208.0 MB"
    assert totals["dataset on disk"] == "not recorded"


def test_missing_data_are_reported(pages: dict[str, Page]) -> None:
    assert "No run of this study logged data_summary.json" in pages["search"].text


def test_an_invalid_summary_is_reported(store: SyntheticStore, tmp_path: Path) -> None:
    study = add_ablation(store, store.experiment("broken"), "broken", Ablation({"a": 0.1, "b": 0.2}, seeds=(0,)))
    image = {"image": "https://evil.example/x.png", "captions": []}
    content = {"name": "x", "version": "1", "hash": "h", "examples": [image]}
    store.client.log_text(study, json.dumps(content), "data_summary.json")
    page, _ = report(store.uri, tmp_path, experiment="broken")
    assert "data_summary.json cannot be read: examples.0.image" in page.text
    assert "evil.example" not in "".join(str(attributes) for _, attributes in page.tags)
