"""Report pages in headless Chromium; skipped where it is not installed."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_store import Ablation, SyntheticStore, add_ablation, add_search

from siclip_platform.datasets.tools.summary import NAME
from siclip_platform.report import write_report

pytestmark = pytest.mark.slow
EVIL = '<img src=x onerror="document.title=1">' + "=1+1 " + "long" * 60
# One transparent pixel.
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)
PHONE = {"width": 390, "height": 844}


def chromium() -> str | None:
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    return found or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install -e '.[dev]')")
    path = chromium()
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium, or set CHROMIUM to its path")
    with sync_api.sync_playwright() as playwright:
        # Chromium's sandbox requires privileges that containers lack.
        made = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, mlflow_database: bytes) -> dict[str, Path]:
    """A search, an ablation with every kind of block, an ablation with hostile names, and an empty experiment."""
    folder = tmp_path_factory.mktemp("pages")
    store = SyntheticStore(folder / "store", mlflow_database)
    means = {"from scratch": 0.3, "+ FD": 0.36, "+ PM": 0.31}
    sharing = ("none", "qk:0-0-1-1", "block:0-0-0-0")
    params = {name: {"model.text_sharing": each} for name, each in zip(means, sharing, strict=True)}
    study = add_ablation(
        store,
        store.experiment("ablation"),
        "ablation",
        Ablation(means, confirm="+ FD", question="sharing", params=params),
    )
    example = {"image": PIXEL, "captions": ["a dot"], "retrieved": [{"caption": "a dot", "right": True}]}
    split = {"rows": 10, "shards": 1, "bytes": 1000}
    identity = {"name": "dots", "version": "1", "hash": "x"}
    summary = {**identity, "examples": [example], "splits": {"train": split}, "pool": 9}
    store.client.log_text(study, json.dumps(summary), NAME)
    add_search(store, store.experiment("search"), "search", trials=45)
    hostile = Ablation({EVIL: 0.4, EVIL + "2": 0.5}, seeds=(0, 1))
    add_ablation(store, store.experiment("hostile"), EVIL, hostile)
    store.experiment("empty")
    names = ("ablation", "search", "hostile", "empty")
    return {name: write_report(store.uri, folder / name, experiment=name).html for name in names}


class Opened:
    """A loaded page whose plots are drawn, with its console messages and network requests."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.context = browser.new_context(accept_downloads=True, **context)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        # Generous, because each page contains plotly's 5 MB of JavaScript.
        self.page.goto(path.as_uri(), timeout=120_000)
        self.plots = self.page.locator(".plot").count()
        self.page.wait_for_function(
            "count => document.querySelectorAll('.plot[data-drawn]').length === count", arg=self.plots, timeout=90_000
        )


def serious_faults(page: Any) -> list[tuple[str, str]]:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    found = axe.Axe().run(page).response["violations"]
    return [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")]


@pytest.mark.parametrize(
    ("name", "scheme"), [("ablation", "light"), ("search", "dark"), ("hostile", "light"), ("empty", "dark")]
)
def test_a_page_renders_at_any_width_without_network(
    browser: Any, pages: dict[str, Path], name: str, scheme: str
) -> None:
    """No console message, no request, every plot drawn, no horizontal scrolling, no serious fault by axe-core."""
    opened = Opened(browser, pages[name], viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    page = opened.page
    assert (opened.plots >= 5) is (name != "empty")
    marks = (
        "plots => plots.every(plot => plot.querySelector('.trace path, .point, .points path, .heatmaplayer image'))"
    )
    assert page.locator(".plot").evaluate_all(marks)
    assert page.title() not in ("1", "")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    ids = page.evaluate("[...document.querySelectorAll('main [id], nav [id], header [id]')].map(each => each.id)")
    assert len(ids) == len(set(ids))
    assert serious_faults(page) == []
    page.set_viewport_size(PHONE)
    # plotly redraws after the resize event.
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert opened.messages == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [pages[name].as_uri()]
    opened.context.close()


def test_tables_sort_by_keyboard_plots_download_and_the_page_prints(browser: Any, pages: dict[str, Path]) -> None:
    opened = Opened(browser, pages["search"], viewport={"width": 1280, "height": 900})
    page = opened.page

    def column(number: int) -> list[str]:
        cells = page.locator(f"#trials tbody tr > *:nth-child({number})")
        values: list[str] = cells.evaluate_all("cells => cells.map(cell => cell.dataset.value)")
        return values

    heading = page.locator("#trials thead th").nth(3)
    assert heading.get_attribute("aria-sort") == "none"
    heading.locator("button").focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    values = [float(value) for value in column(4) if value]
    assert values == sorted(values) and len(set(values)) > 10
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert [float(value) for value in column(4) if value] == values[::-1]
    page.locator("#trials thead th").nth(2).locator("button").click()
    assert column(3) == sorted(column(3))
    with page.expect_download() as download:
        page.locator("figure:has(#plot-history) button").click()
    rows = list(csv.reader(io.StringIO(Path(download.value.path()).read_text(encoding="utf-8-sig"))))
    assert rows[0] == ["series", "label", "x", "y", "low", "high"]
    assert sum(row[0] == "best so far" for row in rows) == 45
    content = page.pdf(format="A4")
    assert content.startswith(b"%PDF") and len(content) > 50_000
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert page.locator("#trials").is_visible()
    opened.context.close()
