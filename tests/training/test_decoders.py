"""The damping that a damage-aware decoder gets, and the coordinates that stay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradiend_hub.gradients import Scope
from gradiend_hub.solvers import DAMPINGS, UNMEASURED, Solution, damage_aware, effect_shares
from gradiend_hub.training.decoders import best_damped

SIZE = 40


def given() -> tuple[Solution, Scope, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    encoder, decoder, bias = torch.randn(3, SIZE, generator=generator)
    scope = Scope.dense({"a": nn.Parameter(torch.zeros(6, 5)), "b": nn.Parameter(torch.zeros(10))})
    return Solution(encoder, 0.1, decoder, bias), scope, torch.rand(SIZE, generator=generator).square()


@pytest.mark.parametrize("best", range(len(DAMPINGS)))
def test_the_damping_of_the_most_effect_is_taken_and_the_search_ends_behind_it(best: int) -> None:
    solution, scope, fisher = given()
    wanted = damage_aware(solution, fisher, DAMPINGS[best])
    (found, same), tried = best_damped(
        solution, scope, fisher, effect=lambda s, _: -float((s.decoder - wanted.decoder).norm())
    )
    assert torch.equal(found.decoder, wanted.decoder) and torch.equal(found.decoder_bias, wanted.decoder_bias)
    assert torch.equal(found.encoder, solution.encoder) and same is scope
    assert tuple(tried) == DAMPINGS[: best + 2]


def test_without_a_measure_nothing_is_compared() -> None:
    solution, scope, fisher = given()
    (found, _), tried = best_damped(solution, scope, fisher)
    assert tried == {} and torch.equal(found.decoder, damage_aware(solution, fisher, UNMEASURED).decoder)


def test_each_damping_is_compared_on_the_coordinates_that_it_would_keep() -> None:
    solution, scope, fisher = given()
    compared: list[tuple[Solution, Scope]] = []

    def effect(candidate: Solution, kept: Scope) -> float:
        compared.append((candidate, kept))
        return 0.0

    (found, few), tried = best_damped(solution, scope, fisher, density=0.2, effect=effect)
    assert tuple(tried) == DAMPINGS  # equal effects end no search, and the largest damping is the mildest edit
    for damping, (candidate, kept) in zip(DAMPINGS, compared, strict=True):
        order = effect_shares(solution, fisher, damping).argsort(descending=True)[:8].sort().values
        assert torch.equal(candidate.decoder, damage_aware(solution, fisher, damping).decoder[order])
        assert torch.equal(torch.cat([kept.kept.get("a", order[:0]), kept.kept.get("b", order[:0]) + 30]).long(), order)
    assert torch.equal(found.decoder, compared[0][0].decoder) and few.size == 8
