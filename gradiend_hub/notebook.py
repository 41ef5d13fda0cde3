"""HTML that notebooks show of directions, reports and comparisons. Whatever stands in it may be of a stranger."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from .printable import printable


class Cell(str):
    """A cell of a table as HTML, where another text is shown as it is."""


def safe(text: object, most: int = 200) -> str:
    """Return a text as HTML that shows it and does nothing: no markup, and hidden or reordering characters spelled out."""
    return escape(printable(text, most))


def number(value: float | None, form: str = ".3f") -> str:
    """Return a number as it is shown; nothing for what is not known."""
    return "" if value is None or math.isnan(value) else format(value, form)


def lines(texts: Iterable[object]) -> str:
    """Return a paragraph for each text."""
    return "".join(f"<p>{safe(text, 1000)}</p>" for text in texts)


def table(caption: object, head: Sequence[object], rows: Iterable[tuple[object, Sequence[str]]]) -> str:
    """Return a table with a heading for each row and column.

    Args:
        caption: What it shows.
        head: Headings of the columns, that of the row headings first.
        rows: Heading and cells of each row, texts or `Cell`.
    """
    top = "".join(f'<th scope="col">{safe(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{safe(name)}</th>'
        f"{''.join(cell if isinstance(cell, Cell) else f'<td>{safe(cell)}</td>' for cell in cells)}</tr>"
        for name, cells in rows
    )
    return f"<table><caption>{safe(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
