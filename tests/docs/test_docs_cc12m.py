"""The page of the whole job says what `plan` says."""

from __future__ import annotations

import re

import cc12m_page
import pytest

from siclip_platform.plan.reference import AVAILABLE_PAIRS
from siclip_platform.recipes.load import load_recipe


def test_the_page_has_the_numbers_of_its_plan() -> None:
    plan = cc12m_page.planned()
    text = cc12m_page.PAGE.read_text(encoding="utf-8")
    shown = text.partition(cc12m_page.BEGIN)[2].partition(cc12m_page.END)[0]
    assert shown == cc12m_page.table(plan), "run python tests/support/cc12m_page.py"
    assert {"import", "captioning", "training", "evaluation"} <= {stage["stage"] for stage in plan["stages"]}
    assert plan["pipeline"]["fits"]


def test_the_steps_of_the_search_are_those_of_its_sentence() -> None:
    recipe = load_recipe(cc12m_page.RECIPE)
    text = " ".join(cc12m_page.PAGE.read_text(encoding="utf-8").split())
    steps = 500_000 * 6 // recipe.training.batch_size
    assert f"500,000 pairs for 6 epochs are {steps:,} steps of {recipe.training.batch_size}" in text
    share = 500_000 * 6 / (AVAILABLE_PAIRS * recipe.training.epochs)
    assert "--trial-share 0.012" in text and round(share, 3) == 0.012


@pytest.mark.parametrize("page", ["cc12m", "cards", "data", "plan"])
def test_pages_count_the_pairs_that_are_left(page: str) -> None:
    text = " ".join((cc12m_page.PAGE.parent / f"{page}.md").read_text(encoding="utf-8").split())
    assert f"{AVAILABLE_PAIRS:,}" in text
    counts = set(re.findall(r"\b([\d.]+) (?:M|million) (?:pairs|images)", text))
    # what the paper had, and what the copy on Hugging Face's hub has
    assert counts <= {"12", "11"}
