"""What the runs of one training say about each other: which converged, which is best, and where they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from .base import Solution

CONVERGED = 0.5
"""Least correlation, and least |mean| of each class, of a run that counts as converged."""


@dataclass(frozen=True)
class RunReport:
    """One run on validation rows.

    Attributes:
        seed: of its initialisation.
        rate: its learning rate, relative to the optimizer's.
        correlation: Pearson's r of h and the labels ±1; 0 for a constant h.
        class_means: mean h of the rows of label +1 and of label −1.
        converged: correlation and both |means| at least 0.5, and the means of opposite signs.
        chosen: whether this is the run that is kept.
    """

    seed: int
    rate: float
    correlation: float
    class_means: tuple[float, float]
    converged: bool
    chosen: bool


@dataclass(frozen=True)
class SeedReport:
    """All runs, and how much of their most important coordinates they share.

    Attributes:
        runs: in the order of the solver.
        chosen: index of the run with the best correlation, a converged one if there is any.
        encoder_overlap: share of the top 1 % coordinates by |w_e| that two runs have in common, mean over all pairs of
            converged runs; `None` with fewer than two.
        decoder_overlap: the same by |w_d|.
    """

    runs: list[RunReport]
    chosen: int
    encoder_overlap: float | None
    decoder_overlap: float | None


def seed_report(
    solutions: Sequence[Solution],
    h: Tensor,
    labels: Tensor,
    *,
    seeds: Sequence[int] = (0,),
    rates: Sequence[float] | None = None,
    top: float = 0.01,
) -> SeedReport:
    """Compare the runs of one training.

    Args:
        solutions: one by run.
        h: feature values of validation rows, oriented so that label +1 is positive (`calibrated`); [k, N].
        labels: ±1, [N].
        seeds, rates: those of the solver.
        top: share of the coordinates that counts as important.
    """
    rates = rates or [1.0] * len(seeds)
    correlations = [_correlation(values, labels) for values in h]
    means = [(float(values[labels > 0].mean()), float(values[labels < 0].mean())) for values in h]
    converged = [
        r >= CONVERGED and min(abs(up), abs(down)) >= CONVERGED and up * down < 0
        for r, (up, down) in zip(correlations, means, strict=True)
    ]
    chosen = max(range(len(correlations)), key=lambda k: (converged[k], correlations[k]))
    runs = [
        RunReport(seed, rate, r, mean, ok, k == chosen)
        for k, (seed, rate, r, mean, ok) in enumerate(zip(seeds, rates, correlations, means, converged, strict=True))
    ]
    settled = [solution for solution, ok in zip(solutions, converged, strict=True) if ok]
    return SeedReport(
        runs,
        chosen,
        _overlap([solution.encoder for solution in settled], top),
        _overlap([solution.decoder for solution in settled], top),
    )


def _correlation(values: Tensor, labels: Tensor) -> float:
    if not bool(values.min() < values.max()):
        return 0.0
    return float(torch.corrcoef(torch.stack([values.double(), labels.double()]))[0, 1])


def _overlap(vectors: Sequence[Tensor], top: float) -> float | None:
    """Mean over pairs of |A ∩ B|/k, where A and B are the k largest coordinates of two vectors."""
    if len(vectors) < 2:
        return None
    count = max(1, round(top * vectors[0].numel()))
    masks = []
    for vector in vectors:
        mask = torch.zeros(vector.numel(), dtype=torch.bool, device=vector.device)
        mask[vector.abs().topk(count, sorted=False).indices] = True
        masks.append(mask)
    shares = [float((a & b).sum()) / count for a, b in combinations(masks, 2)]
    return sum(shares) / len(shares)
