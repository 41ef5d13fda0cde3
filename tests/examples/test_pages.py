"""The pages in `examples/reports` in a browser: everybody can read them, at the width of a phone and of a desk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.explorer.test_page import browser, emulate  # noqa: F401

PAGES = sorted((ROOT / "examples" / "reports").glob("*/*.html"))


def test_there_are_pages() -> None:
    assert {"comparison", "masked", "causal", "digits-label", "preference"} <= {page.parent.name for page in PAGES}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_a_page_can_be_read_by_everybody(browser: Any, page: Path) -> None:  # noqa: F811
    """Contrast, names, alternative texts, reach by keyboard; nothing is wider than the screen."""
    axe = pytest.importorskip("axe_core_python.selenium", reason="axe-core-python is not installed")
    for width in (390, 1200):
        for scheme in ("light", "dark"):
            emulate(browser, width, scheme)
            browser.get(page.as_uri())
            found = axe.Axe().run(browser)
            assert len(found["passes"]) > 10
            wrong = [(v["id"], node["html"][:200]) for v in found["violations"] for node in v["nodes"]]
            assert wrong == [], (width, scheme)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width, scheme
