"""95 % intervals (Student's for means, bootstrap for other statistics, Wilson's for shares), and spread-out choices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from scipy.stats import binomtest, bootstrap, sem, t

T = TypeVar("T")

LEVEL = 0.95
RESAMPLES = 1000

Array = np.ndarray[Any, np.dtype[np.float64]]
Numbers = np.ndarray[Any, np.dtype[np.int64]]


def mean_error(values: Array, groups: Numbers | None = None) -> tuple[float, int]:
    """Standard error of the mean of `values` [N], and its degrees of freedom; 0 where they do not vary.

    Args:
        groups: a number ≥ 0 for each value; values of the same number depend on each other (tokens of one text). Then it
            is the groups that vary, whatever their sizes: the mean is a ratio of sums by group, and its error that of the
            linearised ratio. One group alone says nothing about others, so that its values have to vary.
    """
    if groups is not None and (sizes := np.bincount(groups))[groups[0]] < len(values):
        count = int(np.count_nonzero(sizes))
        sums = np.bincount(groups, values - values.mean())
        return math.sqrt(count / (count - 1) * float(sums @ sums)) / len(values), count - 1
    return (float(sem(values)), len(values) - 1) if len(values) > 1 else (0.0, 1)


def mean_interval(values: Array, groups: Numbers | None = None) -> list[float]:
    """Student's interval of the mean of `values` [N] (`groups`: see `mean_error`); just the mean where they do not vary."""
    mean, (error, freedom) = float(np.mean(values)), mean_error(values, groups)
    if error == 0:
        return [mean, mean]
    low, high = t.interval(LEVEL, freedom, loc=mean, scale=error)
    return [float(low), float(high)]


def mean_bound(values: Array, groups: Numbers | None = None) -> float:
    """Upper end of the one-sided interval of the mean of `values` [N] (`groups`: see `mean_error`)."""
    error, freedom = mean_error(values, groups)
    return float(np.mean(values) + t.ppf(LEVEL, freedom) * error)


def bootstrap_interval(statistic: Callable[..., float], *samples: Array, seed: int = 0) -> list[float]:
    """Percentile bootstrap of `statistic(*samples)`; the samples [N] are paired. A resample without a value is left out."""
    found = bootstrap(
        samples, statistic, paired=True, vectorized=False, n_resamples=RESAMPLES, confidence_level=LEVEL,
        method="percentile", random_state=np.random.default_rng(seed),
    )  # fmt: skip
    drawn = found.bootstrap_distribution
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    return [float(low), float(high)]


def bootstrap_mean_interval(values: Array, *, seed: int = 0) -> list[float]:
    """Percentile bootstrap of the mean of `values` [N]."""
    found = bootstrap(
        (values,), np.mean, vectorized=True, n_resamples=RESAMPLES, confidence_level=LEVEL, method="percentile",
        random_state=np.random.default_rng(seed), batch=max(1, 2**22 // max(1, len(values))),
    ).confidence_interval  # fmt: skip
    return [float(found.low), float(found.high)]


def share_interval(hits: int, of: int) -> list[float]:
    """Wilson's interval of a share, which keeps its width at 0 and 1."""
    found = binomtest(hits, of).proportion_ci(LEVEL, method="wilson")
    return [float(found.low), float(found.high)]


def clamp(interval: list[float], low: float = 0.0, high: float = math.inf) -> list[float]:
    """Both ends moved into [low, high]."""
    return [min(max(end, low), high) for end in interval]


def spread(items: Sequence[T], count: int) -> list[T]:
    """Up to `count` items, evenly spread over all."""
    return list(items) if len(items) <= count else [items[i * len(items) // count] for i in range(count)]
