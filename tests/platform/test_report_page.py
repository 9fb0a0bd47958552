"""The report against stores written here with MLflow's own client: what it shows is what was logged."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from siclip_platform.errors import UserError
from siclip_platform.report import write_report

METRIC = "validation/mean_recall@1"
SEARCHED = ["loss.feature_distillation", "loss.negatives", "training.learning_rate"]
EVIL = "<script>alert('x')</script>|`a`\n*b*"
COMMIT = "3f2a9d10c4b7e8f6a5d4c3b2a1908f7e6d5c4b3a"


class Store:
    """A small MLflow store, one experiment per study that a test needs."""

    def __init__(self, folder: Path) -> None:
        from mlflow import MlflowClient

        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.folder = folder
        self.client = MlflowClient(tracking_uri=self.uri)

    def experiment(self, name: str) -> str:
        return str(self.client.create_experiment(name, artifact_location=str(self.folder / "artifacts")))

    def run(
        self,
        experiment: str,
        kind: str,
        *,
        parent: str | None = None,
        state: str = "completed",
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        curves: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    ) -> str:
        from mlflow.entities import Metric, Param

        every = {"siclip.kind": kind, "siclip.state": state, **(tags or {})}
        if parent:
            every["mlflow.parentRunId"] = parent
        run = self.client.create_run(experiment, tags=every, run_name=kind).info.run_id
        values = {name: [(0, value)] for name, value in (metrics or {}).items()} | dict(curves or {})
        logged = [
            Metric(name.replace("@", "_at_"), value, 0, step)
            for name, points in values.items()
            for step, value in points
        ]
        self.client.log_batch(
            run, metrics=logged, params=[Param(key, str(value)) for key, value in (params or {}).items()]
        )
        return str(run)


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
    "t0": {
        "params": params(1234.5678, "hardest", 0.00123),
        "state": "completed",
        "last": 0.4312,
        "steps": 200,
    },
    "t1": {"params": params(12.5, "uniform", 0.0004), "state": "completed", "last": 0.2107, "steps": 200},
    "t2": {"params": params(3000.0, "teacher", 0.05), "state": "pruned", "last": 0.0904, "steps": 80},
    "t3": {"params": params(7.0, "sampled", 0.9), "state": "failed", "last": math.nan, "steps": 40},
}
BEST, CONTROL, TEACHER = retrieval(0.4701), retrieval(0.1893), retrieval(0.8004)


def full_study(store: Store, experiment: str, name: str = "wikd-demo", control_steps: int = 240) -> None:
    tags = {"siclip.study": name, "siclip.git_commit": COMMIT, "siclip.dataset_hash": "d" * 12}
    settings = {"space": "search_spaces/wikd.yaml", "metric": METRIC, "mode": "max", "trials": 4, "seed": 7}
    searched = {"siclip.searched": json.dumps(SEARCHED)}
    study_params = {f"study.{key}": value for key, value in settings.items()}
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
            curves={
                METRIC: curve(content["last"], content["steps"]),
                "train/loss": loss(content["steps"], 1.0),
            },
        )
    roles = {
        "teacher": (params(0, "sampled", 0.001), TEACHER, 900, 180.5),
        "best": (TRIALS["t0"]["params"], BEST, 240, 61.5),
        "control": (params(0, "hardest", 0.00123), CONTROL, control_steps, 44.75),
    }
    for kind, (setting, figures, steps, seconds) in roles.items():
        store.run(
            experiment,
            kind,
            parent=study,
            tags=tags
            | {"siclip.recipe_hash": kind[0] * 12}
            | ({"siclip.best_trial": "t0"} if kind == "best" else {}),
            params=setting,
            metrics=figures | cost(steps, seconds),
            curves={METRIC: curve(figures["test/mean_recall@1"], steps), "train/loss": loss(steps, 0.5)},
        )


def hostile_study(store: Store, experiment: str) -> None:
    tags = {
        "siclip.study": EVIL,
        "siclip.git_commit": EVIL,
        "siclip.searched": json.dumps(["loss.negatives", EVIL]),
    }
    study = store.run(experiment, "study", tags=tags, params={"study.space": EVIL, "study.metric": METRIC})
    run_tags = {
        "siclip.trial": EVIL,
        "siclip.reason": EVIL,
        "siclip.best_trial": EVIL,
        "siclip.recipe_hash": EVIL,
    }
    for kind in ("trial", "best", "control"):
        values = {"loss.negatives": EVIL + kind, "model.name": EVIL, "training.seed": EVIL}
        metrics = {"cost/seconds": 3.0}
        curves = {METRIC: [(1, 0.1), (2, 0.2)]}
        arguments: dict[str, Any] = {"tags": run_tags, "params": values, "metrics": metrics, "curves": curves}
        store.run(experiment, kind, parent=study, state=EVIL, **arguments)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = Store(tmp_path_factory.mktemp("store"))
    experiment = made.experiment("siclip")
    full_study(made, experiment, "older", control_steps=120)
    full_study(made, experiment)
    hostile_study(made, made.experiment("hostile"))
    return made


class Page(HTMLParser):
    """Tables by id as (text, exact value) cells, attributes, scripts and style, and the visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[tuple[str, str]]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.style = self.text = ""
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self._rows: list[list[tuple[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self._open.append((tag, found))
        if tag == "table":
            self._rows = self.tables[found["id"] or ""] = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append(("", found.get("data-value") or ""))
        elif tag == "script":
            self.scripts.append((found, ""))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        names = [tag for tag, _ in self._open]
        if "script" in names:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif "style" in names:
            self.style += data
        else:
            self.text += data
            if names and any(tag in ("td", "th") for tag in names):
                text, value = self._rows[-1][-1]
                self._rows[-1][-1] = (text + data, value)

    def figures(self) -> dict[str, dict[str, Any]]:
        return {
            attributes["data-plot"] or "": json.loads(text)
            for attributes, text in self.scripts
            if "data-plot" in attributes
        }


def report(store: Store, folder: Path, **chosen: Any) -> tuple[Page, str]:
    paths = write_report(store.uri, folder / "out", **chosen)
    return Page(paths.html.read_text(encoding="utf-8")), paths.markdown.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def demo(store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str]:
    return report(store, tmp_path_factory.mktemp("demo"))


def test_comparison_holds_what_was_logged(demo: tuple[Page, str]) -> None:
    rows = {row[0][0]: row[1:] for row in demo[0].tables["comparison"]}
    for name in BEST:
        label = name.replace("/", " ").replace("recall@", "R@").replace("_", " ")
        best, control, teacher, gap = rows[label]
        logged = (BEST[name], CONTROL[name], TEACHER[name])
        assert tuple(float(cell[1]) for cell in (best, control, teacher)) == logged
        assert [cell[0] for cell in (best, control, teacher)] == [f"{100 * value:.1f} %" for value in logged]
        assert float(gap[1]) == pytest.approx(BEST[name] - CONTROL[name])
    assert [cell[0] for cell in rows["optimizer steps"]] == ["240", "240", "900", ""]
    assert [cell[1] for cell in rows["wall time"]] == ["61.5", "44.75", "180.5", ""]
    assert rows["trainable parameters"][0][0] == "812,345"


def test_trials_are_ranked_with_their_figures(demo: tuple[Page, str]) -> None:
    head, *rows = demo[0].tables["trials"]
    assert [cell[0] for cell in head][6:] == SEARCHED
    assert [row[0][1] for row in rows] == ["t0", "t1", "t2", "t3"]
    assert rows[0][0][0] == "t0 (best)"
    total = sum(30.25 + index for index in range(4)) + 180.5 + 61.5 + 44.75
    for index, (row, content) in enumerate(zip(rows, TRIALS.values(), strict=True)):
        assert row[1][0] == content["state"]
        if math.isnan(content["last"]):
            assert row[2] == ("NaN", "")
        else:
            assert float(row[2][1]) == content["last"]
        assert (int(float(row[3][1])), float(row[4][1])) == (content["steps"], 30.25 + index)
        assert float(row[5][1]) == pytest.approx((30.25 + index) / total)
        assert float(row[6][1]) == content["params"]["loss.feature_distillation"]
        assert row[7][0] == content["params"]["loss.negatives"]
    heads = [attributes for tag, attributes in demo[0].tags if tag == "th" and "aria-sort" in attributes]
    assert len(heads) == len(head)
    buttons = [tag for tag, _ in demo[0].tags if tag == "button"]
    assert len(buttons) == len(head)


def test_summary_names_winner_control_steps_and_seed(demo: tuple[Page, str]) -> None:
    text = demo[0].text
    assert "trial t0, with validation mean R@1 43.1 %" in text
    assert "same number of optimizer steps (best 240, control 240)" in text
    assert "test mean R@1 47.0 % against 18.9 % (+28.1 points)" in text
    assert "the best setting and the control (trained without distillation) reach" in text
    assert "with one seed (seed 0)" in text
    assert "teacher (900 steps" in text
    assert "1 failed, 1 pruned" in text
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
        go.Figure(figure)  # plotly's own validation of every property
    lines = figures["plot-validation"]["data"]
    assert len(lines) == 6
    for line, content in zip(lines, TRIALS.values(), strict=False):
        points = curve(content["last"], content["steps"])
        assert line["x"] == [step for step, _ in points]
        assert line["y"] == [None if math.isnan(value) else value for _, value in points]
    assert [sum(bool(line.get("showlegend", True)) for line in lines), lines[0]["name"]] == [3, "trials"]
    assert figures["plot-loss"]["data"][1]["y"] == [value for _, value in loss(240, 0.5)]
    training, rest = figures["plot-cost"]["data"]
    assert [a + b for a, b in zip(training["y"], rest["y"], strict=True)] == pytest.approx(
        [180.5, 30.25, 31.25, 32.25, 33.25, 61.5, 44.75]
    )


def test_reproduction(demo: tuple[Page, str]) -> None:
    page, twin = demo
    command = "siclip-platform tune --space search_spaces/wikd.yaml --trials 4 --seed 7"
    assert f"git checkout {COMMIT}\n{command}" in page.text
    assert f"git checkout {COMMIT}\n{command}" in twin
    rows = {row[0][0]: [cell[0] for cell in row[1:4]] for row in page.tables["provenance"][1:]}
    assert rows["best"] == [COMMIT, "d" * 12, "b" * 12]
    assert rows["control"] == [COMMIT, "d" * 12, "c" * 12]


@pytest.mark.parametrize("experiment", ["siclip", "hostile"])
def test_page_needs_nothing_from_outside(store: Store, tmp_path: Path, experiment: str) -> None:
    page, _ = report(store, tmp_path, experiment=experiment)
    for tag, attributes in page.tags:
        assert not {"src", "href", "srcset", "action", "background"} & set(attributes), tag
        assert not any(name.startswith("on") for name in attributes), tag
    assert "url(" not in page.style
    assert "@import" not in page.style
    for attributes, text in page.scripts:
        if attributes.get("id") != "plotly":
            assert "://" not in text
            assert "import" not in text
    policy = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy and "default-src 'none'" in (policy[0] or "") and "http" not in (policy[0] or "")


def test_hostile_names_are_text(store: Store, tmp_path: Path, demo: tuple[Page, str]) -> None:
    page, twin = report(store, tmp_path, experiment="hostile")
    kinds = [{tuple(attributes) for attributes, _ in shown.scripts} for shown in (page, demo[0])]
    assert kinds[0] == kinds[1] == {(), ("id",), ("type", "data-plot")}
    assert len(page.scripts) == 3 + len(page.figures())
    assert not any("alert(" in text for attributes, text in page.scripts if "data-plot" not in attributes)
    assert page.tables["trials"][1][1][0] == EVIL
    assert page.tables["comparison"][2][1][0] == EVIL
    assert f"Study {EVIL} ran 1 trial" in page.text
    bars = page.figures()["plot-cost"]["data"][0]
    assert all("<" not in name for row in bars["customdata"] for name in row)
    prose = twin.partition("```sh")[0]
    assert len(prose) < len(twin)
    assert "<" not in prose


def test_markdown_holds_the_same_tables(store: Store, tmp_path: Path) -> None:
    from markdown_it import MarkdownIt

    for experiment in ("siclip", "hostile"):
        page, twin = report(store, tmp_path, experiment=experiment)
        tokens = MarkdownIt("commonmark").enable("table").parse(twin)
        rows: list[list[str]] = []
        for index, token in enumerate(tokens):
            if token.type == "tr_open":
                rows.append([])
            elif token.type in ("td_open", "th_open"):
                children = tokens[index + 1].children or []
                assert all(child.type in ("text", "text_special") for child in children)
                rows[-1].append("".join(child.content for child in children))
        shown = [[" ".join(cell[0].split()) for cell in row] for table in page.tables.values() for row in table]
        assert sorted(rows) == sorted(shown)


def test_newest_study_or_the_named_one(store: Store, tmp_path: Path, demo: tuple[Page, str]) -> None:
    assert "Study wikd-demo" in demo[1]
    _, twin = report(store, tmp_path, study="older")
    assert "Study older" in twin
    assert "different numbers of optimizer steps (best 240, control 120), so not a fair comparison" in twin


def test_one_trial_still_running(store: Store, tmp_path: Path) -> None:
    experiment = store.experiment("half")
    study = store.run(experiment, "study", state="running", tags={"siclip.study": "half"})
    store.run(experiment, "trial", parent=study, state="running", tags={"siclip.trial": "only"})
    page, twin = report(store, tmp_path, experiment="half")
    for text in (page.text, twin):
        assert "ran 1 trial (1 running)" in text
        assert "No completed trial with a value is known as the best one" in text
        assert "The study has no control run." in text
        assert "The study does not record which parameters it searched." in text
    row = page.tables["trials"][1]
    assert [cell[0] for cell in row] == ["only", "running", *["not recorded"] * 4]
    assert page.figures() == {}


def test_best_without_control_and_with_an_infinite_metric(store: Store, tmp_path: Path) -> None:
    experiment = store.experiment("no control")
    tags = {"siclip.study": "lonely", "siclip.searched": json.dumps(SEARCHED[:1])}
    study = store.run(experiment, "study", tags=tags, params={"study.metric": METRIC})
    for trial, value in (("a", 0.25), ("b", math.inf), ("c", 0.5)):
        metrics = {METRIC: value, "cost/seconds": 2.0}
        store.run(experiment, "trial", parent=study, tags={"siclip.trial": trial}, metrics=metrics)
    page, _ = report(store, tmp_path, experiment="no control")
    assert [row[0][0] for row in page.tables["trials"][1:]] == ["c (best)", "a", "b"]
    assert page.tables["trials"][3][2][0] == "∞"
    assert "has not been trained again yet" in page.text
    store.run(experiment, "best", parent=study, tags={"siclip.best_trial": "c"}, metrics=BEST)
    page, twin = report(store, tmp_path, experiment="no control")
    assert "There is no control run" in page.text
    assert "There is no control run" in twin
    assert page.tables["comparison"][1][2][0] == "no run"


def test_what_does_not_exist_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no study 'nope' .*'wikd-demo', 'older'"):
        write_report(store.uri, tmp_path, study="nope")
    with pytest.raises(UserError, match=r"no MLflow experiment 'nope'.*'siclip'"):
        write_report(store.uri, tmp_path, experiment="nope")
    empty = store.experiment("empty")
    with pytest.raises(UserError, match="holds no runs"):
        write_report(store.uri, tmp_path, experiment="empty")
    store.run(empty, "train")
    with pytest.raises(UserError, match="holds runs, but no study"):
        write_report(store.uri, tmp_path, experiment="empty")
    missing = tmp_path / "missing.db"
    with pytest.raises(UserError, match=r"no MLflow database at .*missing\.db"):
        write_report(f"sqlite:///{missing}", tmp_path)
    assert not missing.exists()
    taken = tmp_path / "file"
    taken.write_text("")
    with pytest.raises(UserError, match="cannot write the report"):
        write_report(store.uri, taken)


def test_mlflow_global_state_is_left_alone(store: Store, tmp_path: Path) -> None:
    import mlflow

    before = mlflow.get_tracking_uri()
    write_report(store.uri, tmp_path)
    assert mlflow.get_tracking_uri() == before != store.uri


def test_uncommitted_changes_are_told(store: Store, tmp_path: Path) -> None:
    tags = {"siclip.study": "changed", "siclip.git_commit": "0123456789ab-dirty"}
    store.run(store.experiment("changed"), "study", tags=tags)
    page, twin = report(store, tmp_path, experiment="changed")
    for text in (page.text, twin):
        assert "git checkout 0123456789ab\n# the code that ran also had changes which no commit holds\n" in text
        assert "The study has no trials." in text
