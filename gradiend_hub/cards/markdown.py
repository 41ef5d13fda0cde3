"""Text and figures as Markdown. What strangers wrote stays text; what was not measured says so."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["NOT_MEASURED", "cell", "fenced", "number", "percent", "signed", "with_interval"]

NOT_MEASURED = "not measured"

_SPECIAL = {ord(c): f"&#{ord(c)};" for c in "&<>|[]*_`~\\:@$"}


def cell(text: object) -> str:
    """Text on one line, without the characters that begin HTML, links, emphasis, code, formulas or table cells."""
    return " ".join(str(text).split()).translate(_SPECIAL)


def fenced(text: str, language: str = "") -> str:
    """A code block that holds `text` as it is, whatever fences are in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def number(value: float | None, digits: int = 3) -> str:
    """A figure with a fixed number of digits behind the point."""
    return NOT_MEASURED if value is None else f"{value:.{digits}f}"


def signed(value: float, digits: int = 2) -> str:
    """A figure with its sign, and 0 without one."""
    return f"{value:+.{digits}f}" if value else f"{0:.{digits}f}"


def percent(value: float | None, digits: int = 2) -> str:
    """A share in per cent."""
    return NOT_MEASURED if value is None else f"{100 * value:.{digits}f} %"


def with_interval(value: float | None, interval: Sequence[float] | None = None, digits: int = 3) -> str:
    """A figure with its 95 % interval, if it has one."""
    text = number(value, digits)
    if value is None or interval is None:
        return text
    low, high = interval
    return f"{text} [{low:.{digits}f}, {high:.{digits}f}]"
