"""Judgement of runs: whether each was learned, which is best, and how many coordinates they share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import torch
from torch import Tensor

from .base import Solution

CONVERGED = 0.5
"""Least correlation, and least |mean| of each class, of a run that counts as converged."""

CHANCE = 0.01
"""Most that may pass of encoders of noise where classes are dealt out by coin; twice that, whatever their sizes."""

ALL_COINS, DRAWS = 12, 9_999
"""Units up to which all labellings by coin are counted, and how many are drawn beyond that, at least."""

DRAWN = 2**22
"""Labels that are drawn at a time."""

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
        units: number of independent units that the rows come in.
        chance: share of labellings by chance whose correlation is as high; see `by_chance`.
        least: the same of the best encoder that there could be.
        has_both: whether there are rows of both labels.
        tries: from how many encoders, both signs of each, this one was chosen by these rows.
        of: what the rows are called.
    """

    correlation: float
    class_means: tuple[float, float]
    rows: int
    saturated: float
    units: int
    chance: float
    least: float
    has_both: bool
    tries: int = 1
    of: str = "rows"

    @property
    def converged(self) -> bool:
        """Correlation and both |class means| at least 0.5, and the means of opposite signs."""
        up, down = self.class_means
        return self.correlation >= CONVERGED and min(abs(up), abs(down)) >= CONVERGED and up * down < 0

    @property
    def unjudged(self) -> str:
        """Say why these rows cannot show that anything was learned; empty if they can.

        Of n independent units, one labelling of 2ⁿ is as good as the best, so that fewer than 7 cannot be beyond chance, or
        8 where these rows have chosen the sign; nor can units of one class each that are nearly all of the same.
        """
        if not self.rows:
            return "no rows that were not learned from"
        if not self.has_both:
            return f"{self.of} of one class only, expected both"
        fewest, rows = math.ceil(math.log2(self.tries / CHANCE)), f"{self.rows} {self.of}"
        if self.units < self.rows:
            rows += f" of {self.units} independent units"
        if self.units < fewest:
            return f"{rows}, where fewer than {fewest} independent ones can be told apart by chance"
        return f"{rows}, too few of one class to be told apart by chance" if self.least > CHANCE / self.tries else ""

    @property
    def faults(self) -> list[str]:
        """Reasons why this is no reading of the classes, in words; empty for a usable one.

        Rows too few to show that something was learned can still show that it was not; but not a handful.
        """
        up, down = self.class_means
        found = list[str]()
        if not self.has_both or self.rows < math.ceil(math.log2(self.tries / CHANCE)):
            return found
        if self.correlation < CONVERGED:
            found.append(f"correlation {self.correlation:+.2f}, expected at least {CONVERGED}")
        if min(abs(up), abs(down)) < CONVERGED or up * down >= 0:
            found.append(f"class means {up:+.2f} and {down:+.2f}, expected at least ±{CONVERGED} on opposite sides")
        if self.correlation >= CONVERGED and not self.unjudged and self.chance > CHANCE / self.tries:
            found.append(
                f"correlation {self.correlation:+.2f} can be chance: {self.chance:.2%} of labellings by chance reach it, "
                f"expected at most {CHANCE / self.tries:.2%}"
            )
        if self.saturated > 0.5:
            found.append(f"{self.saturated:.0%} of the rows saturate the encoder, so that h has no degrees")
        return found


