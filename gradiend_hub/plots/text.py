"""Figures as text, for the page and for cards. What was not measured says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

NOT_MEASURED = "not measured"


def number(value: float | None, digits: int = 3) -> str:
    """A figure with a fixed number of digits behind the point."""
    return NOT_MEASURED if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 2) -> str:
    """A share in per cent."""
    return NOT_MEASURED if value is None else f"{100 * value:.{digits}f} %"


def signed(value: float, digits: int = 2) -> str:
    """A figure with its sign, and 0 without one."""
    return f"{value:+.{digits}f}" if value else f"{0:.{digits}f}"


def with_interval(value: float | None, interval: Sequence[float] | None = None, digits: int = 3) -> str:
    """A figure with its 95 % interval, if it has one."""
    text = number(value, digits)
    if value is None or interval is None:
        return text
    low, high = interval
    return f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def plain(value: Any) -> str:
    """Any value of a report: whole numbers without a fraction, others with four digits, containers item by item."""
    if isinstance(value, bool) or not isinstance(value, (int, float, list, tuple, dict)):
        return str(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value))
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 1e4 else f"{value:.4g}"
