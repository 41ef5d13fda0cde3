"""95 % intervals of means, shares and correlations of values that may come in groups, and spread-out choices.

Values of one group depend on each other (tokens of one text, rows of one template), so it is the groups that vary.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from scipy.special import stdtrit
from scipy.stats import DegenerateDataWarning, bootstrap, norm, sem

from gradiend_hub.data import Row, TextRow, row_groups

T = TypeVar("T")

LEVEL = 0.95
RESAMPLES = 1000

Array = np.ndarray[Any, np.dtype[np.float64]]
Numbers = np.ndarray[Any, np.dtype[np.int64]]


def groups_of(rows: Sequence[Row]) -> Numbers:
    """Number of the template or document of each row, [N]; of other rows, of those of one `group`."""
    texts = [row for row in rows if isinstance(row, TextRow)]
    if len(texts) == len(rows):
        return np.array(row_groups(texts))
    numbers: dict[Any, int] = {}
    named = [(i,) if row.group is None else row.group for i, row in enumerate(rows)]
    return np.array([numbers.setdefault(name, len(numbers)) for name in named])


def mean_error(values: Array, groups: Numbers | None = None) -> tuple[float, int]:
    """Standard error of the mean of `values` [N], and its degrees of freedom; 0 where they do not vary.

    Args:
        groups: a number ≥ 0 for each value. The mean is a ratio of sums by group, whatever their sizes, and its error that
            of the linearised ratio. One group alone says nothing about others, so that its values have to vary.
    """
    if groups is not None and (sizes := np.bincount(groups))[groups[0]] < len(values):
        count = int(np.count_nonzero(sizes))
        sums = np.bincount(groups, values - values.mean())
        return math.sqrt(count / (count - 1) * float(sums @ sums)) / len(values), count - 1
    return (float(sem(values)), len(values) - 1) if len(values) > 1 else (0.0, 1)


def mean_interval(values: Array, groups: Numbers | None = None) -> list[float]:
    """Student's interval of the mean of `values` [N] (`groups`: see `mean_error`); just the mean where they do not vary."""
    return student(float(np.mean(values)), *mean_error(values, groups))


def student(mean: float, error: float, freedom: int) -> list[float]:
    """Student's interval around a mean with this standard error and as many degrees of freedom."""
    reach = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    return [mean - reach, mean + reach]


def upper_bound(mean: float, error: float, freedom: int) -> float:
    """Upper end of the one-sided interval of a mean with this standard error and as many degrees of freedom."""
    return mean + float(stdtrit(freedom, LEVEL)) * error


def bounded_interval(mean: float, error: float, freedom: int, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Interval of a mean of values in [low, high] that stays in there: Wilson's, for as many values at the two ends as would
    give the mean its standard error, with Student's quantile.

    Of a mean in the middle it is nearly `student`'s. Where the values do not vary, it is just the mean.
    """
    mean = min(max(mean, low), high)
    share, error = (mean - low) / (high - low), error / (high - low)
    if error <= 0 or not 0 < share < 1:
        return [mean, mean]
    square = float(stdtrit(freedom, (1 + LEVEL) / 2)) ** 2 * error**2 / (share * (1 - share))
    return [low + (high - low) * end for end in _wilson(share, square)]


def _wilson(share: float, square: float) -> list[float]:
    """Wilson's interval of a share of n values for the quantile z; `square` is z² / n."""
    centre = (share + square / 2) / (1 + square)
    reach = math.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    return [max(0.0, centre - reach), min(1.0, centre + reach)]


def share_interval(hits: Array, groups: Numbers | None = None) -> list[float]:
    """Wilson's interval of a share, which keeps its width at 0 and 1.

    Args:
        hits: 0 or 1, [N].
        groups: see `mean_error`. They count as the number of independent values that would give the mean's error; where
            all hits are alike, each group counts as one value.
    """
    share, number = float(hits.mean()), float(len(hits))
    error, freedom = mean_error(hits, groups)
    if groups is not None:
        number = share * (1 - share) / error**2 + 1 if error else min(freedom + 1.0, number)
    return _wilson(share, float(norm.ppf((1 + LEVEL) / 2)) ** 2 / number)


def correlation_interval(x: Array, y: Array, groups: Numbers | None = None, *, seed: int = 0) -> list[float]:
    """Bootstrap interval of Pearson's r of x and y, both [N]: Fisher's z of the data, ± Student's quantile times the spread
    of z when groups (by default, single pairs) are drawn anew. A resample without a correlation is left out.
    """
    _, of_group = np.unique(np.arange(len(x)) if groups is None else groups, return_inverse=True)
    count = int(of_group.max()) + 1
    terms = np.stack([np.bincount(of_group, part) for part in (np.ones_like(x), x, y, x * x, y * y, x * y)], 1)
    rng = np.random.default_rng(seed)
    drawn = np.stack([rng.multinomial(count, np.full(count, 1 / count)) @ terms for _ in range(RESAMPLES)])
    (r,), found = _correlations(terms.sum(0)[None]), _correlations(drawn)
    found = found[np.isfinite(found)]
    if not np.isfinite(r) or len(found) < 2 or count < 2:
        return [-1.0, 1.0]
    low, high = student(_fisher_z(r), float(_fisher_z(found).std(ddof=1)), count - 1)
    return [math.tanh(low), math.tanh(high)]


def chance_correlation(x: Array, y: Array, groups: Numbers | None = None, *, seed: int = 0) -> list[float]:
    """Interval of Pearson's r of x and y, both [N], when y says nothing about x: y is dealt out anew.

    Where every group has one y, whole groups are dealt: within each, x may be alike for other reasons.
    """
    _, first, of_group = np.unique(
        np.arange(len(x)) if groups is None else groups, return_index=True, return_inverse=True
    )
    if groups is None or not np.array_equal(y, y[first][of_group]):
        first = of_group = np.arange(len(x))
    rng = np.random.default_rng(seed)
    dealt = (rng.permutation(y[first])[of_group] for _ in range(RESAMPLES))
    sums = np.array([(len(x), x.sum(), new.sum(), x @ x, new @ new, x @ new) for new in dealt])
    found = np.nan_to_num(_correlations(sums))
    return [float(end) for end in np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])]


def _correlations(sums: Array) -> Array:
    """Pearson's r from the sums of 1, x, y, x², y² and xy, [R, 6] → [R]; NaN where x or y is constant."""
    n, x, y, xx, yy, xy = sums.T
    variances = np.stack([n * xx - x * x, n * yy - y * y])
    square = np.where((variances > 1e-12 * n * np.stack([xx, yy])).all(0), variances.prod(0), np.nan)
    found: Array = np.clip((n * xy - x * y) / np.sqrt(square), -1.0, 1.0)
    return found


def _fisher_z(r: Any) -> Any:
    return np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))


def bootstrap_interval(statistic: Callable[..., float], *samples: Array, seed: int = 0) -> list[float]:
    """Percentile bootstrap of `statistic(*samples)`; the samples [N] are paired. A resample without a value is left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # of scipy's own interval, which has none then
        found = bootstrap(
            samples,
            statistic,
            paired=True,
            vectorized=False,
            n_resamples=RESAMPLES,
            method="percentile",
            random_state=np.random.default_rng(seed),
        )
    low, high = np.nanquantile(found.bootstrap_distribution, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]


def not_negative(interval: list[float]) -> list[float]:
    """Both ends, 0 at least."""
    return [max(end, 0.0) for end in interval]


def spread(items: Sequence[T], count: int) -> list[T]:
    """Up to `count` items, evenly spread over all."""
    return list(items) if len(items) <= count else [items[i * len(items) // count] for i in range(count)]
