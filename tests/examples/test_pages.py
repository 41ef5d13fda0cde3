"""The pages in `examples/reports` in a browser: everybody can read them, at the width of a phone and of a desk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradiend_hub.plots.comparison import plot_matrix
from gradiend_hub.plots.comparison_page import Section, render_comparison
from tests.conftest import ROOT
from tests.explorer.test_page import browser, emulate  # noqa: F401
from tests.plots.test_comparison import table

REPORTS = ROOT / "examples" / "reports"
PAGES = {page.parent.name: page for page in sorted(REPORTS.glob("*/report.html"))}
COMPARISON = REPORTS / "comparison" / "comparison.html"


def test_there_are_pages() -> None:
    assert {"masked", "causal", "digits-label", "preference"} <= {*PAGES} and COMPARISON.is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PAGES, "comparison"])
def test_a_page_can_be_read_by_everybody(browser: Any, name: str, tmp_path: Path) -> None:  # noqa: F811
    """Contrast, names, alternative texts, reach by keyboard; nothing is wider than the screen."""
    axe = pytest.importorskip("axe_core_python.selenium", reason="axe-core-python is not installed")
    page = PAGES.get(name, tmp_path / "comparison.html")
    if name not in PAGES:  # axe takes minutes for the 44 directions of the other one
        section = Section("Cosine", ["Of few directions."], [(plot_matrix(table()), "Cosines")], table())
        page.write_text(render_comparison("A comparison", [section]), encoding="utf-8")
    for width in (390, 1200):
        for scheme in ("light", "dark"):
            emulate(browser, width, scheme)
            browser.get(page.as_uri())
            for details in browser.find_elements("css selector", "details:not([open]) summary"):
                details.click()
            found = axe.Axe().run(browser)
            assert len(found["passes"]) > 10
            wrong = [(v["id"], node["html"][:200]) for v in found["violations"] for node in v["nodes"]]
            assert wrong == [], (width, scheme)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width, scheme


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
def test_the_large_comparison_fits_the_width(browser: Any, width: int) -> None:  # noqa: F811
    emulate(browser, width, "light")
    browser.get(COMPARISON.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    pictures = browser.execute_script("return [...document.images].filter(i => !i.alt || !i.naturalWidth).length")
    assert pictures == 0
