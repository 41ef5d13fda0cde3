"""The comparison of runs against numbers that can be counted by hand."""

from __future__ import annotations

import math
from itertools import permutations, product
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
        exchanged = _by_exchange(h, y, number)
        assert found.chance == pytest.approx(max(hits / 2 ** (number.max() + 1), exchanged / 2), abs=0.01)
        assert exchanged / 2 > hits / 2 ** (number.max() + 1) or found.chance == hits / 2 ** (number.max() + 1)
        assert found.units == number.max() + 1
        assert found.correlation == pytest.approx(own)


def _by_exchange(h: Any, y: Any, number: Any) -> float:
    """Share of the exchanges of classes among units of one class, and of coins for others, that reach the correlation."""
    own, found = np.corrcoef(h, y)[0, 1], []
    units = range(number.max() + 1)
    pure = [u for u in units if len({*y[number == u]}) == 1]
    classes = [y[number == u][0] for u in pure]
    for order in {*permutations(classes)}:
        for coins in product((1.0, -1.0), repeat=len(units) - len(pure)):
            signs = dict(zip([u for u in units if u not in pure], coins, strict=True))
            signs |= {u: given * of for u, given, of in zip(pure, order, classes, strict=True)}
            dealt = y * np.array([signs[u] for u in number])
            found.append((np.corrcoef(h, dealt)[0, 1] if np.ptp(dealt) else 0.0) >= own - 1e-9)
    return float(np.mean(found)) if len(pure) > 1 else 0.0


@pytest.mark.parametrize(("rare", "rows"), [(1, 16), (1, 40), (2, 20), (3, 8), (4, 8)])
def test_one_odd_row_that_is_all_of_a_class_shows_nothing(rare: int, rows: int) -> None:
    """Encoders that are alike but on a few rows, whichever these are: at most twice `CHANCE` may pass."""
    rng, draws, labels = np.random.default_rng(0), 400, np.array([-1.0] * rare + [1.0] * (rows - rare))
    perfect = of(0.9 * labels, labels)
    passed = sum(learned(of(np.where(rng.permutation(labels) > 0, 0.9, -0.9), labels)) for _ in range(draws))
    assert passed / draws <= 2 * CHANCE + 3 * (2 * CHANCE / draws) ** 0.5
    assert learned(perfect) == (math.comb(rows, rare) >= 0.5 / CHANCE)
    assert learned(perfect) or "too few of one class to be told" in perfect.unjudged


def test_many_rows_of_few_prompts_can_fail() -> None:
    """They cannot show that something was learned, but that it was not."""
    units, labels = torch.arange(120) % 6, 1.0 - 2.0 * (torch.arange(120) % 2)
    noise = torch.tanh(torch.randn(120, generator=torch.Generator().manual_seed(0)))
    for h in (noise, -0.9 * labels, torch.zeros(120)):
        assert convergence(h, labels, units).unjudged and convergence(h, labels, units).faults
    assert not convergence(0.9 * labels, labels, units).faults


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
    alone = convergence(rows, labels)
    assert learned(alone) and alone.chance == pytest.approx(0.5 / 70, abs=0.002) and alone.least == 0.5 / 70
    pairs = convergence(rows, labels, torch.arange(4).repeat(2))
    assert pairs.chance == 1 / 16 and not learned(pairs) and "4 independent units" in pairs.unjudged


def test_too_few_rows_are_not_judged_and_say_so() -> None:
    def perfect(count: int, tries: int = 1) -> Convergence:
        labels = torch.tensor([1.0, -1.0]).repeat(count)[:count]
        return convergence(0.9 * labels, labels, tries=tries, of="test rows")

    assert [learned(perfect(count)) for count in (2, 6, 7, 8, 30)] == [False, False, False, True, True]
    assert [learned(perfect(count, tries=2)) for count in (8, 9)] == [False, True]
    assert [learned(perfect(count, tries=10)) for count in (11, 12, 30)] == [False, True, True]
    for count in (2, 6):
        assert (
            perfect(count).unjudged.startswith(f"{count} test rows, where fewer than 7") and not perfect(count).faults
        )
    assert "7 test rows, too few of one class" in perfect(7).unjudged and not perfect(8).unjudged
    none = torch.zeros(0)
    assert convergence(none, none).unjudged == "no rows that were not learned from"
    one = convergence(torch.full((20,), 0.9), torch.ones(20), of="validation rows")
    assert one.unjudged == "validation rows of one class only, expected both" and not one.faults
    wrong = convergence(torch.tensor([0.9] * 4 + [-0.9] * 4), torch.tensor([1.0, 1, 1, -1, -1, -1, -1, 1]))
    assert not wrong.unjudged and any("can be chance" in fault for fault in wrong.faults)
