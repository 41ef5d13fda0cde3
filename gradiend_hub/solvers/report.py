"""Judgement of runs: whether each was learned, which is best, and how many coordinates they share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from .base import Solution

CONVERGED = 0.5
"""Least correlation, and least |mean| of each class, of a run that counts as converged."""

CHANCE_Z = 2.33
"""Standard errors above 0 that a correlation needs: 1 % of encoders of noise get there."""

SATURATED = 0.999
"""|h| of a row that is read without any degree."""


@dataclass(frozen=True)
class Convergence:
    """Judgement of feature values of labelled rows, by the criteria of arXiv 2502.01406 and against chance.

    Attributes:
        correlation: Pearson's r of h and the labels ±1; 0 for a constant h.
        class_means: mean h of the rows of label +1 and of label −1.
        rows: number of rows.
        saturated: share of them with |h| above `SATURATED`.
    """

    correlation: float
    class_means: tuple[float, float]
    rows: int
    saturated: float = 0.0

    @property
    def z(self) -> float:
        """Fisher's z of the correlation in standard errors, for a test against no correlation."""
        r = min(max(self.correlation, 0.0), 1 - 1e-12)
        return math.atanh(r) * math.sqrt(max(self.rows - 3, 0))

    @property
    def converged(self) -> bool:
        """Correlation and both |class means| at least 0.5, and the means of opposite signs."""
        up, down = self.class_means
        return self.correlation >= CONVERGED and min(abs(up), abs(down)) >= CONVERGED and up * down < 0

    @property
    def faults(self) -> list[str]:
        """Reasons why this is no reading of the classes, in words; empty for a usable one."""
        up, down = self.class_means
        found = []
        if self.correlation < CONVERGED:
            found.append(f"correlation {self.correlation:+.2f}, expected at least {CONVERGED}")
        if min(abs(up), abs(down)) < CONVERGED or up * down >= 0:
            found.append(f"class means {up:+.2f} and {down:+.2f}, expected at least ±{CONVERGED} on opposite sides")
        if self.correlation >= CONVERGED and self.z < CHANCE_Z:
            found.append(
                f"correlation {self.correlation:+.2f} of so few rows can be chance ({self.z:.1f} standard errors)"
            )
        if self.saturated > 0.5:
            found.append(f"{self.saturated:.0%} of the rows saturate the encoder, so that h has no degrees")
        return found


def convergence(h: Tensor, labels: Tensor) -> Convergence:
    """Judge feature values h of rows, oriented so that label +1 is positive, by their labels ±1: [N] each."""
    means = (_mean(h[labels > 0]), _mean(h[labels < 0]))
    return Convergence(_correlation(h, labels), means, len(h), float((h.abs() > SATURATED).double().mean()))


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0


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
        seeds: the solver's, one by run.
        rates: the solver's learning rates, one by run.
        top: share of the coordinates that counts as important.
    """
    rates = rates or [1.0] * len(seeds)
    judged = [convergence(values, labels) for values in h]
    chosen = max(range(len(judged)), key=lambda k: (judged[k].converged, judged[k].correlation))
    runs = [
        RunReport(seed, rate, found.correlation, found.class_means, found.converged, k == chosen)
        for k, (seed, rate, found) in enumerate(zip(seeds, rates, judged, strict=True))
    ]
    settled = [solution for solution, found in zip(solutions, judged, strict=True) if found.converged]
    return SeedReport(
        runs,
        chosen,
        _overlap([solution.encoder for solution in settled], top),
        _overlap([solution.decoder for solution in settled], top),
    )


def _correlation(values: Tensor, labels: Tensor) -> float:
    if not bool(values.min() < values.max()) or not bool(labels.min() < labels.max()):
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
