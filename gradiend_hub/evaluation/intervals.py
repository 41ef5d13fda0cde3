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


def mean_interval(values: Array) -> list[float]:
    """Student's interval of the mean of `values` [N]; just the mean where they do not vary."""
    mean = float(np.mean(values))
    error = float(sem(values)) if len(values) > 1 else 0.0
    if error == 0:
        return [mean, mean]
    low, high = t.interval(LEVEL, len(values) - 1, loc=mean, scale=error)
    return [float(low), float(high)]


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
