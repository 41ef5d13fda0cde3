"""The feature rows' own texts as a damage set: every output but the row's, with the factual one in place."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from gradiend_hub.data import Row
from gradiend_hub.errors import DataError
from gradiend_hub.objectives import Objective, QualityItem, Reading, Sample

from .damage import OWN
from .intervals import spread
from .part import Item

_SOME = 16
"""Rows from which the number of outputs of a row is estimated."""


@dataclass(frozen=True)
class OwnText:
    """Draws samples of rows' own texts, as many as a number of outputs needs.

    Where one input serves both, a row's own text is read in the same pass as its slot.

    Attributes:
        objective: Of the base model.
        rows: All feature rows, by their numbers.
        avoid: Ids of the classes' outputs, which are no labels.
        tokens: Outputs to score, about; 0 for none.
        seed: Decides which ones.
    """

    objective: Objective
    rows: Sequence[Row]
    avoid: Collection[int]
    tokens: int
    seed: int

    def samples(self, number: int) -> list[Sample]:
        """Return the samples of a row; none where its text cannot be read."""
        try:
            return self.objective.own_samples(self.rows[number], random.Random(f"{self.seed} {number}"), self.avoid)
        except DataError:
            return []

    def share(self, numbers: Sequence[int]) -> float:
        """Return the share of some rows that has the outputs that are wanted."""
        some = spread(numbers, _SOME) if self.tokens else []
        found = sum(len(sample.labels) for number in some for sample in self.samples(number))
        return min(1.0, self.tokens * len(some) / (found * len(numbers))) if found else 0.0

    def added(
        self, items: Sequence[Item], sets: Mapping[str, Sequence[QualityItem]], share: float
    ) -> tuple[list[Item], dict[str, Sequence[QualityItem]]]:
        """Add the own texts of a share of some rows, evenly spread: to their readings, or as further samples."""
        chosen = {item.number for item in spread(items, round(share * len(items) + 0.49))} if share else set()
        found: list[Item] = []
        apart: list[QualityItem] = []
        for item in items:
            samples = self.samples(item.number) if item.number in chosen else []
            first = item.readings[0]
            joined = self.objective.joined(first.sample, samples[0]) if len(samples) == 1 else None
            if joined is None:
                apart += [QualityItem(item.group, sample) for sample in samples]
                found.append(item)
            else:
                readings = [Reading(joined, first.outputs), *item.readings[1:]]
                found.append(replace(item, readings=readings, own=True))
        return found, {**sets, **({OWN: apart} if apart else {})}
