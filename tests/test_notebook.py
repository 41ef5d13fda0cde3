"""What notebooks show: figures that are there, and texts of strangers as texts."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradiend_hub import notebook
from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction, Factors, ParameterDirection
from gradiend_hub.comparison import DirectionSet, Matrix
from gradiend_hub.comparison.checkpoints import Drift, Mixture
from gradiend_hub.comparison.combining import Combination, ConflictReport
from gradiend_hub.comparison.tables import Profile
from gradiend_hub.evaluation import Report, SplitReport
from tests.plots.test_html import ATTACKS
from tests.reports import full_report

HOSTILE = [*ATTACKS, "<td onclick=alert(1)>", "</table><script>alert(1)</script>", "\u202eevil\x1b[31m", "a" * 5000]
TAGS = {"table", "caption", "thead", "tbody", "tr", "th", "td", "p", "i", "h4"}


class Read(HTMLParser):
    """Collects what an HTML fragment has, and holds that every tag is one of ours and closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.open, self.cells = "", [], list[str]()
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        assert {name for name, _ in attrs} <= {"scope", "title"}
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and {"td", "th"} & {*self.open[-2:]}:
            self.cells[-1] += data


def direction(*names: str) -> Direction:
    value = torch.arange(6.0)
    return Direction({name: ParameterDirection((2, 3), value) for name in names})


def of(text: str) -> list[Any]:
    """One of each kind of object that notebooks show, with a text in every place that takes one."""
    table = Matrix(text, (text,), (text, "b"), np.array([[0.25, np.nan]]), notes=(text,))
    conflict = ConflictReport(
        {text: 1.0}, table, {text: 0.5}, table, 0.1, {"sum": 0.01}, text, text, {text: 0.2}, (text,)
    )
    config = GradiendConfig(feature_classes=["A", "B"])
    config.feature_classes = [text, "B"]
    directions = DirectionSet.from_directions({text: (direction("w"), config)})
    report = full_report([text, "B"], {text: [text], "B": ["b"]})
    report.verdict, report.base_model, report.converged = text, text, False
    report.splits["test"] = replace(report.splits["test"], missing=[text])
    return [
        direction(text), table, Profile(text, {text: table}), conflict,
        Combination(direction(text), conflict, config, report),
        Mixture({text: 1.0}, {text: 0.5}, 0.3, None), Drift({text: 0.1}, 0.2, {text: 1.0}, {text: 0.4}, 0.5, 1.0, 0.01, 7),
        directions, report, report.splits["test"],
    ]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
def test_texts_of_strangers_are_texts(text: str) -> None:
    for thing in of(text):
        page = thing._repr_html_()
        read = Read(page)
        assert not {"\u202e", "\x1b", "\u2028"} & {*page}
        assert len(page) < 60_000
        assert notebook.safe(text, 30)[:10] in page
        assert read.text


def test_a_direction_shows_its_parameters_and_reads_the_first_only() -> None:
    parts = {
        "dense": ParameterDirection((2, 3), torch.zeros(6)),
        "sparse": ParameterDirection((2, 3), torch.ones(2), indices=torch.tensor([1, 4], dtype=torch.int32)),
        "low": ParameterDirection((4, 3), Factors(torch.ones(4, 1), torch.ones(1, 3))),
    }
    cells = Read(Direction(parts)._repr_html_()).cells
    assert cells == [
        "parameter", "shape", "stored", "dense", "2 × 3", "all", "sparse", "2 × 3", "2 of 6", "low", "4 × 3", "rank 1",
    ]  # fmt: skip
    asked: list[str] = []

    class Watched(dict[str, ParameterDirection]):
        def __getitem__(self, name: str) -> ParameterDirection:
            asked.append(name)
            return super().__getitem__(name)

    many = Watched({f"w{i}": parts["dense"] for i in range(500)})
    assert "and 492 more" in Read(Direction(many)._repr_html_()).text
    assert len(asked) == 8


def test_a_report_shows_the_figures_that_it_holds() -> None:
    report = full_report(["3SG", "3PL"], {"3SG": ["he"], "3PL": ["they"]})
    read = Read(report._repr_html_())
    split = report.splits["test"]
    for point in split.curve:
        first, second = point.reading("3SG", "3PL").value, point.reading("3PL", "3SG").value
        at = read.cells.index(f"{point.strength:+g}" if point.strength else "0")
        assert read.cells[at + 1 : at + 3] == [f"{first:.3f}", f"{second:.3f}"]
    assert f"correlation {split.encoder.correlation:.3f}" in read.text
    assert "Nothing was measured" in Report(["a", "b"], "base")._repr_html_()


def test_a_report_of_an_old_artifact_is_shown() -> None:
    folder = Path(__file__).parent / "artifact" / "schema_1"
    for report in map(Report.load, sorted(folder.iterdir())):
        assert "P(3" in Read(report._repr_html_()).text


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
def test_the_plain_form_is_one_line(text: str) -> None:
    for thing in of(text):
        if isinstance(thing, (Direction, DirectionSet, Report, SplitReport)):
            shown = repr(thing)
            assert shown.startswith(type(thing).__name__)
            assert "\n" not in shown and not {"\u202e", "\x1b", "\u2028"} & {*shown}
            assert len(shown) < 400
    split = full_report(["a", "b"], {"a": ["x"], "b": ["y"]}).splits["test"]
    assert repr(split) == f"SplitReport({len(split.curve)} strengths, the encoder's correlation 0.967)"


def test_what_is_not_known_is_empty() -> None:
    assert notebook.number(None) == notebook.number(float("nan")) == ""
    table = Matrix("cosine", ("a",), ("b", "c"), np.array([[0.5, np.nan]]), null=np.array([[0.6, np.nan]]))
    page = table._repr_html_()
    assert Read(page).cells == ["", "b", "c", "a", "+0.50", ""]
    assert "<i>+0.50</i>" in page  # within what coin labels reach
