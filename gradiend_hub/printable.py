"""Text of strangers as it may be shown: what would act on a terminal, hide, or reorder other text is spelled out.

Whatever comes out of an artifact is shown through `printable` or `listed`. The console of the command line, the messages
of all errors, and the JSON of `--json` use them, too, so that a text that was forgotten elsewhere is still harmless.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

LONGEST = 200
"""Characters of a text that are shown, unless the caller knows better."""

_DEVICE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Orders to a terminal (C0 and C1), to reorder text (bidi overrides, embeddings and isolates), and lone surrogates."""

_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
"""Characters that show nothing although Unicode counts them as letters, marks or symbols."""

_JOINERS = "\u200c\u200d"
_JOINED = re.compile("[\u0600-\u0dff]")
"""Scripts that need a joiner or non-joiner between two letters: Arabic, and those of India."""

_MOST_MARKS = 4
"""Accents upon one letter; more of them cover the lines above."""


def printable(text: object, most: int = LONGEST, *, lines: bool = False) -> str:
    """Return a text as it may be shown, cut after `most` characters.

    Args:
        text: Of a stranger; another value is shown as `str` shows it.
        most: How many of its characters are shown.
        lines: Whether it may break lines and have tabs; otherwise these are spelled out, too.
    """
    whole = text if isinstance(text, str) else str(text)
    if len(whole) <= most:
        return spelled_out(whole, lines=lines)
    return f"{spelled_out(whole[:most], lines=lines)}… ({len(whole):,} characters)"


def listed(texts: Iterable[object], most: int = 12) -> str:
    """Return some texts one after the other, each as `printable` shows it, and how many there are if not all are shown."""
    every = list(texts)
    shown = ", ".join(printable(text, 80) for text in islice(every, most))
    return shown if len(every) <= most else f"{shown}, … ({len(every):,} in all)"


def dose(strength: float) -> str:
    """Return a strength for people, with its sign, but 0 without one: `-1`, `0`, `+0.5`."""
    return f"{strength:+g}" if strength else "0"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return a table as text, a line for each row: the first column to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join("  ".join(line).rstrip() for line in cells)


def spelled_out(text: str, *, lines: bool = False) -> str:
    r"""Return a text whose harmful and invisible characters are written as in Python's code, e.g. `\x1b`.

    Args:
        text: Any text.
        lines: Whether line breaks and tabs stay.
    """
    if text.isprintable() and text.isascii():
        return text
    result: list[str] = []
    marks = 0
    for place, letter in enumerate(text):
        marks = marks + 1 if not letter.isascii() and unicodedata.category(letter)[0] == "M" else 0
        keep = marks <= _MOST_MARKS and _is_shown(text, place, lines)
        result.append(letter if keep else letter.encode("unicode_escape").decode("ascii"))
    return "".join(result)


def _is_shown(text: str, place: int, lines: bool) -> bool:
    """Tell whether a terminal shows the letter at a place, and does nothing else."""
    letter = text[place]
    if letter in "\n\t":
        return lines
    if letter.isprintable():
        return not _BLANK.match(letter) or (letter == "\ufe0f" and place > 0 and _is_symbol(text[place - 1]))
    if letter in _JOINERS and 0 < place < len(text) - 1:
        before, after = text[place - 1], text[place + 1]
        in_word = bool(_JOINED.match(before) and _JOINED.match(after))
        return in_word or (letter == "\u200d" and _is_symbol(before) and _is_symbol(after))
    return unicodedata.category(letter) == "Zs"


def _is_symbol(letter: str) -> bool:
    """Tell whether a letter is (part of) an emoji."""
    return letter == "\ufe0f" or (not letter.isascii() and unicodedata.category(letter) in ("So", "Sk"))


def is_printable(text: str) -> bool:
    """Tell whether a text is shown on one line as it is: what a name may hold."""
    return spelled_out(text) == text


def is_legible(text: str) -> bool:
    """Tell whether a running text gives no orders to a terminal; it may hold line breaks, soft hyphens and the like."""
    return _DEVICE.search(text) is None


def legible(text: str) -> str:
    """Return a running text with the characters spelled out that `is_legible` refuses."""
    return _DEVICE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def legible_json(value: Any) -> Any:
    """Return a JSON value with all its texts `legible`: a model may have written, or a row have held, control characters."""
    if isinstance(value, dict):
        return {legible_json(name): legible_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [legible_json(item) for item in value]
    return legible(value) if isinstance(value, str) else value


def escaped_json(text: str) -> str:
    """Return JSON text that says the same with `\\u` escapes for what `spelled_out` would spell out."""
    if text.isascii() and "\x7f" not in text:
        return text
    lines = text.split("\n")
    return "\n".join("".join(_json_letter(line, place) for place in range(len(line))) for line in lines)


def _json_letter(text: str, place: int) -> str:
    letter = text[place]
    if letter.isascii() and letter != "\x7f":
        return letter
    if _is_shown(text, place, lines=False):
        return letter
    pair = letter.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{pair[i : i + 4]}" for i in range(0, len(pair), 4))
