"""Batches of one class transition each, in turn, of about equal length, and the same ones for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Dataset, Sampler

from gradiend_hub.objectives import Example

from .rows import Row

_LENGTH_WINDOW = 8
"""Batches whose rows are sorted by length together: little padding, and still a random order."""


class TransitionDataset(Dataset[Example]):
    """Tokenised rows, with the transition (factual → alternative class) and the label ±1 of each.

    Args:
        rows: rows of two feature classes.
        examples: the same rows, tokenised.
        feature_classes: the class of label +1 first.
        source: which gradient the label is for, as in `GradiendConfig`.
    """

    def __init__(
        self, rows: Sequence[Row], examples: Sequence[Example], feature_classes: Sequence[str], source: str
    ) -> None:
        self.examples = list(examples)
        self.transitions = [feature_classes.index(row.factual_class) for row in rows]
        self.labels = [row.label(feature_classes, source) for row in rows]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def sample(self, count: int) -> list[int]:
        """Indices of up to `count` rows, evenly spread over the classes and the set."""
        order = sorted(range(len(self)), key=lambda i: self.transitions[i])
        return order[:: max(1, len(order) // count)]


class TransitionBatchSampler(Sampler[list[int]]):
    """One training vector is the gradient of one batch, so a batch holds rows of one transition only.

    Transitions take turns; the smaller ones are cycled until the largest is through. The order depends on (seed, epoch)
    alone, so an interrupted run finds the batches that it has not seen yet.
    """

    def __init__(self, dataset: TransitionDataset, batch_size: int, *, seed: int = 0) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.drop_last = False
        self.seed = seed
        self.epoch = 0
        groups: dict[int, list[int]] = {}
        for index, transition in enumerate(dataset.transitions):
            groups.setdefault(transition, []).append(index)
        self._groups = [groups[transition] for transition in sorted(groups)]
        self._batches_per_group = -(-max(map(len, self._groups)) // batch_size)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self._batches_per_group * len(self._groups)

    def __iter__(self) -> Iterator[list[int]]:
        rng = random.Random(f"{self.seed}/{self.epoch}")
        batches = [self._batches(group, rng) for group in self._groups]
        for turn in zip(*batches, strict=True):
            yield from turn

    def _batches(self, group: list[int], rng: random.Random) -> list[list[int]]:
        size, needed = self.batch_size, self._batches_per_group
        order: list[int] = []
        while len(order) < needed * min(size, len(group)):  # a batch never holds a row twice
            order += rng.sample(group, len(group))
        size = min(size, len(group))
        order = order[: needed * size]
        window = _LENGTH_WINDOW * size
        batches: list[list[int]] = []
        for start in range(0, len(order), window):
            rows = sorted(order[start : start + window], key=lambda i: self.dataset.examples[i].length)
            batches += [rows[i : i + size] for i in range(0, len(rows), size)]
        rng.shuffle(batches)
        return batches
