"""The comparison of runs against numbers that can be counted by hand."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gradiend_hub.solvers import Convergence, Solution, convergence, seed_report
from gradiend_hub.solvers.report import ALL_COINS, CHANCE

LABELS = torch.tensor([1.0, 1.0, -1.0, -1.0])


def solution(encoder: list[float], decoder: list[float]) -> Solution:
    return Solution(torch.tensor(encoder), 0.0, torch.tensor(decoder), torch.zeros(len(decoder)))


def test_runs_are_judged_and_the_best_is_chosen() -> None:
    h = torch.tensor(
        [
            [0.9, 0.8, -0.9, -0.7],  # converged, and best
            [0.9, 0.7, -0.8, -0.3],  # converged
            [0.9, 0.9, 0.85, 0.84],  # the same sign for both classes, however well correlated
            [0.02, 0.02, -0.02, -0.02],  # frozen near 0
            [0.5, 0.5, 0.5, 0.5],  # constant
        ]
    )
    same = solution([3.0, 2.0, 0.1, 0.0], [1.0, 2.0, 3.0, -4.0])
    other = solution([-3.0, 0.1, 2.0, 0.0], [0.0, 1.0, -3.0, 4.0])
    report = seed_report([same, other, same, same, same], h, LABELS, seeds=range(5), top=0.5)
    assert [run.converged for run in report.runs] == [True, True, False, False, False]
    assert [run.chosen for run in report.runs] == [True, False, False, False, False] and report.chosen == 0
    for run, values in zip(report.runs[:4], h, strict=False):
        assert run.correlation == pytest.approx(np.corrcoef(values.numpy(), LABELS.numpy())[0, 1], rel=1e-5)
    assert report.runs[4].correlation == 0
    assert report.runs[1].class_means == pytest.approx((0.8, -0.55))
    assert report.encoder_overlap == 0.5  # {0, 1} and {0, 2}
    assert report.decoder_overlap == 1.0  # {2, 3} in both
    assert [run.seed for run in report.runs] == [0, 1, 2, 3, 4]


def test_a_converged_run_is_preferred_to_a_better_correlated_one() -> None:
    h = torch.tensor([[0.3, 0.3, -0.3, -0.3], [0.9, 0.7, -0.8, -0.3]])
    one = solution([1.0, 2.0], [1.0, 2.0])
    report = seed_report([one, one], h, LABELS, seeds=(7, 8), rates=(1.0, 0.3))
    assert report.chosen == 1 and report.runs[0].correlation > report.runs[1].correlation
    assert report.runs[1].rate == 0.3
    assert report.encoder_overlap is None  # one converged run has none to agree with


def test_overlap_is_the_mean_over_all_pairs() -> None:
    h = torch.tensor([0.9, 0.9, -0.9, -0.9]).expand(3, 4)

    def peak(at: int) -> Tensor:
        return torch.eye(200)[at] + torch.eye(200)[at + 1]  # two of 200 coordinates are 1 %

    runs = [Solution(peak(at), 0.0, peak(at), peak(at)) for at in (0, 1, 50)]
    report = seed_report(runs, h, LABELS, seeds=range(3))
    assert report.encoder_overlap == pytest.approx((0.5 + 0 + 0) / 3)


# ------------------------------------------------------------------------------------------------------- against chance


def test_chance_is_the_share_of_labellings_that_reach_the_correlation() -> None:
    rng = np.random.default_rng(0)
    for units in ([0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 1, 1, 2, 2, 3, 3], [5, 5, 5, 9, 9, 2, 3, 4]):
        number = np.unique(units, return_inverse=True)[1]
        h, y = np.tanh(rng.normal(size=8)), rng.permutation([1.0, -1.0] * 4)
        own, hits = np.corrcoef(h, y)[0, 1], 0
        for coins in product((1.0, -1.0), repeat=int(number.max()) + 1):
            dealt = y * np.array(coins)[number]
            hits += (np.corrcoef(h, dealt)[0, 1] if np.ptp(dealt) else 0.0) >= own - 1e-9
        found = convergence(torch.tensor(h), torch.tensor(y), torch.tensor(units))
        assert found.chance == hits / 2 ** (number.max() + 1) and found.units == number.max() + 1
        assert found.correlation == pytest.approx(own)


def test_drawn_labellings_agree_with_all_of_them() -> None:
    h = torch.tensor([0.9, 0.2, -0.6, 0.3, -0.9, -0.1, 0.8, -0.2, 0.4, -0.7, 0.5, 0.1])
    labels = torch.tensor([1.0, 1, -1, -1, -1, 1, 1, -1, -1, -1, 1, 1])
    exact = convergence(h, labels).chance
    silent = torch.zeros(8)  # pairs of rows that change nothing, but are units of their own
    many = convergence(torch.cat([h - h.mean(), silent]), torch.cat([labels, torch.tensor([1.0, -1.0] * 4)]))
    assert len(h) == ALL_COINS < many.units
    assert many.chance == pytest.approx(exact, abs=0.015)


def of_noise(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    """What encoders without any knowledge of the classes may read."""
    if kind == "graded":
        return np.tanh(1.5 * rng.normal(size=shape))
    return rng.choice([-0.9, 0.9], shape, p=[0.3, 0.7] if kind == "skewed" else [0.5, 0.5])


@pytest.mark.parametrize("kind", ["loud", "graded", "skewed"])
def test_of_encoders_without_knowledge_few_pass(kind: str) -> None:
    """With classes by coin or in equal shares, chosen by their correlation or not: 1 %, within the error of 800 draws."""
    rng, draws, count = np.random.default_rng(0), 800, 8 if kind == "loud" else 10
    passed = {"by coin": 0, "in equal shares": 0, "best of two, and their signs": 0}
    for _ in range(draws):
        tried, coins = of_noise(kind, (2, count), rng), rng.choice([-1.0, 1.0], count)
        shares = rng.permutation([1.0, -1.0] * (count // 2))
        passed["by coin"] += learned(of(tried[0], coins))
        passed["in equal shares"] += learned(of(tried[0], shares))
        tried = np.concatenate([tried, -tried])
        best = tried[np.argmax((tried - tried.mean(1, keepdims=True)) @ coins / (tried.std(1) + 1e-9))]
        passed["best of two, and their signs"] += learned(of(best, coins, tries=4))
    assert max(passed.values()) / draws <= CHANCE + 3 * (CHANCE / draws) ** 0.5, passed


def of(h: Any, labels: Any, **options: Any) -> Convergence:
    return convergence(torch.tensor(h), torch.tensor(labels), **options)


def learned(found: Convergence) -> bool:
    return not found.unjudged and not found.faults


def test_both_transitions_of_a_pair_count_once() -> None:
    """An encoder of the difference reads −h from the swapped pair: eight rows of four pairs fit one coin in sixteen."""
    h = torch.tensor([0.9, 0.8, 0.7, 0.9])
    rows, labels = torch.cat([h, -h]), torch.tensor([1.0] * 4 + [-1.0] * 4)
    assert learned(convergence(rows, labels)) and convergence(rows, labels).chance == 1 / 256
    pairs = convergence(rows, labels, torch.arange(4).repeat(2))
    assert pairs.chance == 1 / 16 and not learned(pairs) and "4 independent units" in pairs.unjudged


def test_too_few_rows_are_not_judged_and_say_so() -> None:
    def perfect(count: int, tries: int = 1) -> Convergence:
        labels = torch.tensor([1.0, -1.0]).repeat(count)[:count]
        return convergence(0.9 * labels, labels, tries=tries, of="test rows")

    assert [learned(perfect(count)) for count in (2, 6, 7, 8, 30)] == [False, False, True, True, True]
    assert [learned(perfect(count, tries=2)) for count in (7, 8)] == [False, True]
    assert [learned(perfect(count, tries=10)) for count in (9, 10, 30)] == [False, True, True]
    for count in (2, 6):
        assert (
            perfect(count).unjudged.startswith(f"{count} test rows, where fewer than 7") and not perfect(count).faults
        )
    assert not perfect(7).unjudged
    none = torch.zeros(0)
    assert convergence(none, none).unjudged == "no rows that were not learned from"
    one = convergence(torch.full((20,), 0.9), torch.ones(20), of="validation rows")
    assert one.unjudged == "validation rows of one class only, expected both" and not one.faults
    wrong = convergence(torch.tensor([0.9] * 4 + [-0.9] * 4), torch.tensor([1.0, 1, 1, -1, -1, -1, -1, 1]))
    assert not wrong.unjudged and any("can be chance" in fault for fault in wrong.faults)
