"""Text as Markdown: what strangers wrote stays text."""

from __future__ import annotations

import json
import re
import shlex
from typing import Final

from gradiend_hub.plots.text import number, percent, plain, signed, with_interval
from gradiend_hub.printable import spelled_out

_SPECIAL: Final = {ord(c): f"&#{ord(c)};" for c in "&<>|[]*_`~\\:@$"}


def cell(text: object) -> str:
    """Text on one line, without the characters that begin HTML, links, emphasis, code, formulas or table cells."""
    return spelled_out(" ".join(plain(text).split())).translate(_SPECIAL)


def fenced(text: str, language: str = "") -> str:
    """A code block that holds `text` as it is, whatever fences are in it."""
    text = spelled_out(text, lines=True)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def quoted(value: object) -> str:
    """A text, number or dictionary of texts as Python code."""
    return json.dumps(value, ensure_ascii=False)


FILTERS: Final = {
    **{f.__name__: f for f in (cell, fenced, number, percent, quoted, signed, with_interval)},
    "shell": shlex.quote,
}
"""Filters of the templates."""
