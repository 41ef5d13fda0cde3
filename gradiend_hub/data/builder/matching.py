"""Finding the words of the classes: whole words by an Aho-Corasick automaton, grammar by spaCy, their surroundings by
regular expressions.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, compress
from typing import Any

from ahocorasick_rs import AhoCorasick

from .spec import FeatureDataConfig
from .tags import EXCLUDED, Hit, TagMatcher, in_word, load_spacy

_BORDER = " \0 "
"""Stands between the texts of a batch; its middle is in no text that is read, and in no word."""

_LETTERS = {code: chr(code) if chr(code).isalnum() else " " for code in range(1, 128)}
_LOWER = {code: letter.lower() for code, letter in _LETTERS.items()}
_WHITE = re.compile(r"\s")


class Matcher:
    """Words of the classes in texts, and words that no neutral text may hold.

    Args:
        config: classes, language, and what neutral text must not hold.
        nlp: a loaded spaCy pipeline, instead of the one that `config.spacy_model` names.

    Raises:
        ConfigError: a tag that does not exist, a language that is not the model's, a missing model.
    """

    def __init__(self, config: FeatureDataConfig, nlp: Any = None) -> None:
        specs, neutral = config.classes.values(), config.neutral
        words = [(word, group) for group, spec in enumerate(specs) for word in spec.words]
        words += [(word, EXCLUDED) for word in (neutral.exclude_words if neutral else ())]
        self._words = WordMatcher(words, case_sensitive=config.case_sensitive)
        excluded = neutral.exclude_tags if neutral else ()
        self._tags: TagMatcher | None = None
        if excluded or any(spec.needs_spacy for spec in specs):
            self._tags = TagMatcher(config, nlp or load_spacy(config), excluded)
        self._every_text = bool(excluded) or any(not spec.words for spec in specs)
        self._by_grammar = {group for group, spec in enumerate(specs) if spec.needs_spacy}
        flags = 0 if config.case_sensitive else re.IGNORECASE
        self._around: list[tuple[re.Pattern[str], re.Pattern[str]]] = []
        if any(spec.before or spec.after for spec in specs):
            around = [(rf"(?:{spec.before})\Z", spec.after) for spec in specs]
            self._around = [(re.compile(before, flags), re.compile(after, flags)) for before, after in around]
        self._neutral = neutral is not None

    def find(self, texts: Sequence[str]) -> dict[int, list[Hit]]:
        """The hits of the texts that have any, by place."""
        found = self._words.find(texts)
        if self._tags is not None:
            found = self._parsed(texts, found, self._tags)
        if self._around:
            found = {place: hits for place, all_ in found.items() if (hits := self._placed(texts[place], all_))}
        return found

    @property
    def tags_seen(self) -> list[str]:
        """The commonest values of the asked tags on words that met everything else."""
        return [value for value, _ in self._tags.values_seen.most_common(5)] if self._tags else []

    def _parsed(self, texts: Sequence[str], surface: dict[int, list[Hit]], tags: TagMatcher) -> dict[int, list[Hit]]:
        # where every class names words, the parser reads only texts that hold one whose grammar matters
        held = [place for place, hits in surface.items() if any(group in self._by_grammar for _, _, group in hits)]
        places = list(range(len(texts))) if self._every_text else held
        words = [surface.get(place, []) for place in places]
        parsed = dict(surface)
        for place, before, hits in zip(
            places, words, tags.find([texts[place] for place in places], words), strict=True
        ):
            # unfit as neutral, whatever role the word has
            parsed[place] = hits + [(start, end, EXCLUDED) for start, end, _ in before if self._neutral]
        return {place: hits for place, hits in sorted(parsed.items()) if hits}

    def _placed(self, text: str, hits: list[Hit]) -> list[Hit]:
        """Hits whose surroundings are as asked; the others make a text unfit as neutral, and nothing else."""
        placed = []
        for start, end, group in hits:
            if group != EXCLUDED:
                before, after = self._around[group]
                if not (after.match(text, end) and before.search(text, 0, start)):
                    group = EXCLUDED
            if group != EXCLUDED or self._neutral:
                placed.append((start, end, group))
        return placed


class WordMatcher:
    """Whole words and phrases of all classes in one pass over a text.

    Args:
        words: (word, index of its class); a word may belong to several classes, which something else tells apart later.
    """

    def __init__(self, words: Iterable[tuple[str, int]], *, case_sensitive: bool = False) -> None:
        self._fold = str if case_sensitive else fold
        self._ascii = _LETTERS if case_sensitive else _LOWER
        groups: dict[str, list[int]] = {}
        for word, group in words:
            groups.setdefault(self._fold(unicodedata.normalize("NFC", word)), []).append(group)
        # spaces stand for borders on both sides, so that the automaton itself leaves "he" in "the" alone
        patterns = [self._spaced([word]) for word in groups]
        self._find = AhoCorasick([f" {pattern} " for pattern in patterns]).find_matches_as_indexes
        self._groups = list(groups.values())
        # a space of a pattern is anything between letters: "b c" would be found in "b-c", and "b-c" in "b c"
        self._exact = [
            _WHITE.sub(" ", w) if " " in pattern else None for w, pattern in zip(groups, patterns, strict=True)
        ]

    def find(self, texts: Sequence[str]) -> dict[int, list[Hit]]:
        """Hits of the texts that have any, by place, in the order of the text; of overlapping ones the longest."""
        # one call for the whole batch: most texts have no hit and cost nothing more
        plain = list(map(str.isascii, texts))
        places = list(compress(range(len(texts)), plain))
        parts = [self._spaced(list(compress(texts, plain)))] if places else []
        if len(places) < len(texts):
            others = [place for place, is_ascii in enumerate(plain) if not is_ascii]
            parts.append(self._spaced([texts[place] for place in others]))
            places += others
        joined = f" {_BORDER.join(parts)} "
        matches = [(start, -end, word) for word, start, end in self._find(joined, overlapping=True)]
        matches.sort()
        lengths = map(len, map(texts.__getitem__, places))
        starts = [0, *accumulate(map(len(_BORDER).__add__, lengths))]
        found: dict[int, list[Hit]] = {}
        begin = border = end_of_last = 0
        for start, minus_end, word in matches:
            if start < end_of_last:
                continue
            if start >= border:
                at = bisect_right(starts, start) - 1
                place, begin, border = places[at], starts[at], starts[at + 1]
            first, last = start - begin, -minus_end - 2 - begin
            if (exact := self._exact[word]) and _WHITE.sub(" ", self._fold(texts[place][first:last])) != exact:
                continue
            end_of_last = last + begin
            hits = found.setdefault(place, [])
            for group in self._groups[word]:
                hits.append((first, last, group))
        return dict(sorted(found.items()))

    def _spaced(self, texts: Sequence[str]) -> str:
        """All texts, folded, with a space for everything that no word has, and borders between them."""
        joined = _BORDER.join(texts)
        if joined.isascii():
            return joined.translate(self._ascii)
        joined = _BORDER.join(map(self._fold, texts))
        for other in set(joined):
            if not in_word(other) and other != _BORDER.strip():
                joined = joined.replace(other, " ")
        return joined


def fold(text: str) -> str:
    """Lower case that never changes the length, so that positions stay valid."""
    folded = text.lower()
    if len(folded) == len(text):
        return folded
    return "".join(low if len(low := c.lower()) == 1 else c for c in text)


_HYPHENS = frozenset("-‐‑")
JOINTS = _HYPHENS | frozenset("'’ʼ")


def goes_on(text: str, start: int, end: int) -> bool:
    """Return whether a word is part of a contraction or a compound: "he's", "she-wolf", "half-he"."""
    after, before = text[end : end + 2], text[start - 1 : start]
    return (after[:1] in JOINTS and in_word(after[1:])) or (before in _HYPHENS and in_word(text[: start - 1][-1:]))


GLUE = frozenset("/_@.()")
_GLUED_BEFORE = re.compile(r"(?:[/_@]|\w\.|\(\w+\))\Z")
_GLUED_AFTER = re.compile(r"[/_@]|\.\w|\(\w+\)")
_LONGEST = 20
"""Characters before a word in which a beginning such as "(s)" is looked for."""


def inside_token(text: str, start: int, end: int) -> bool:
    """Return whether a word is part of something longer that is no word: "s/he", "(s)he", "he_x", "www.it.com"."""
    if text[start - 1 : start] in GLUE and _GLUED_BEFORE.search(text[max(0, start - _LONGEST) : start]):
        return True
    return text[end : end + 1] in GLUE and _GLUED_AFTER.match(text, end) is not None
