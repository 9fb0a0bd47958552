"""Published figures: the page has what the file has, and a report shows them beside runs that measured the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from siclip_platform.metrics import evaluation_key
from siclip_platform.report.draw.values import Table
from siclip_platform.report.read.published import published as figures
from siclip_platform.report.read.runs import Run, Study
from siclip_platform.report.sections.published import as_markdown, published

ROOT = Path(__file__).resolve().parents[4]
ACC, FLICKR = "eval/imagenet1k/acc1", "eval/flickr30k/image_retrieval_recall@1"


def study_of(**metrics: float) -> Study:
    run = Run(run_id="a1", name="evaluation of mine", kind="evaluation", state="completed", metrics=metrics)
    frame = Run(run_id="", name="chosen runs", kind="runs", state="completed")
    return Study(run=frame, experiment="e", type="runs", metric=ACC, trials=(run,))


def test_runs_stand_beside_the_models_that_have_the_same_figures() -> None:
    section = published(study_of(**{ACC: 0.412, FLICKR: 0.3, "validation/mean_recall@1": 0.2}))
    assert section is not None
    [table] = [block for block in section.blocks if isinstance(block, Table)]
    assert list(table.columns[2:4]) == ["ImageNet-1k", "Flickr30k text → image R@1"] and len(table.columns) == 5
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert rows["evaluation of mine"][1:3] == ["41.2", "30.0"] and table.marked == {0}
    assert rows["MobileCLIP-S0"][:3] == ["DataCompDR-1B", "67.8", "67.7"]
    assert rows["TinyCLIP ViT-8M/16"][1:3] == ["41.1", "–"]
    assert "SiCLIP" not in rows  # it has no figure
    only = published(study_of(**{FLICKR: 0.3}))
    assert only is not None and "TinyCLIP ViT-8M/16" not in {row[0].text for row in only.tables[0].rows}


def test_runs_without_such_a_figure_have_no_section() -> None:
    assert published(study_of(**{"validation/mean_recall@1": 0.2})) is None


def test_columns_are_metrics_that_evaluate_logs() -> None:
    from siclip.evaluation.suite import SETS

    known = {evaluation_key(each.name, metric) for each in SETS for metric in ("acc1", "image_retrieval_recall@1")}
    known |= {evaluation_key(each.name, "text_retrieval_recall@1") for each in SETS}
    known.add(f"eval/average_{len(SETS)}_sets")
    assert {column.metric for column in figures().columns.values()} <= known


def test_the_page_has_the_figures_of_the_file() -> None:
    page = (ROOT / "docs" / "expect.md").read_text(encoding="utf-8")
    assert as_markdown(figures()) in page
    [siclip] = [line for line in page.splitlines() if line.startswith("| SiCLIP |")]
    assert not re.search(r"\d\d\.\d", siclip.replace("2411.14789", ""))


@pytest.mark.parametrize(
    ("model", "expected"),
    # counted from apple/ml-mobileclip's results/*.jsonl and open_clip's docs/*.csv at the commits named in the file
    [
        ("MobileCLIP-S0", (0.67786, 0.67680, 0.85900, 0.40440, 0.58740)),
        ("MobileCLIP2-S0", (0.71534, 0.69220, 0.86600, 0.43683, 0.62680)),
        ("MobileCLIP-S1", (0.72616, 0.70960, 0.89200, 0.44018, 0.62200)),
        ("RN50-quickgelu", (0.3647, 0.4696, 0.6050, 0.2412, 0.3370)),
        ("RN50", (0.3238, 0.3092, 0.5120, 0.1645, 0.2826)),
    ],
)
def test_figures_are_those_of_their_sources(model: str, expected: tuple[float, ...]) -> None:
    [found] = [each.figures for each in figures().models if each.model == model]
    names = ("imagenet", "flickr_t2i", "flickr_i2t", "coco_t2i", "coco_i2t")
    assert [found[name] for name in names] == pytest.approx([100 * value for value in expected], abs=0.051)
