"""One page for a set of directions: everything in one file, without a script and without a network."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gradiend_hub.comparison import DirectionSet
from gradiend_hub.comparison.tables import Cell, Matrix

from .comparison import plot_map, plot_matrix
from .html import hashed, source, template
from .style import quiet_glyphs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 110


@dataclass
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        text: paragraphs.
        figures: figure and what it shows, for those who do not see it.
        matrix: the numbers behind, if they are to be read.
    """

    title: str
    text: Sequence[str] = ()
    figures: Sequence[tuple[Figure, str]] = ()
    matrix: Matrix | None = None


def sections_of(
    ds: DirectionSet, *, measured: bool = False, groups: Mapping[str, Sequence[str]] | None = None
) -> list[Section]:
    """The usual sections: similarities, overlaps, map, predicted effects; with `measured`, those that need the base model.

    Args:
        groups: name of each group to its directions.
    """
    cosine, overlap, predicted = ds.similarity("cosine"), ds.similarity("overlap"), ds.predicted_effects()
    assert isinstance(cosine, Matrix) and isinstance(overlap, Matrix)
    sections = [
        _section("Signed cosine of the decoders", cosine, groups, _beyond(cosine)),
        _section("Overlap of the 1000 largest entries (the papers' measure)", overlap, groups, _beyond(overlap)),
    ]
    if len(ds) > 2:
        drawn = [(plot_map(cosine, groups=groups), "Map of the directions by signed cosine")]
        sections.append(Section("Map", ["What lies close is alike."], drawn))
    if predicted.columns:
        text = ["Change of each feature's log-odds (column) under a direction (row) at strength 1, to first order."]
        sections.append(_section("Predicted effects", predicted, groups, text))
    if measured:
        effects, encodings = ds.measured_effects(), ds.cross_encodings()
        text = ["The same, measured: each direction was applied, and the log-odds were read on rows of each feature."]
        sections.append(_section("Measured effects", effects, groups, text))
        sections.append(
            _section("Cross-encodings", encodings.means(), None, ["Mean feature value on each transition."])
        )
        sections.append(_section("Anchors", encodings.anchors(), None, ["A perfect diagonal is +1."]))
    return sections


def _beyond(table: Matrix) -> list[str]:
    """Say how many pairs differ from what coin labels reach."""
    if table.null is None or len(table.rows) < 2:
        return []
    upper = np.triu_indices(len(table.rows), 1)
    values, null = np.abs(table.values[upper]), table.null[upper]
    known = np.isfinite(values) & np.isfinite(null)
    if not known.any():
        return ["Null and ceiling are unknown."]
    return [
        f"{int((values[known] > null[known]).sum())} of {int(known.sum())} pairs lie beyond the null: what 95 % of "
        "directions of coin labels on other rows of this base reach."
    ]


def _section(title: str, table: Matrix, groups: Mapping[str, Sequence[str]] | None, text: Sequence[str]) -> Section:
    usable = (
        groups if groups is not None and sorted(n for g in groups.values() for n in g) == sorted(table.rows) else None
    )
    order = "clusters" if table.symmetric and usable is None and len(table.rows) > 2 else "given"
    return Section(title, [*text, *table.notes], [(plot_matrix(table, groups=usable, order=order), title)], table)


def render_comparison(title: str, sections: Sequence[Section], lead: str = "") -> str:
    """The page as HTML."""
    style = source("comparison.css")
    filled = [
        {
            "title": section.title,
            "text": list(section.text),
            "images": [(_png(figure), alt) for figure, alt in section.figures],
            "table": None if section.matrix is None else _numbers(section.matrix),
        }
        for section in sections
    ]
    page: str = template("comparison.html.jinja").render(
        title=title, lead=lead, sections=filled, style=style, style_hash=hashed(style)
    )
    return page


def _numbers(table: Matrix) -> dict[str, Any]:
    lines = [(row, [_cell(table[row, column]) for column in table.columns]) for row in table.rows]
    return {"columns": list(table.columns), "lines": lines}


def _cell(cell: Cell) -> dict[str, Any]:
    known = [
        f"{name} {value:.2f}" for name, value in (("null", cell.null), ("ceiling", cell.ceiling)) if value is not None
    ]
    return {
        "shown": "unknown" if cell.value is None else f"{cell.value:+.2f}",
        "title": ", ".join(known) or "null and ceiling unknown",
        "within": cell.value is not None and cell.null is not None and abs(cell.value) <= cell.null,
    }


def _png(figure: Figure) -> str:
    pixels = io.BytesIO()
    with quiet_glyphs():
        figure.savefig(pixels, dpi=_DPI, format="png")
    return base64.b64encode(pixels.getvalue()).decode()