def convergence(
    h: Tensor, labels: Tensor, units: Tensor | None = None, *, tries: int = 1, of: str = "rows"
) -> Convergence:
    """Judge feature values h of rows, oriented so that label +1 is positive, by their labels ±1: [N] each.

    An encoder that does not depend on these labels has no faults with a probability of at most `CHANCE` where the classes of
    units are by coin, and of twice that whatever number of units is of each class.

    Args:
        units: number of the independent unit that each row belongs to, [N]; default: each row is one.
        tries: from how many encoders, both signs of each, this one was chosen by these rows.
        of: what the rows are called.
    """
    has_both = bool((labels > 0).any() and (labels < 0).any())
    units = (torch.arange(len(h)) if units is None else units).unique(return_inverse=True)[1]
    draws = max(DRAWS, round(10 * tries / CHANCE))
    chance, least = by_chance(h, labels, units, draws) if has_both else (1.0, 1.0)
    return Convergence(
        _correlation(h, labels) if len(h) else 0.0,
        (_mean(h[labels > 0]), _mean(h[labels < 0])),
        len(h),
        float((h.abs() > SATURATED).double().mean()) if len(h) else 0.0,
        int(units.max()) + 1 if len(h) else 0,
        chance,
        least,
        has_both,
        tries,
        of,
    )


def by_chance(h: Tensor, labels: Tensor, units: Tensor, draws: int = DRAWS) -> tuple[float, float]:
    """Return the share of labellings by chance, these labels among them, whose correlation with h is at least theirs.

    The classes of all rows of a unit change places together, as h may be alike in them for other reasons (one prompt, one
    template). Labels are dealt out by coin; and, as one odd unit can be all of a rare class, those of units of one class are
    exchanged among them, of which half the share counts. The larger of both is returned.

    With few units, all labellings by coin are counted, so that the share is exact; else, and of exchanges, some are drawn.

    Args:
        h, labels: feature values and ±1, [N].
        units: number of the unit of each row, from 0 on, [N].
        draws: labellings that are drawn.

    Returns:
        The share, and the least that it can be with these units.
    """
    y, count = labels.double().cpu(), int(units.max()) + 1
    own = (h.double() - h.double().mean()).cpu() * y
    sums, sizes, rows = (
        torch.zeros(count, dtype=torch.float64).index_add_(0, units.cpu(), part) for part in (own, y, y.abs())
    )
    pure = (sizes.abs() == rows).nonzero().flatten()
    classes, few = sizes[pure].sign(), int((sizes[pure] > 0).sum())
    most = math.comb(len(pure), few) * 2 ** (count - len(pure))
    generator, start = torch.Generator().manual_seed(0), torch.ones(1, count)

    def coins(number: int) -> Tensor:
        return 1.0 - 2.0 * torch.randint(2, (number, count), generator=generator)

    def exchanges(number: int) -> Tensor:
        signs = coins(number)
        order = torch.rand(number, len(pure), generator=generator).argsort(1)
        signs[:, pure] = (classes[order] * classes).float()
        return signs

    def share(labellings: Iterable[Tensor]) -> float:
        found = torch.cat([_scaled(signs, sums, sizes, len(y)) for signs in labellings])
        return float((found >= found[0] - 1e-9 * float(sums.abs().sum())).double().mean())

    step = max(1, DRAWN // count)
    parts = [min(step, draws - i) for i in range(0, draws, step)]
    every = 1.0 - 2.0 * (torch.arange(2**count)[:, None] >> torch.arange(count) & 1) if count <= ALL_COINS else None
    by_coin = share([every] if every is not None else chain([start], map(coins, parts)))
    exchanged = share(chain([start], map(exchanges, parts))) / 2 if len(pure) > 1 else 0.0
    return max(by_coin, exchanged), max(2.0**-count, 0.5 / most)


def _scaled(signs: Tensor, sums: Tensor, sizes: Tensor, rows: int) -> Tensor:
    """Correlations, but for a common factor, where signs [D, units] say which units' labels change: [D]."""
    spread = 1 - (signs.double() @ sizes / rows) ** 2
    return torch.where(spread > 1e-12, signs.double() @ sums / spread.clamp(min=1e-12).sqrt(), 0.0)


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0


@dataclass(frozen=True)
class RunReport:
    """One run on the rows that runs are compared by: validation rows, or training rows where those are few.

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
        h: feature values of the rows that they are compared by, label +1 being positive (`calibrated`); [k, N].
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
