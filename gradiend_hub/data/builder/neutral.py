"""Text without the feature: sentences that no class's word occurs in, and other words of the feature's own texts."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import datasets

from gradiend_hub.artifact.files import SLOT

_BIN = 16
"""Characters by which lengths are told apart."""

_WORD = re.compile(r"[^\W\d_]{2,}")

NEUTRAL_CLASS = "neutral"


class NeutralPool:
    """A bounded random sample of neutral texts of every length, drawn while they pass by.

    Args:
        size: most texts that will be asked for.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._rng = random.Random(seed)
        self._bins: dict[int, list[tuple[str, str]]] = {}
        self._seen: Counter[int] = Counter()

    @property
    def offered(self) -> int:
        """Texts that passed by."""
        return self._seen.total()

    def offer(self, text: str, unit: str = "") -> None:
        """One more text, and the split or group that it must not leave."""
        length = len(text) // _BIN
        kept = self._bins.setdefault(length, [])
        self._seen[length] += 1
        if len(kept) < self._size:
            kept.append((text, unit))
        elif (place := self._rng.randrange(self._seen[length])) < self._size:
            kept[place] = (text, unit)

    def draw(
        self, count: int, lengths: Iterable[int] | None = None, units: Collection[str] | None = None
    ) -> list[tuple[str, str]]:
        """Up to `count` different texts and the unit of each; with `lengths`, as many of each length as among those.

        Where texts of a length run out, the others stand in. With `units`, texts of any other unit are left out.
        """
        weights = self._seen if lengths is None else Counter(length // _BIN for length in lengths)
        total = sum(weights.values()) or 1
        pool: dict[int, list[tuple[str, str]]] = {}
        for length, kept in sorted(self._bins.items()):
            unit_of: dict[str, str] = {}
            for text, unit in kept:
                if units is None or unit in units:
                    unit_of.setdefault(text, unit)
            pool[length] = list(unit_of.items())
        for texts in pool.values():
            self._rng.shuffle(texts)
        chosen = [t for b, texts in pool.items() for t in texts[: round(count * weights[b] / total)]]
        if len(chosen) < count:
            used = set(chosen)
            rest = [t for b in sorted(pool, key=lambda b: -weights[b]) for t in pool[b] if t not in used]
            chosen += rest[: count - len(chosen)]
        self._rng.shuffle(chosen)
        return chosen[:count]


def other_words(rows: Iterable[Mapping[str, Any]], feature_words: Iterable[str], *, seed: int = 0) -> datasets.Dataset:
    """Rows of the same texts with another word than the feature's as the slot, filled with that word itself.

    A direction should be silent on them. Texts without another word of two letters or more give no row.

    Args:
        rows: rows with `masked` and `factual`.
        feature_words: words that are never chosen.

    Returns:
        Rows in the usual schema; factual and alternative are equal, and both classes are "neutral".
    """
    rng = random.Random(seed)
    never = {word.lower() for word in feature_words}
    made = []
    for row in rows:
        before, _, after = row["masked"].partition(SLOT)
        text = before + row["factual"] + after
        slot = range(len(before), len(before) + len(row["factual"]))
        words = [m for m in _WORD.finditer(text) if m.start() not in slot and m.group().lower() not in never]
        if words:
            word = rng.choice(words)
            masked = text[: word.start()] + SLOT + text[word.end() :]
            fillers = {"factual": word.group(), "alternative": word.group()}
            made.append(
                {"masked": masked, **fillers, "factual_class": NEUTRAL_CLASS, "alternative_class": NEUTRAL_CLASS}
            )
    return datasets.Dataset.from_list(made)
