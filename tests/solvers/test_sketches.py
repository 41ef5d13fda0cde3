"""The closed form by sketches, against means that are kept whole."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.errors import ConfigError
from gradiend_hub.gradients import Outer
from gradiend_hub.solvers import ByParameter, ClosedFormSolver, Shard, Sketching, SketchSolver

SHAPES = {"wide": (40, 120), "tall": (150, 40), "small": (5, 4), "vector": (7,), "kernel": (60, 20, 3)}
SIZE = sum(math.prod(shape) for shape in SHAPES.values())


def solver(rank: int = 3, seed: int = 0, shard: Shard | None = None) -> SketchSolver:
    return SketchSolver(Sketching(SHAPES, rank, seed=seed), SIZE, shard)


def rows_of(rank: int, seed: int, noise: float = 0.0) -> dict[str, Tensor]:
    """A gradient whose matrices are of a rank, with noise of full rank beside them."""
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for name, shape in SHAPES.items():
        size = math.prod(shape)
        rows = shape[0] if len(shape) > 1 else 1
        b, a = torch.randn(rows, rank, generator=generator), torch.randn(rank, size // rows, generator=generator)
        parts[name] = (b @ a + noise * torch.randn(rows, size // rows, generator=generator)).view(shape)
    return parts


def flat(parts: dict[str, Tensor]) -> Tensor:
    return torch.cat([parts[name].flatten() for name in SHAPES])


def whole(vector: ByParameter) -> Tensor:
    return torch.cat([(p.dense() if isinstance(p, Factors) else p).flatten() for p in vector.parts.values()])


def stream(rank: int, noise: float = 0.0) -> list[tuple[Tensor, Tensor, float]]:
    """Pairs of both classes around means of a rank."""
    pairs = []
    for i in range(8):
        label = 1.0 if i % 2 else -1.0
        source, target = (flat(rows_of(rank, int(label) + 10 * k)) for k in (1, 2))
        extra = flat(rows_of(1, 100 + i))
        pairs.append((source + noise * extra, target - noise * extra, label))
    return pairs


def decoder_of(pairs: Sequence[tuple[Tensor, Tensor, float]]) -> Tensor:
    exact = ClosedFormSolver(SIZE)
    for pair in pairs:
        exact.observe(*pair)
    return exact.solutions()[0].decoder


def test_means_within_the_rank_are_exact() -> None:
    mine, pairs = solver(rank=4), stream(rank=2)
    for pair in pairs:
        mine.observe(*pair)
    (found,) = mine.solutions()
    expected = decoder_of(pairs)
    assert float((whole(found.decoder) - expected).norm() / expected.norm()) < 1e-5
    difference = pairs[1][0] - pairs[0][0]
    encoder = whole(found.encoder)
    assert float(torch.cosine_similarity(encoder, difference, dim=0)) > 1 - 1e-6
    assert float(encoder @ difference) == pytest.approx(2 * math.atanh(0.9), rel=1e-4)  # as far apart as ±0.9
    assert found.encoder_bias == 0


def test_what_is_cut_is_near_the_least_that_a_rank_allows() -> None:
    pairs = stream(rank=3, noise=0.3)
    expected = decoder_of(pairs)
    errors = {}
    for rank in (1, 3, 6):
        mine = solver(rank)
        for pair in pairs:
            mine.observe(*pair)
        start, best = 0, 0.0
        for shape in SHAPES.values():
            size = math.prod(shape)
            if len(shape) > 1:
                values = torch.linalg.svdvals(expected[start : start + size].view(shape[0], -1))
                best += float(values[rank:].square().sum())
            start += size
        errors[rank] = float((whole(mine.solutions()[0].decoder) - expected).square().sum()) + 1e-9
        assert errors[rank] < 3 * best + 1e-3
    assert errors[1] > errors[3] > errors[6]


@pytest.mark.parametrize("silent", [0, 3, 5])
def test_factors_and_whole_gradients_are_sketched_alike(silent: int) -> None:
    """Whether or not tokens without a gradient are left out."""
    sketching = Sketching(SHAPES, 3)
    generator = torch.Generator().manual_seed(0)
    for name, shape in SHAPES.items():
        if len(shape) < 2:
            continue
        part = Outer(
            torch.randn(2, 5, shape[0], generator=generator),
            torch.randn(2, 5, math.prod(shape[1:]), generator=generator),
            shape[0],
        )
        part.left[:, :silent] = 0
        sums = torch.zeros(2, sketching.size)
        sketching.add(sums[0], name, part)
        sketching.add(sums[1], name, part.dense().view(shape))
        torch.testing.assert_close(sums[0], sums[1], rtol=1e-4, atol=1e-3)
        assert sketching.square(sums[0]) == pytest.approx(float(part.dense().square().sum()), rel=0.5)


def test_no_place_is_used_twice_and_none_is_left() -> None:
    sketching = Sketching(SHAPES, 3)
    used = torch.zeros(sketching.size)
    for place in sketching.places.values():
        for where in (place.whole, place.y, place.z):
            if where is not None:
                used[where] += 1
    assert used.eq(1).all()
    assert sketching.size < SIZE
    assert {name for name, place in sketching.places.items() if place.whole is not None} == {"small", "vector"}


def test_processes_add_up_and_go_on_from_one_state() -> None:
    """What each has summed is a part of the sum; a checkpoint is all of it."""
    pairs = stream(rank=3, noise=0.3)
    alone, parts = solver(), [solver(), solver()]
    for i, pair in enumerate(pairs):
        alone.observe(*pair)
        parts[i // 2 % 2].observe(*pair)
    together = solver()
    together.sums = parts[0].sums + parts[1].sums
    together.counts = parts[0].counts + parts[1].counts
    expected = whole(alone.solutions()[0].decoder)
    assert float((whole(together.solutions()[0].decoder) - expected).norm() / expected.norm()) < 1e-4
    second = solver(shard=Shard(SIZE, rank=1, world=2))
    second.load_state_dict(alone.state_dict())
    assert not second.sums.any() and not second.counts.any()
    first = solver()
    first.load_state_dict(alone.state_dict())
    assert torch.equal(first.sums, alone.sums)


def test_neutral_rows_draw_the_decoder_to_zero_and_leave_the_encoder() -> None:
    pairs, plain, drawn = stream(rank=2), solver(rank=4), solver(rank=4)
    for source, target, label in pairs:
        plain.observe(source, target, label)
        drawn.observe(source, target, label)
        drawn.take(drawn.room(), 0.0, 3)
    one, other = plain.solutions()[0], drawn.solutions()[0]
    assert torch.equal(whole(one.encoder), whole(other.encoder))
    exact = ClosedFormSolver(SIZE)
    for source, target, label in pairs:
        exact.observe(source, target, label)
        for _ in range(3):
            exact.observe(source, torch.zeros(SIZE), 0.0)
    expected = exact.solutions()[0].decoder
    assert float((whole(other.decoder) - expected).norm() / expected.norm()) < 1e-4


def test_the_loss_is_about_that_of_whole_means() -> None:
    pairs = stream(rank=3, noise=0.5)
    mine, exact = solver(rank=8), ClosedFormSolver(SIZE)
    losses = [(float(mine.observe(*pair)), float(exact.observe(*pair))) for pair in pairs]
    assert losses[0] == (pytest.approx(1.0), pytest.approx(1.0))
    for one, other in losses:
        assert one == pytest.approx(other, rel=0.5, abs=0.02)


def test_nothing_but_zeros_has_no_direction() -> None:
    mine = solver()
    mine.observe(torch.zeros(SIZE), torch.zeros(SIZE), 1.0)
    (found,) = mine.solutions()
    assert not whole(found.encoder).any() and not whole(found.decoder).any()


@pytest.mark.parametrize("rank", [0, -1, 61, 1000])
def test_ranks_that_no_matrix_has(rank: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"rank: expected 1…60, the longest smaller side .* found {rank}\. Give a smaller"
    ):
        Sketching(SHAPES, rank)


def test_a_rank_above_the_smaller_side_of_some() -> None:
    mine, pairs = solver(rank=45), stream(rank=2)
    for pair in pairs:
        mine.observe(*pair)
    (found,) = mine.solutions()
    ranks = {name: part.rank for name, part in found.decoder.parts.items() if isinstance(part, Factors)}
    assert ranks == {"wide": 40, "tall": 40, "small": 4, "kernel": 45}
    expected = decoder_of(pairs)
    assert float((whole(found.decoder) - expected).norm() / expected.norm()) < 1e-5
