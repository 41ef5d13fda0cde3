"""One pass, no learning rate, no seed: encoder and decoder from the class means of the gradients.

With d = (s̄₊ − s̄₋)/(v + 0.1·v̄), where v is the variance of a coordinate within the classes and v̄ its mean over all, the
encoder is z = ⟨w, s⟩ with w along d, and the class means are as far apart as ±0.9. The variance costs one vector and is
worth it: it tells the classes from what else is in a gradient, so that neutral text stays near 0.

There is no bias: what has no gradient has no feature, z(0) = 0. The midpoint of the class means instead would move neutral
text away from 0, and misread rows of the less scattered class where there are few rows.
Supervised baselines of an encoder or a decoder alone are the two halves of this solution.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import LEVEL, Solution, Solver
from .shard import Shard

_DAMPING = 0.1


def regression(counts: Tensor, levels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Least squares of class means m₊, m₋ and 0 on h: coefficients of both means in the weight, and in the bias; [2] each.

    Args:
        counts: vectors of label +1, −1 and 0; [3], fp64.
        levels: h of each, [3], fp64; default: ±`LEVEL` and 0.
    """
    levels = counts.new_tensor([LEVEL, -LEVEL, 0.0]) if levels is None else levels
    shares = counts / counts.sum().clamp(min=1)
    mean = shares @ levels
    spread = shares @ (levels - mean).square()
    factors = (shares * (levels - mean) / spread if spread > 0 else torch.zeros_like(shares))[:2]
    return factors, shares[:2] - factors * mean


class ClassMeans(nn.Module):
    """Running mean of vectors [n] by label, +1 first; of label 0 only the number is kept. State: 2n values."""

    def __init__(self, shard: Shard) -> None:
        super().__init__()
        self.shard = shard
        self.register_buffer("means", torch.zeros(2, shard.length))
        self.register_buffer("counts", torch.zeros(3, dtype=torch.float64))  # of +1, −1 and 0
        self.means: Tensor
        self.counts: Tensor

    def observe(self, vector: Tensor, label: float) -> None:
        which = 0 if label > 0 else 1 if label < 0 else 2
        self.counts[which] += 1
        if which < 2:
            self.means[which].lerp_(vector, 1 / float(self.counts[which]))

    def fit(self, levels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Least squares of the vectors on h, weight and bias of all coordinates: [n] each. Rows of label 0 count as zeros.

        Args:
            levels: h of a row of label +1, −1 and 0, as of `regression`.
        """
        factors, offsets = regression(self.counts, levels)
        weight, bias = factors.to(self.means) @ self.means, offsets.to(self.means) @ self.means
        return self.shard.whole(weight), self.shard.whole(bias)

    def relative_error(self, vector: Tensor, label: float) -> Tensor:
        """‖mean − vector‖²/‖vector‖² of the mean as it is before the vector is taken in, [1]; 0 for neutral rows."""
        if label == 0:
            return torch.zeros(1, device=vector.device)
        residual = vector - self.means[0 if label > 0 else 1]
        wrong, all_of_it = self.shard.sum(residual.dot(residual), vector.dot(vector))
        return (wrong / all_of_it).reshape(1)


class ClosedFormSolver(Solver):
    """Class means of s and t, and the variance of s; state: 5n values.

    Neutral rows draw the decoder towards zero and leave the encoder alone.

    Args:
        size: n, the number of coordinates.
        shard: coordinates of this process; default: all.
    """

    vectors: ClassVar[frozenset[str]] = frozenset(
        {"source_means.means", "target_means.means", "spread", "split_means.means"}
    )

    def __init__(self, size: int, shard: Shard | None = None) -> None:
        super().__init__(size, shard)
        self.source_means = ClassMeans(self.shard)
        self.target_means = ClassMeans(self.shard)
        self.register_buffer("spread", torch.zeros(self.shard.length))  # Σ(s − s̄)² over both classes
        self.spread: Tensor

    @torch.no_grad()
    def observe(self, source: Tensor, target: Tensor, label: float) -> Tensor:
        loss = self.target_means.relative_error(target, label)
        if label != 0:
            deviation = source - self.source_means.means[0 if label > 0 else 1]
            self.source_means.observe(source, label)
            seen = float(self.source_means.counts[0 if label > 0 else 1])
            self.spread.addcmul_(deviation, deviation, value=1 - 1 / seen)
        self.target_means.observe(target, label)
        return loss

    @torch.no_grad()
    def solutions(self) -> list[Solution]:
        positive, negative = self.source_means.means
        difference = positive - negative
        (total,) = self.shard.sum(self.spread.sum())
        variance = self.spread / (total / self.shard.size).clamp(min=1e-38)  # of mean 1, for only proportions matter
        direction = difference / (variance + _DAMPING)
        (product,) = self.shard.sum(direction.dot(difference))
        encoder = direction * (2 * math.atanh(LEVEL) / float(product.clamp(min=1e-38)))
        return [Solution(self.shard.whole(encoder), 0.0, *self.target_means.fit())]
