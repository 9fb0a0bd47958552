"""Names that are HTML, formulas, very long or in another alphabet are shown as plain text."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from report_pages import Page, report
from report_store import METRIC, Ablation, SyntheticStore, add_ablation

from siclip_platform.datasets.tools.summary import NAME
from siclip_platform.report.draw.csv_files import field, write_csv

# HTML, the end of a Markdown cell, code, emphasis, a plotly template, TeX and a lookup.
EVIL = "<script>alert('x')</script>|`a`\n*b* %{y} $\\frac$ ${jndi}"
FORMULA = '=HYPERLINK("http://evil.example","x")'
LONG = "very-long-" * 40
FOREIGN = "設定 שלום 🙂 µ"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, mlflow_database: bytes) -> SyntheticStore:
    made = SyntheticStore(tmp_path_factory.mktemp("hostile"), mlflow_database)
    experiment = made.experiment("hostile")
    tags = {
        "siclip.study": EVIL,
        "siclip.git_commit": EVIL,
        "siclip.searched": json.dumps(["loss.negatives", EVIL, FORMULA]),
    }
    study = made.run(experiment, "study", tags=tags, params={"study.space": EVIL, "study.metric": METRIC})
    for index, name in enumerate((EVIL, FORMULA, LONG, FOREIGN)):
        run_tags = {"siclip.trial": name, "siclip.reason": name}
        params = {"loss.negatives": name, "model.name": name, "model.text_sharing": name}
        curves = {METRIC: [(1, 0.1), (2, 0.2 + index / 100)]}
        state = "completed" if index else EVIL
        made.run(experiment, "trial", parent=study, state=state, tags=run_tags, params=params, curves=curves)
    for kind in ("best", "control"):
        values = {"loss.negatives": EVIL + kind, "model.name": EVIL, "training.seed": EVIL}
        arguments = {"tags": {"siclip.best_trial": EVIL, "siclip.reason": EVIL}, "metrics": {"cost/seconds": 3.0}}
        made.run(experiment, kind, parent=study, state=EVIL, params=values, curves={METRIC: [(1, 0.1)]}, **arguments)
    names = Ablation({EVIL: 0.4, FORMULA: 0.5, LONG: 0.3, FOREIGN: 0.4})
    ablation = add_ablation(made, made.experiment("ablation"), EVIL, names)
    identity = {"name": EVIL, "version": EVIL, "hash": EVIL}
    summary: dict[str, Any] = {**identity, "recipe": {EVIL: FORMULA}, "rejected": {EVIL: 3, FORMULA: 1}}
    pixel = "data:image/png;base64,iVBORw0KGgo="
    retrieved = [{"caption": FORMULA, "right": True}]
    summary["examples"] = [{"image": pixel, "captions": [EVIL, FOREIGN], "retrieved": retrieved}]
    made.client.log_text(ablation, json.dumps(summary), NAME)
    return made


@pytest.fixture(scope="module", params=["hostile", "ablation"])
def made(request: pytest.FixtureRequest, store: SyntheticStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp(request.param)
    report(store.uri, folder, experiment=request.param)
    return folder / "out"


def test_the_page_contains_no_markup_from_the_store(made: Path) -> None:
    page = Page((made / "report.html").read_text(encoding="utf-8"))
    for tag, attributes in page.tags:
        assert not {"srcset", "action", "background"} & set(attributes), tag
        assert (attributes.get("href") or "#").startswith("#"), tag
        assert (attributes.get("src") or "data:image/").startswith("data:image/"), tag
        assert not any(name.startswith("on") for name in attributes), tag
    kinds = {tuple(attributes) for attributes, _ in page.scripts}
    assert kinds == {(), ("id",), ("type", "data-plot")}
    assert len(page.scripts) == 2 + len(page.figures())
    assert not any("alert(" in text for attributes, text in page.scripts if "data-plot" not in attributes)
    assert "url(" not in page.style and "@import" not in page.style
    policy = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy and "default-src 'none'" in (policy[0] or "") and "http" not in (policy[0] or "")
    assert EVIL in page.text or " ".join(EVIL.split()) in " ".join(page.text.split())
    names = set(page.column("trials", "trial"))
    assert any(name.startswith(FORMULA) for name in names) and any(name.startswith(LONG) for name in names)


def test_plotly_gets_plain_text(made: Path) -> None:
    """plotly interprets a subset of HTML in names and labels, and %{…} in hover texts."""

    def strings(value: object) -> list[str]:
        if isinstance(value, dict):
            return [text for inner in value.values() for text in strings(inner)]
        if isinstance(value, list):
            return [text for inner in value for text in strings(inner)]
        return [value] if isinstance(value, str) else []

    page = Page((made / "report.html").read_text(encoding="utf-8"))
    assert page.figures()
    for figure in page.figures().values():
        for text in strings(figure):
            bare = text.replace("<br>", "").replace("<extra></extra>", "")
            assert "<" not in bare, text
        for trace in figure["data"]:
            assert trace.get("hovertemplate", "").count("%{y}") == 0


def test_the_twin_has_the_same_tables(made: Path) -> None:
    page = Page((made / "report.html").read_text(encoding="utf-8"))
    twin = (made / "report.md").read_text(encoding="utf-8")
    tokens = MarkdownIt("commonmark").enable("table").parse(twin)
    rows: list[list[str]] = []
    for index, token in enumerate(tokens):
        assert token.type != "html_block"
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("td_open", "th_open"):
            children = tokens[index + 1].children or []
            assert all(child.type in ("text", "text_special") for child in children)
            rows[-1].append("".join(child.content for child in children))
    shown = [[" ".join(cell[0].split()) for cell in row] for table in page.tables.values() for row in table]
    assert sorted(rows) == sorted(shown)


def test_no_csv_field_is_a_formula(made: Path) -> None:
    files = list((made / "report_files" / "data").glob("*.csv"))
    assert files
    for path in files:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
        # A row of another length would be one that a name has broken.
        assert len({len(row) for row in rows}) == 1, path
        for cell in (cell for row in rows for cell in row):
            assert not cell.startswith(("=", "+", "@", "\t")), (path, cell)
            assert not cell.startswith("-") or float(cell) <= 0, (path, cell)


def test_every_plot_has_a_png_and_a_csv_file(made: Path) -> None:
    page = Page((made / "report.html").read_text(encoding="utf-8"))
    keys = {key.removeprefix("plot-") for key in page.figures()}
    images = {path.stem: path.read_bytes() for path in (made / "report_files" / "plots").glob("*.png")}
    assert set(images) == keys
    assert all(content.startswith(b"\x89PNG") and len(content) > 2000 for content in images.values())
    assert keys <= {path.stem for path in (made / "report_files" / "data").glob("*.csv")}


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("=1+1", "'=1+1"),
        ("+SUM(A1)", "'+SUM(A1)"),
        ("@x", "'@x"),
        ("-x", "'-x"),
        (" =1", "' =1"),
        ("\t=1", "'\t=1"),
        ("-1.5", "-1.5"),
        ("plain", "plain"),
        (-2.5, -2.5),
        (None, ""),
        ("＝1", "'＝1"),
        ("−3 points", "−3 points"),
    ],
)
def test_csv_fields_are_never_formulas(value: str | float | None, kept: str | float) -> None:
    assert field(value) == kept


def test_csv_round_trips(tmp_path: Path) -> None:
    rows = [["a,b", 'say "x"', "two\nlines", FOREIGN], [1, 2.5, None, "x"]]
    write_csv(tmp_path / "x.csv", rows)
    with (tmp_path / "x.csv").open(encoding="utf-8-sig", newline="") as file:
        assert list(csv.reader(file)) == [rows[0], ["1", "2.5", "", "x"]]
