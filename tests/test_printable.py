"""What is shown of a stranger's text: the text, and nothing that acts on a terminal, hides, or reorders."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradiend_hub.errors import ArtifactError, GradiendError, first_line
from gradiend_hub.printable import escaped_json, is_legible, is_printable, legible, listed, printable, spelled_out

HARMFUL = [
    "\x1b[2J", "\x1b]52;c;cm0gLXJm\x07", "\x9b31m", "\x07", "\x08\x08", "\r", "\x7f", "\x85", "\u2028", "\u2029",
    "\u202e", "\u2066", "\u200e", "\u061c", "\u200b", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u034f", "\u3164",
    "\u2800", "\ufe0f", "\U000e0041", "\U000e0100", "\ud800", "\uffff", "\x00", "\u180e",
]  # fmt: skip
READABLE = [
    "", "he", "größer", "它们", "они", "هو", "הם", "می\u200cخواهم", "क्\u200dष", "👩\u200d👧", "❤\ufe0f", "a b", "x\u00a0y",
    "e\u0301", "3SG", "I'm", "tab? no", "—…", "👍🏽",
]  # fmt: skip


@pytest.mark.parametrize("harm", HARMFUL, ids=ascii)
def test_harmful_characters_are_spelled_out(harm: str) -> None:
    shown = printable(f"25 checks{harm} agree")
    assert shown.isprintable() and shown.startswith("25 checks\\") and shown.endswith(" agree")
    assert not is_printable(f"a{harm}b")
    for error in (GradiendError(f"bad {harm}name"), ArtifactError(f"bad {harm}name")):
        assert str(error).replace("\n", "").isprintable()
    assert first_line(ValueError(f"bad {harm}name")).isprintable()
    assert first_line(ValueError(f"{harm}\nsecond")).isprintable()


@pytest.mark.parametrize("text", READABLE)
def test_texts_of_all_languages_stay_as_they_are(text: str) -> None:
    assert printable(text) == text and is_printable(text) and is_legible(text)


@given(st.text())
def test_nothing_but_printable_characters_comes_out_and_once_is_enough(text: str) -> None:
    once = spelled_out(text)
    assert spelled_out(once) == once
    allowed = {"\u200c", "\u200d"}
    assert all(c in allowed or c.isprintable() or unicodedata.category(c) == "Zs" for c in once)
    lines = spelled_out(text, lines=True)
    assert lines.count("\n") == text.count("\n") and "\x1b" not in lines
    assert is_legible(legible(text)) and (legible(text) == text) == is_legible(text)


@given(st.dictionaries(st.text(), st.text()))
def test_escaped_json_says_the_same(value: dict[str, str]) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=2)
    assert json.loads(escaped_json(text)) == value
    assert escaped_json(text).replace("\n", "").replace("\u200c", "").replace("\u200d", "").isprintable() or any(
        unicodedata.category(c) == "Zs" for c in text
    )


def test_long_texts_and_long_lists_are_cut_and_counted() -> None:
    assert printable("x" * 5000) == "x" * 200 + "… (5,000 characters)"
    assert printable("x\ny") == "x\\ny" and printable("x\ty\nz", lines=True) == "x\ty\nz"
    assert listed(["a", "b"]) == "a, b"
    assert listed(map(str, range(300_000)), 3) == "0, 1, 2, … (300,000 in all)"
    assert printable(3.5) == "3.5"
    assert printable("a" + "\u0300" * 500).count("\u0300") == 4
    assert len(str(GradiendError("y" * 10**6))) < 11_000
