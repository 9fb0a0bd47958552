"""Reports of empty, small and unfinished stores, and the selection of studies and runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from report_pages import report
from report_store import METRIC, Ablation, SyntheticStore, add_ablation

from siclip.errors import UserError
from siclip_platform.report import Selection, write_report
from siclip_platform.report.watch import follow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, mlflow_database: bytes) -> SyntheticStore:
    return SyntheticStore(tmp_path_factory.mktemp("store"), mlflow_database)


def test_an_empty_store_is_reported_as_empty(tmp_path: Path, mlflow_database: bytes) -> None:
    empty = SyntheticStore(tmp_path / "empty", mlflow_database)
    page, twin = report(empty.uri, tmp_path)
    for text in (page.text, twin):
        assert "The tracking store has no runs" in text
    assert page.figures() == {}


def test_one_trial_still_running(store: SyntheticStore, tmp_path: Path) -> None:
    experiment = store.experiment("half")
    study = store.run(experiment, "study", state="running", tags={"siclip.study": "half"})
    store.run(experiment, "trial", parent=study, state="running", tags={"siclip.trial": "only"})
    page, twin = report(store.uri, tmp_path, experiment="half")
    for text in (page.text, twin):
        assert "1 trial (1 running)" in text
        assert "No completed trial has a value, so none leads." in text
        assert "The study has no control run." in text
        assert "The study does not record which parameters it searched." in text
        assert "No trial has a value yet." in text
        assert "Let it finish: 1 of 1 run still running or interrupted." in text
    row = page.tables["trials"][1]
    assert [cell[0] for cell in row][:4] == ["only", "—", "running", "not recorded"]
    assert page.figures() == {}


def test_a_study_without_trials(store: SyntheticStore, tmp_path: Path) -> None:
    tags = {"siclip.study": "changed", "siclip.git_commit": "0123456789ab-dirty"}
    store.run(store.experiment("changed"), "study", tags=tags)
    page, twin = report(store.uri, tmp_path, experiment="changed")
    for text in (page.text, twin):
        assert "git checkout 0123456789ab\n# the code that ran also had uncommitted changes\n" in text
        assert "The study has no trials." in text


def test_best_without_control_and_with_an_infinite_metric(store: SyntheticStore, tmp_path: Path) -> None:
    experiment = store.experiment("no control")
    tags = {"siclip.study": "lonely", "siclip.searched": json.dumps(["loss.x"])}
    study = store.run(experiment, "study", tags=tags, params={"study.metric": METRIC})
    for trial, value in (("a", 0.25), ("b", math.inf), ("c", 0.5), ("d", math.nan)):
        metrics = {METRIC: value, "cost/seconds": 2.0}
        store.run(experiment, "trial", parent=study, tags={"siclip.trial": trial}, metrics=metrics)
    page, _ = report(store.uri, tmp_path, experiment="no control")
    assert [row[0][0] for row in page.tables["trials"][1:]] == ["c (leader)", "a", "b", "d"]
    assert [row[3][0] for row in page.tables["trials"][3:]] == ["∞", "NaN"]
    assert "Leading, unconfirmed: c" in page.text
    store.run(experiment, "best", parent=study, tags={"siclip.best_trial": "c"}, metrics={"test/mean_recall@1": 0.5})
    page, twin = report(store.uri, tmp_path, experiment="no control")
    assert "There is no control run" in page.text
    assert "There is no control run" in twin
    assert page.tables["comparison"][1][2][0] == "no run"


def test_one_completed_trial(store: SyntheticStore, tmp_path: Path) -> None:
    """With a value it leads but is not called the best; without the study's metric no trial leads."""
    tags = {"siclip.study": "one", "siclip.searched": json.dumps(["loss.x"])}
    for name, metrics in (("one", {METRIC: 0.25}), ("none", {"train/loss": 1.0})):
        experiment = store.experiment(f"one trial, {name}")
        study = store.run(experiment, "study", tags=tags, params={"study.metric": METRIC})
        params = {"loss.x": 1, "training.seed": 0}
        store.run(experiment, "trial", parent=study, tags={"siclip.trial": "a"}, metrics=metrics, params=params)
    page, twin = report(store.uri, tmp_path, experiment="one trial, one")
    for text in (page.text, twin):
        assert "1 trial (1 completed)" in text
        assert "Leading, unconfirmed: a" in text and "a is the best" not in text
        assert "the study has 1 completed trial." in text
    assert page.column("trials", "trial") == ["a (leader)"]
    page, twin = report(store.uri, tmp_path, experiment="one trial, none")
    for text in (page.text, twin):
        assert "No completed trial has a value, so none leads." in text
    assert page.column("trials", "validation mean R@1") == ["not recorded"]


def test_an_unfinished_ablation(store: SyntheticStore, tmp_path: Path) -> None:
    """One seed, a setting whose run failed, one without the metric, and a baseline that has not run."""
    experiment = store.experiment("half ablation")
    study = store.study(experiment, "half", study_type="ablation", tags={"baseline": "base"}, state="running")
    for order, (name, state, metrics) in enumerate(
        [("one", "completed", {METRIC: 0.4}), ("two", "failed", {METRIC: 0.1}), ("three", "completed", {})]
    ):
        tags = {"siclip.setting": name, "siclip.setting_order": str(order), "siclip.reason": "out of memory"}
        params = {"training.seed": 0}
        store.run(experiment, "trial", parent=study, state=state, tags=tags, metrics=metrics, params=params)
    page, _ = report(store.uri, tmp_path, experiment="half ablation")
    assert "The baseline 'base' has no run in the store." in page.text
    without_value = "? no completed run with a value"
    verdicts = page.column("ablation", "verdict")
    assert verdicts == ["? cannot be judged with 1 seed", without_value, without_value]
    assert "No setting can be judged yet" in page.text
    assert "No setting is called the best." in page.text
    assert page.column("unfinished", "reason") == ["out of memory"]


