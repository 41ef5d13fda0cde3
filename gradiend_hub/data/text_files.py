"""Text files whose encoding and separator are found by looking."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
HEAD = 2**16
"""Bytes of a file that are looked at."""

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings by the mark at the beginning; UTF-32 before UTF-16, whose mark is the beginning of its own."""


def encoding_of(head: bytes) -> str | None:
    """Return the encoding that the first bytes of a file show, or `None` where they fit UTF-8."""
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    zeros = [head[place::2].count(0) for place in (0, 1)]  # no text in UTF-8 has any
    if not any(zeros):
        return None
    return "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"


def separator_of(header: str, usual: str = ",") -> str:
    """Return the separator that divides a header into the most columns."""
    return max((usual, ",", ";", "\t", "|"), key=lambda sep: len(next(csv.reader([header], delimiter=sep))))


def read_text(path: Path) -> str:
    """Return a text file whole, in the encoding that its first bytes show.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is in none of the encodings that can be found by looking.
    """
    with OPENERS.get(path.suffix, open)(path, "rb") as file:
        content: bytes = file.read()
    return content.decode(encoding_of(content[:HEAD]) or "utf-8")
