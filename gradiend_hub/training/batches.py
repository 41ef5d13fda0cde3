"""Batches of one class transition each, in turn, of about equal length, and the same ones for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Dataset, Sampler

from gradiend_hub.data import Row
from gradiend_hub.objectives import Example

_LENGTH_WINDOW = 32
"""Batches whose rows are sorted by length together: 4 to 7 % padding on the bundled rows (14 to 22 % with 8 batches), and
still a random order."""


class TransitionDataset(Dataset[int]):
    """Tokenised rows, with the transition (factual → alternative class) and the label ±1 of each.

    Args:
        rows: rows of two feature classes.
        examples: the same rows, tokenised.
        feature_classes: the class of label +1 first.
        source: which gradient the label is for, as in `GradiendConfig`.
        identity: further examples that are filled with their own token, of label 0: a third transition.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        examples: Sequence[Example],
        feature_classes: Sequence[str],
        source: str,
        identity: Sequence[Example] = (),
    ) -> None:
        self.examples = [*examples, *identity]
        self.transitions = [feature_classes.index(row.factual_class) for row in rows] + [2] * len(identity)
        self.labels = [row.label(feature_classes, source) for row in rows] + [0.0] * len(identity)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> int:
        return index  # what a row costs is spent when its gradient is needed

    def sample(self, count: int) -> list[int]:
        """Indices of up to `count` rows of the classes, as many of each as there are, evenly spread over the set."""
        groups = [[i for i, t in enumerate(self.transitions) if t == kind] for kind in (0, 1)]
        each = max(1, count // len(groups))
        return [i for group in groups for i in group[:: -(-len(group) // each)]]


class TransitionBatchSampler(Sampler[list[int]]):
    """One training vector is the gradient of one batch, so a batch holds rows of one transition only.

    Transitions take turns; the smaller ones are cycled until the largest is through. A batch never holds a row twice.
    The order depends on (seed, epoch) alone, so an interrupted run finds the batches that it has not seen yet.

    Args:
        fixed: in later epochs, the same batches in another order, so that their gradients can be kept.
    """

    def __init__(self, dataset: TransitionDataset, batch_size: int, *, seed: int = 0, fixed: bool = False) -> None:
        self.fixed = fixed
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
        rng = random.Random(f"{self.seed}/{0 if self.fixed else self.epoch}")
        batches = [self._batches(group, rng) for group in self._groups]
        if self.fixed and self.epoch:
            for of_group in batches:
                random.Random(f"{self.seed}/{self.epoch}/{of_group[0]}").shuffle(of_group)
        for turn in zip(*batches, strict=True):
            yield from turn

    def _batches(self, group: list[int], rng: random.Random) -> list[list[int]]:
        size = min(self.batch_size, len(group))
        needed = self._batches_per_group * size
        order: list[int] = []
        while len(order) < needed:
            unfinished = order[len(order) // size * size :]  # rows of a batch that this cycle completes come last in it
            cycle = [i for i in rng.sample(group, len(group)) if i not in unfinished]
            order += self._by_length(cycle, _LENGTH_WINDOW * size) + unfinished
        batches = [order[i : i + size] for i in range(0, needed, size)]
        rng.shuffle(batches)
        return batches

    def _by_length(self, rows: list[int], window: int) -> list[int]:
        """Rows sorted by length within each window, so that batches are of about equal length."""
        windows = (rows[start : start + window] for start in range(0, len(rows), window))
        return [row for rows in windows for row in sorted(rows, key=lambda i: self.dataset.examples[i].cost)]
