"""Class means of the target gradient in two halves of the rows: what comparisons of directions are judged by.

Four means, of both labels in both halves, give the plain class-mean gradient, that of either half, and two directions of no
feature: the difference of the halves whatever the labels, and half the difference of the halves' class-mean gradients. Each
is what labels that a coin has dealt out would give, as many of each within a class.

So a training measures from one stream how alike the same feature is from other rows (the ceiling), and what a direction of
no feature is like on the same base and the same text (the null). Batches are dealt out in pairs, one of each to either half,
so that neither half has more of a class. A batch counts only if none of its rows has counted yet: the halves share no row.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .shard import Shard


class Contrasts(NamedTuple):
    """Statistics of the four means of `SplitMeans`, each [n] and in one unit, that of a mean gradient.

    Of gradients that were learned by sketches they are `ByParameter`, at the rank of the direction.

    Attributes:
        mean: (m₊ − m₋)/2 of all rows.
        first, second: the same of either half of the rows.
        half: half the difference of the halves, whatever the label.
        rows: rows that counted.
        apart: half the difference of `first` and `second`, where it is not computed from them.
    """

    mean: Any
    first: Any
    second: Any
    half: Any
    rows: int
    apart: Any = None

    @property
    def controls(self) -> tuple[Any, Any]:
        """Directions of coin labels, [n] each."""
        apart = (self.first - self.second) / 2 if self.apart is None else self.apart
        return self.half, apart

    def weighted(self, weights: Tensor) -> Contrasts:
        """Every vector times weights [n] by coordinate, as those by which a decoder is made damage-aware."""
        mean, first, second, half = (vector * weights for vector in (self.mean, self.first, self.second, self.half))
        return Contrasts(mean, first, second, half, self.rows)


class SplitMeans(nn.Module):
    """Running means of vectors [n] by label and half, or of sketches of them. State: 4n values and a flag for each row.

    Args:
        shard: coordinates of this process.
        rows: number of rows of the training set.
        seed: of the coins.
    """

    def __init__(self, shard: Shard, rows: int, seed: int = 0) -> None:
        super().__init__()
        self.shard, self.seed = shard, seed
        self.register_buffer("means", torch.zeros(2, 2, shard.length))
        self.register_buffer("counts", torch.zeros(2, 2, dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(rows, dtype=torch.bool))
        self.means: Tensor
        self.counts: Tensor
        self.seen: Tensor

    def observe(self, vector: Tensor, label: float, rows: Sequence[int]) -> None:
        """Take in the gradient of a batch, unless its label is 0 or one of its rows has counted already.

        Args:
            vector: [n], or this process's part of it.
            label: sign of the batch's class.
            rows: numbers of the rows in the batch.
        """
        if label == 0 or self.has_seen(rows):
            return
        self.seen[torch.as_tensor(list(rows), device=self.seen.device)] = True
        of = 0 if label > 0 else 1
        half = self._half(of, int(self.counts[of].sum()))
        self.counts[of, half] += 1
        self.means[of, half].lerp_(vector, 1 / int(self.counts[of, half]))

    def has_seen(self, rows: Sequence[int]) -> bool:
        """Return whether one of some rows has counted already."""
        return bool(self.seen[torch.as_tensor(list(rows), device=self.seen.device)].any())

    def _half(self, of: int, number: int) -> int:
        """The half of a class's batch: of each pair, one goes to either, and a coin says which."""
        first = random.Random(f"{self.seed}/{of}/{number // 2}").getrandbits(1)
        return first ^ (number % 2)

    def contrasts(self) -> Contrasts | None:
        """Say what the means do, of all coordinates; `None` if a class has under two batches. All processes must call it."""
        if int(self.counts.min()) == 0:
            return None
        means = self.shard.whole(self.means)
        shares = (self.counts / self.counts.sum(1, keepdim=True)).to(means)
        of_class = torch.einsum("lh,lhn->ln", shares, means)
        first, second = (means[0] - means[1]) / 2
        half = (means[:, 0] - means[:, 1]).sum(0) / 4
        return Contrasts((of_class[0] - of_class[1]) / 2, first, second, half, int(self.seen.sum()))
