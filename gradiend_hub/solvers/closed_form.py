"""One pass, no learning rate, no seed: encoder and decoder from the class means of the gradients.

With d = s̄₊ − s̄₋ the encoder is z = 2·atanh(0.9)·⟨d, s − (s̄₊ + s̄₋)/2⟩/‖d‖², so that the class means encode to ±0.9. The
decoder is the least-squares fit of t on h, where h is that of the row's class. Supervised baselines of an encoder or a
decoder alone are the two halves of this solution.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .base import Solution, Solver

LEVEL = 0.9
"""Feature value of the class means."""


class ClassMeans(nn.Module):
    """Running mean of vectors [n] by label, +1 first; of label 0 only the number is kept. State: 2n values."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(2, size))
        self.register_buffer("counts", torch.zeros(3, dtype=torch.float64))  # of +1, −1 and 0
        self.means: Tensor
        self.counts: Tensor

    def observe(self, vector: Tensor, label: float) -> None:
        which = 0 if label > 0 else 1 if label < 0 else 2
        self.counts[which] += 1
        if which < 2:
            self.means[which].lerp_(vector, 1 / float(self.counts[which]))

    def fit(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Least squares of the vectors on h, [n] each: weight and bias. Rows of label 0 count as zero vectors.

        Args:
            levels: h of a row of label +1, −1 and 0; [3], fp64.
        """
        shares = self.counts / self.counts.sum().clamp(min=1)
        mean = shares @ levels
        spread = shares @ (levels - mean).square()
        factors = (shares * (levels - mean) / spread if spread > 0 else torch.zeros_like(shares))[:2]
        weight = factors.to(self.means) @ self.means
        return weight, shares[:2].to(self.means) @ self.means - weight * float(mean)

    def relative_error(self, vector: Tensor, label: float) -> Tensor:
        """‖mean − vector‖²/‖vector‖² of the mean as it is before the vector is taken in, [1]; 0 for neutral rows."""
        if label == 0:
            return torch.zeros(1, device=vector.device)
        residual = vector - self.means[0 if label > 0 else 1]
        return (residual.dot(residual) / vector.dot(vector)).reshape(1)


class ClosedFormSolver(Solver):
    """Class means of s and t; state: 4n values. Neutral rows draw the decoder towards zero and leave the encoder alone.

    Args:
        size: n, the number of coordinates.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.source_means = ClassMeans(size)
        self.target_means = ClassMeans(size)

    @torch.no_grad()
    def observe(self, source: Tensor, target: Tensor, label: float) -> Tensor:
        loss = self.target_means.relative_error(target, label)
        self.source_means.observe(source, label)
        self.target_means.observe(target, label)
        return loss

    @torch.no_grad()
    def solutions(self) -> list[Solution]:
        positive, negative = self.source_means.means
        difference = positive - negative
        encoder = difference * (2 * math.atanh(LEVEL) / float(difference.dot(difference).clamp(min=1e-38)))
        bias = -0.5 * float(encoder.dot(positive) + encoder.dot(negative))
        levels = torch.tensor([LEVEL, -LEVEL, 0.0], dtype=torch.float64, device=encoder.device)
        return [Solution(encoder, bias, *self.target_means.fit(levels))]
