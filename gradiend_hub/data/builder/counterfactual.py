"""The words that replace the one that was found."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np

from gradiend_hub.data.casing import case_of
from gradiend_hub.data.splits import Indices

from .spec import FeatureDataConfig


class Alternatives:
    """Chooses alternative words, for every other class one (or all), in the case of the factual word.

    With a held-out vocabulary, alternatives come from the words of the row's own split.

    Args:
        config: classes, pairs and the way to choose.
        names: words by number, in the form in which they are compared.
        classes, words, splits: [N] of each row; they give the frequencies.
        rng: draws.
    """

    def __init__(
        self,
        config: FeatureDataConfig,
        names: list[str],
        classes: Indices,
        words: Indices,
        splits: Indices,
        rng: random.Random,
    ) -> None:
        self._how, self._rng, self._key = config.counterfactual, rng, config.key
        self._classes, self._words, self._names = classes, words, names
        self._class_names = list(config.classes)
        self._splits = splits if config.split_by == "word" else np.zeros_like(splits)
        self._partners = config.partners()
        # a word list's own spelling; of words that tags found, the one that is compared
        self._written = {config.key(w): w for spec in config.classes.values() for w in spec.words}
        counts = Counter(zip(self._splits.tolist(), classes.tolist(), words.tolist(), strict=True))
        self._frequencies: dict[tuple[int, int], tuple[list[str], list[int]]] = {}
        for (split, group, word), count in sorted(counts.items()):
            written = self._written.get(names[word], names[word])
            words_of, counts_of = self._frequencies.setdefault((split, group), ([], []))
            words_of.append(written)
            counts_of.append(count)

    def of(self, row: int, factual: str) -> list[tuple[str, str]]:
        """(alternative, its class) for every other class that has another word: a paired one may have no partner, and the
        same word may be of two classes ("der Hund", "der Frau"), between which it has no alternative."""
        group = int(self._classes[row])
        word = self._names[self._words[row]]
        chosen: list[tuple[str, str]] = []
        for other, name in enumerate(self._class_names):
            if other == group:
                continue
            if self._how == "paired":
                partners = self._partners.get((word, self._class_names[group]), {}).get(name, [])
                found = [self._rng.choice(partners)] if partners else []
            else:
                words, counts = self._others(int(self._splits[row]), other, word)
                found = words if self._how == "all" or not words else self._rng.choices(words, counts)
            chosen += [(self._cased(new, factual), name) for new in found]
        return chosen

    def _others(self, split: int, group: int, word: str) -> tuple[list[str], list[int]]:
        """The words of a class without one, and how often each occurs."""
        words, counts = self._frequencies.get((split, group), ([], []))
        if all(self._key(other) != word for other in words):
            return words, counts
        kept = [(other, count) for other, count in zip(words, counts, strict=True) if self._key(other) != word]
        return [other for other, _ in kept], [count for _, count in kept]

    def _cased(self, word: str, factual: str) -> str:
        """A word in the case of the one that it replaces, if that one differs from its own spelling in the list."""
        case = case_of(factual, self._written.get(self._key(factual), factual.lower()))
        return case(word) if case else word
