"""The cards that `model_cards` shows: rendered today they say the same, and their figures are there."""

from __future__ import annotations

import re
import runpy
from typing import Any

import pytest

from tests.conftest import ROOT

RENDER = ROOT / "examples" / "reports" / "render.py"
ANEW = "run: python examples/reports/render.py --cards"
NAMES = sorted(path.stem for path in (ROOT / "model_cards").glob("*.md") if path.stem != "README")


@pytest.fixture(scope="module")
def rendering() -> dict[str, Any]:
    return runpy.run_path(str(RENDER), run_name="rendering")


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_what_its_report_renders_today(name: str, rendering: dict[str, Any]) -> None:
    text = rendering["card"](name)
    assert (RENDER.parent / name / "README.md").read_text(encoding="utf-8") == text, ANEW
    shown = (ROOT / "model_cards" / f"{name}.md").read_text(encoding="utf-8")
    assert shown == rendering["shown_elsewhere"](text, name), ANEW
    figures = re.findall(r"\]\((\.\./examples/[^)]+)\)", shown)
    assert len(figures) >= 3
    for figure in figures:
        assert (ROOT / "model_cards" / figure).is_file()
    assert "](assets/" not in shown


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_what_its_report_renders_today(name: str, rendering: dict[str, Any]) -> None:
    """But for the drawing, which is the installed matplotlib's."""
    kept = (RENDER.parent / name / "report.html").read_text(encoding="utf-8")
    assert _without_drawing(rendering["page"](name)) == _without_drawing(kept), ANEW


def _without_drawing(page: str) -> str:
    return re.sub(r'(?s)<svg.*?</svg>|"x": ?[\d.]+', "", page)


def test_every_card_is_listed(rendering: dict[str, Any]) -> None:
    page = (ROOT / "model_cards" / "README.md").read_text(encoding="utf-8")
    assert NAMES and {*NAMES} <= {*rendering["kept"]()}
    assert {*re.findall(r"^\| \[`[^`]+`\]\(([\w-]+)\.md\)", page, re.MULTILINE)} == {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_card_calls_what_is_read_by_its_name(name: str) -> None:
    """A classifier has labels and a preference completions; words are what a language model has."""
    text = (ROOT / "model_cards" / f"{name}.md").read_text(encoding="utf-8")
    page = (RENDER.parent / name / "report.html").read_text(encoding="utf-8")
    kind = {"digits": "label", "sentences": "label", "preference": "completion"}.get(name.partition("-")[0], "word")
    for other in {"word", "label", "completion"} - {kind}:
        assert not re.search(rf"{other}s (of the classes|that training)|of each {other}\b", text)
        assert f"<th>{other}</th>" not in page
    assert f"<th>{kind}</th>" in page


def test_nothing_of_a_machine_is_kept() -> None:
    files = [file for file in RENDER.parent.glob("*/*.*") if file.suffix in (".json", ".md", ".html")]
    assert len(files) > 20
    for file in files:
        found = re.findall(
            r"[\"' (>](?:/tmp|/home|/root|/work|/Users|[A-Z]:\\\\)/\S*", file.read_text(encoding="utf-8")
        )
        assert found == [], file
