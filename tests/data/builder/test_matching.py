"""Where a word begins and ends."""

from __future__ import annotations

from typing import Any

import pytest

from gradiend_hub.data.builder.matching import WordMatcher, goes_on, inside_token


def found(text: str, *words: str, **options: Any) -> list[str]:
    hits = WordMatcher(((word, 0) for word in words), **options).find([text]).get(0, [])
    return [text[start:end] for start, end, _ in hits]


@pytest.mark.parametrize(
    ("text", "word", "count"),
    [
        ("so he\u0301 is", "he", 0),
        ("so \u00e9 he is", "he", 1),
        ("\u0935\u0939\u093e\u0901 \u0915\u094c\u0928", "\u0935\u0939", 0),
        ("\u0935\u0939 \u0915\u094c\u0928", "\u0935\u0939", 1),
        ("\u0935\u0939\u093e\u0901 \u0915\u094c\u0928", "\u0935\u0939\u093e\u0901", 1),
        ("an \u00e9t\u00e9 here", "e\u0301te\u0301", 1),
    ],
)
def test_marks_are_part_of_their_word(text: str, word: str, count: int) -> None:
    assert len(found(text, word)) == count


def test_a_phrase_is_no_compound() -> None:
    text = "Ice cream, ice-cream, ice/cream and ice\ncream."
    assert found(text, "ice cream") == ["Ice cream", "ice\ncream"]
    assert found(text, "ice-cream") == ["ice-cream"]
    assert found(text, "ice cream", "ice-cream", "ice") == ["Ice cream", "ice-cream", "ice", "ice\ncream"]


@pytest.mark.parametrize(
    ("text", "word", "inside"),
    [
        ("so (s)he is", "he", True), ("so s/he is", "he", True), ("so he/she is", "he", True), ("so he_x is", "he", True),
        ("so www.it.com is", "it", True), ("so it@x.com is", "it", True), ("so x@it is", "it", True),
        ("the boy(s) said", "boy", True), ("so (he) is", "he", False), ("so (as) he is", "he", False),
        ("was it? He...it.", "it", False), ("he", "he", False), ("so he (the king)", "he", False),
    ],
)  # fmt: skip
def test_tokens_that_are_no_words(text: str, word: str, inside: bool) -> None:
    start = next(
        place for place in range(len(text)) if text.startswith(word, place) and not text[place - 1 : place].isalpha()
    )
    assert inside_token(text, start, start + len(word)) is inside


def test_marks_count_in_compounds() -> None:
    text = "\u0935\u0939\u093e\u0901-\u0935\u0939 was"
    assert goes_on(text, 5, 7)
