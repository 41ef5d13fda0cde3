"""The comparison of runs against numbers that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gradiend_hub.solvers import Solution, seed_report

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
