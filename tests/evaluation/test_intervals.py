"""Intervals: against scipy's where values are independent, and by how often they cover the truth where they are not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gradiend_hub.evaluation.intervals import (
    bounded_interval,
    chance_correlation,
    correlation_interval,
    mean_error,
    mean_interval,
    share_interval,
    student,
    upper_bound,
)

DRAWS = 300


def test_intervals_of_independent_values_are_the_known_ones() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=30)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx([expected.low, expected.high])
    assert student(1.0, 0.0, 3) == [1.0, 1.0]
    assert upper_bound(1.0, 2.0, 9) == pytest.approx(stats.t.ppf(0.95, 9, loc=1.0, scale=2.0))
    for hits in (np.repeat([1.0, 0.0], [7, 4]), np.ones(12), np.zeros(3)):
        wilson = stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
        assert share_interval(hits) == pytest.approx([wilson.low, wilson.high])
        assert share_interval(hits, np.arange(len(hits))) == pytest.approx([wilson.low, wilson.high], abs=1e-6)


def test_a_correlation_between_independent_pairs_has_fishers_interval() -> None:
    rng = np.random.default_rng(1)
    y = np.repeat([1.0, -1.0], 100)
    x = y + rng.normal(size=200)
    expected = stats.pearsonr(x, y).confidence_interval()
    assert correlation_interval(x, y) == pytest.approx([expected.low, expected.high], abs=0.03)
    assert correlation_interval(x, y, np.arange(200)) == correlation_interval(x, y)
    assert correlation_interval(np.ones(200), y) == [-1.0, 1.0]
    assert correlation_interval(y, y, np.zeros(200, int)) == [-1.0, 1.0]
    low, high = correlation_interval(y + 1e-3 * x, y)
    assert 0.999 < low < high < 1


def frames(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, labels and groups of rows as templates make them: 20 groups of rows that are alike, and 60 single rows."""
    groups = np.concatenate([np.repeat(np.arange(20), rng.integers(4, 9, 20)), 20 + np.arange(60)])
    labels = np.where(rng.random(80) < 0.5, 1.0, -1.0)[groups]
    return 0.5 * labels + rng.normal(size=80)[groups] + 0.5 * rng.normal(size=len(groups)), labels, groups


def test_intervals_of_grouped_values_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    truth = 0.5 / np.sqrt(0.25 + 1 + 0.25)
    share = stats.norm.cdf(0.5 / np.sqrt(1.25))
    held = {"mean": 0, "correlation": 0, "share": 0, "mean of rows": 0, "correlation of rows": 0}
    for draw in range(DRAWS):
        x, y, groups = frames(rng)
        first, right = y > 0, (x * y > 0).astype(float)
        found = {
            "mean": (mean_interval(x[first], groups[first]), 0.5),
            "correlation": (correlation_interval(x, y, groups, seed=draw), truth),
            "share": (share_interval(right, groups), share),
            "mean of rows": (mean_interval(x[first]), 0.5),
            "correlation of rows": (correlation_interval(x, y, seed=draw), truth),
        }
        for name, ((low, high), value) in found.items():
            held[name] += low <= value <= high
    covered = {name: count / DRAWS for name, count in held.items()}
    assert all(covered[name] > 0.91 for name in ("mean", "correlation", "share")), covered
    assert all(covered[f"{name} of rows"] < 0.88 for name in ("mean", "correlation")), (
        covered
    )  # so that grouping matters


def test_labels_without_meaning_correlate_within_the_band_of_chance() -> None:
    rng = np.random.default_rng(3)
    inside = alone = 0
    for draw in range(DRAWS):
        x, y, groups = frames(rng)
        x = x - 0.5 * y
        r = stats.pearsonr(x, y).statistic
        low, high = chance_correlation(x, y, groups, seed=draw)
        inside += low <= r <= high
        low, high = chance_correlation(x, y, seed=draw)
        alone += low <= r <= high
    assert inside / DRAWS > 0.91 and alone / DRAWS < 0.88
    x, y = rng.normal(size=400), np.repeat([1.0, -1.0], 200)
    assert chance_correlation(x, y) == pytest.approx([-0.098, 0.098], abs=0.015)
    alike, pairs = np.repeat(x[:200], 2), np.arange(400) // 2
    assert chance_correlation(alike, y, pairs) == pytest.approx([-0.138, 0.138], abs=0.02)
    assert chance_correlation(np.ones(400), y) == [0.0, 0.0]


@pytest.mark.parametrize("shape", [(0.05, 4.0), (0.3, 0.3), (4.0, 0.05), (20.0, 20.0)])
def test_intervals_of_probabilities_stay_in_bounds_and_cover(shape: tuple[float, float]) -> None:
    """Probabilities of rows in templates, near 0, at both ends, near 1 and in the middle."""
    rng = np.random.default_rng(4)
    truth, held, by_student = shape[0] / sum(shape), 0, 0
    for _ in range(DRAWS):
        groups = np.repeat(np.arange(60), rng.integers(1, 6, 60))
        values = rng.beta(*shape, size=60)[groups]
        error, freedom = mean_error(values, groups)
        low, high = bounded_interval(float(values.mean()), error, freedom)
        assert 0 <= low <= values.mean() <= high <= 1
        held += low <= truth <= high
        plain = student(float(values.mean()), error, freedom)
        by_student += plain[0] <= truth <= plain[1]
        signed = bounded_interval(2 * float(values.mean()) - 1, 2 * error, freedom, low=-1.0)
        assert signed == pytest.approx([2 * low - 1, 2 * high - 1])
    assert held >= by_student  # which leaves the bounds, too
    assert held / DRAWS > (0.93 if min(shape) >= 0.3 else 0.84)  # a few rows near the far end decide such a mean


def test_a_bounded_interval_in_the_middle_is_students_and_of_hits_wilsons() -> None:
    assert bounded_interval(0.5, 1e-3, 1000) == pytest.approx(student(0.5, 1e-3, 1000), abs=1e-5)
    hits = np.repeat([1.0, 0.0], [300, 4700])
    wilson = stats.binomtest(300, 5000).proportion_ci(method="wilson")
    assert bounded_interval(0.06, *mean_error(hits)) == pytest.approx([wilson.low, wilson.high], abs=1e-4)
    assert bounded_interval(1.0, 0.0, 4) == [1.0, 1.0] and bounded_interval(1.02, 0.1, 4) == [1.0, 1.0]