def test_runs_of_no_study(store: SyntheticStore, tmp_path: Path) -> None:
    experiment = store.experiment("loose")
    params = {"training.seed": 1, "loss.x": "a"}
    curves = {METRIC: [(1, 0.1), (2, 0.3)]}
    ids = [
        store.run(experiment, "train", name=f"run {i}", params=params | {"loss.x": i}, curves=curves) for i in "ab"
    ]
    page, _ = report(store.uri, tmp_path, experiment="loose")
    assert sorted(page.column("trials", "trial")) == ["run a", "run b"]
    assert set(page.column("trials", "loss.x")) == {"a", "b"}
    page, _ = report(store.uri, tmp_path, selection=Selection(runs=(ids[0][:8],)))
    assert page.column("trials", "trial") == ["run a"]
    page, _ = report(store.uri, tmp_path, selection=Selection(search="params.`loss.x` = 'b'"))
    assert page.column("trials", "trial") == ["run b"]


def test_studies_by_tag(store: SyntheticStore, tmp_path: Path) -> None:
    experiment = store.experiment("tagged")
    add_ablation(store, experiment, "asked", Ablation({"a": 0.3, "b": 0.4}, seeds=(0,), question="teacher"))
    for chosen in (Selection(tags=("question=teacher",)), Selection(search="tags.`siclip.question` = 'teacher'")):
        page, twin = report(store.uri, tmp_path, selection=chosen)
        assert "# Ablation asked" in twin
        assert "How much depends on the teacher" in page.text


def test_an_error_names_what_does_not_exist(store: SyntheticStore, tmp_path: Path) -> None:
    store.study(store.experiment("named"), "known")
    for selection, message in (
        (Selection(studies=("nope",)), r"no study 'nope' .*'known'"),
        (Selection(experiment="nope"), r"no MLflow experiment 'nope'.*'named'"),
        (Selection(runs=("nope",)), r"no run 'nope'.* newest runs are"),
        (Selection(tags=("question=nope",)), "no run has the tag question"),
        (Selection(tags=("question",)), "write NAME=VALUE"),
        (Selection(search="tags.`x` = 'nope'"), "no run matches"),
        (Selection(search="what is this"), "does not accept the search"),
    ):
        with pytest.raises(UserError, match=message):
            write_report(store.uri, tmp_path, selection=selection)
    missing = tmp_path / "missing.db"
    with pytest.raises(UserError, match=r"no MLflow database at .*missing\.db"):
        write_report(f"sqlite:///{missing}", tmp_path)
    # MLflow would have created it.
    assert not missing.exists()
    (tmp_path / "other.db").write_text("not a database")
    with pytest.raises(UserError, match="cannot be read"):
        write_report(f"sqlite:///{tmp_path / 'other.db'}", tmp_path)
    # A file where the folder should be.
    taken = tmp_path / "file"
    taken.write_text("")
    with pytest.raises(UserError, match="cannot write the report"):
        write_report(store.uri, taken)


def test_artifacts_and_links(store: SyntheticStore, tmp_path: Path) -> None:
    experiment = store.experiment("links")
    study = add_ablation(store, experiment, "links", Ablation({"a": 0.3, "b": 0.4}, seeds=(0, 1)))
    page, twin = report(
        store.uri, tmp_path, experiment="links", mlflow_url="https://me:secret@mlflow.example/", log_artifacts=True
    )
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    trials = store.client.search_runs([experiment], "tags.`siclip.kind` = 'trial'")
    for run in trials:
        assert f"https://mlflow.example/#/experiments/{experiment}/runs/{run.info.run_id}" in links
        assert f"runs/{run.info.run_id}>)" in twin
    assert "secret" not in page.text + twin + "".join(filter(None, links))
    names = {item.path for item in store.client.list_artifacts(study, "report")}
    assert names == {"report/report.html", "report/report.md", "report/report_files"}
    with pytest.raises(UserError, match="write http"):
        write_report(store.uri, tmp_path, mlflow_url="javascript:alert(1)")


def test_a_watched_report_follows_the_study_to_its_end(store: SyntheticStore, tmp_path: Path) -> None:
    study = store.study(store.experiment("watched"), "watched", state="running")
    waits: list[float] = []

    def wait(seconds: float) -> None:
        assert 'data-seconds="30"' in (tmp_path / "report.html").read_text()
        waits.append(seconds)
        if len(waits) == 2:
            store.client.set_tag(study, "siclip.state", "completed")

    last = follow(
        lambda: write_report(store.uri, tmp_path, experiment="watched", watch_seconds=30), 30, lambda _: None, wait
    )
    assert len(waits) == 2 and all(0 <= seconds <= 30 for seconds in waits)
    assert not last.running
    assert "data-seconds=" not in last.html.read_text().partition("<script")[0]
