"""The solver's closed forms against autograd, its invariances, and the gain of a solution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gradiend_hub.solvers import SOLVERS, AutoencoderSolver, Solution, calibrated, make_solver

SIZE = 200


def stream(steps: int, *, scale: float = 1.0, size: int = SIZE, seed: int = 0) -> list[tuple[Tensor, Tensor, float]]:
    """Gradient pairs of two classes in turn: a shared, heavy-tailed part, the class's part, and noise."""
    generator = torch.Generator().manual_seed(seed)
    shared, feature = torch.randn(2, size, generator=generator).pow(3)
    pairs = []
    for step in range(steps):
        label = 1.0 if step % 2 else -1.0
        noise = torch.randn(2, size, generator=generator)
        s = shared + label * feature + noise[0]
        t = 0.3 * shared - 2 * label * feature + noise[1]
        pairs.append((s * scale, t * scale, label))
    return pairs


def trained(solver: AutoencoderSolver, pairs: list[tuple[Tensor, Tensor, float]], rate: float = 0.1) -> list[Tensor]:
    """AdamW with a linearly falling rate, as the trainer has it; losses [k] by step."""
    optimizer = torch.optim.AdamW(solver.parameters(), lr=rate, weight_decay=0.0)
    losses = []
    for step, (s, t, label) in enumerate(pairs):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / len(pairs))
        losses.append(solver.observe(s, t, label))
        optimizer.step()
    return losses


def correlation(solution: Solution, pairs: list[tuple[Tensor, Tensor, float]]) -> float:
    h = [solution.encode(s) for s, _, _ in pairs]
    return float(np.corrcoef(h, [label for *_, label in pairs])[0, 1])


def written_loss(u_e: Tensor, v_e: Tensor, u_d: Tensor, u_b: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """The loss in the module's docstring, of one run; s and t are divided by their scales already."""
    n = len(s)
    h = torch.tanh((u_e * s).sum() / n + 0.01 * v_e)
    return (u_d * h + u_b - t).square().sum() / (2 * n)


def test_derivatives_are_those_of_the_written_loss() -> None:
    """Derivatives of vectors are handed over times n."""
    solver = AutoencoderSolver(SIZE, seeds=(0, 1, 5))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in solver.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    sums = torch.zeros(2, dtype=torch.float64)
    for step, (s, t, label) in enumerate(stream(3), start=1):
        losses = solver.observe(s, t, label)
        sums += torch.stack([s.abs().mean().double(), t.abs().mean().double()])
        rho_s, rho_t = (sums / step).tolist()
        for k in range(3):
            names = ("encoder", "encoder_bias", "decoder", "decoder_bias")
            leaves = [getattr(solver, name)[k].detach().double().requires_grad_() for name in names]
            loss = written_loss(*leaves, s.double() / rho_s, t.double() / rho_t)
            # reported is ‖t̂ − t‖²/‖t‖², so that 1 is the error of predicting nothing
            assert float(losses[k]) == pytest.approx(2 * SIZE * loss.item() * rho_t**2 / float(t @ t), rel=1e-5)
            for name, expected in zip(names, torch.autograd.grad(loss, leaves), strict=True):
                times = 1 if name == "encoder_bias" else SIZE
                got = getattr(solver, name).grad[k].double()
                torch.testing.assert_close(got, expected * times, rtol=1e-4, atol=1e-5)


def test_solution_is_the_state_in_raw_units() -> None:
    """h and t̂ of raw gradients are those of the normalised ones."""
    solver = AutoencoderSolver(SIZE, seeds=(2,))
    pairs = stream(7)
    trained(solver, pairs)
    s, t, _ = pairs[3]
    rho_s = sum(float(s.abs().mean()) for s, *_ in pairs) / 7
    rho_t = sum(float(t.abs().mean()) for _, t, _ in pairs) / 7
    (solution,) = solver.solutions()
    with torch.no_grad():
        h = math.tanh(float((solver.encoder[0] * s).sum()) / SIZE / rho_s + 0.01 * float(solver.encoder_bias[0]))
        predicted = (solver.decoder[0] * h + solver.decoder_bias[0]) * rho_t
        loss = written_loss(
            solver.encoder[0], solver.encoder_bias[0], solver.decoder[0], solver.decoder_bias[0], s / rho_s, t / rho_t
        )
    assert solution.encode(s) == pytest.approx(h, rel=1e-5)
    torch.testing.assert_close(solution.decode(h), predicted)
    assert float((predicted - t).square().mean()) / rho_t**2 / 2 == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize("scale", [1e-6, 1e4])
def test_scale_of_the_gradients_does_not_matter(scale: float) -> None:
    solutions = []
    for factor in (1.0, scale):
        solver = AutoencoderSolver(SIZE, seeds=(0,))
        trained(solver, stream(60, scale=factor))
        solutions += solver.solutions()
    plain, scaled = solutions
    assert scaled.encoder_bias == pytest.approx(plain.encoder_bias, rel=1e-3)
    torch.testing.assert_close(scaled.encoder * scale, plain.encoder, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(scaled.decoder / scale, plain.decoder, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(scaled.decoder_bias / scale, plain.decoder_bias, rtol=1e-3, atol=1e-4)


def test_runs_on_one_stream_are_single_runs() -> None:
    pairs = stream(40)
    together = AutoencoderSolver(SIZE, seeds=(0, 1, 2))
    losses = torch.stack(trained(together, pairs))
    for seed, found in enumerate(together.solutions()):
        alone = AutoencoderSolver(SIZE, seeds=(seed,))
        single_losses = torch.stack(trained(alone, pairs))
        (expected,) = alone.solutions()
        torch.testing.assert_close(losses[:, seed], single_losses[:, 0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.encoder, expected.encoder, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found.decoder, expected.decoder, rtol=1e-3, atol=1e-4)
    first, second, _ = together.solutions()
    assert not torch.equal(first.encoder, second.encoder)


def test_rates_are_learning_rates_of_their_own() -> None:
    """A run of rate f ends where a single run ends whose optimizer has f times the learning rate."""
    pairs = stream(50)
    together = AutoencoderSolver(SIZE, seeds=(0, 0, 3), rates=(1.0, 0.2, 3.0))
    trained(together, pairs, 0.1)
    for found, seed, rate in zip(together.solutions(), (0, 0, 3), (1.0, 0.2, 3.0), strict=True):
        alone = AutoencoderSolver(SIZE, seeds=(seed,))
        trained(alone, pairs, 0.1 * rate)
        (expected,) = alone.solutions()
        for part in ("encoder", "decoder", "decoder_bias"):
            torch.testing.assert_close(getattr(found, part), getattr(expected, part), rtol=1e-3, atol=1e-4)
        assert found.encoder_bias == pytest.approx(expected.encoder_bias, rel=1e-3)


def test_long_vectors_are_worked_on_in_parts() -> None:
    """Chunks change nothing but the order of sums."""
    size = 140_001
    pairs = stream(4, size=size)
    whole, parts = AutoencoderSolver(size, seeds=(0, 1)), AutoencoderSolver(size, seeds=(0, 1))
    whole._chunks = lambda *tensors: iter([tensors])  # type: ignore[method-assign]
    for solver in (whole, parts):
        losses = trained(solver, pairs)
    assert len(list(parts._chunks(parts.decoder))) > 1
    for found, expected in zip(parts.solutions(), whole.solutions(), strict=True):
        torch.testing.assert_close(found.encoder, expected.encoder, rtol=1e-3, atol=1e-8)
        torch.testing.assert_close(found.decoder, expected.decoder, rtol=1e-3, atol=1e-4)
    assert bool(torch.stack(losses).isfinite().all())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rate", [0.03, 0.1, 0.3])
def test_converges_over_a_range_of_learning_rates(rate: float, seed: int) -> None:
    solver = AutoencoderSolver(2000, seeds=(seed,))
    losses = trained(solver, stream(120, size=2000), rate)
    (solution,) = solver.solutions()
    held_out = stream(160, size=2000)[120:]
    assert abs(correlation(solution, held_out)) > 0.98
    assert float(torch.cat(losses[-10:]).mean()) < 0.75 * float(torch.cat(losses[:10]).mean())
    assert float(torch.cat(losses[-10:]).mean()) < 0.8  # of predicting nothing
    decoded = solution.decode(solution.encode(held_out[1][0]))
    assert float(torch.cosine_similarity(decoded, held_out[1][1], dim=0)) > 0.6


def test_an_untrained_solver_has_a_finite_solution() -> None:
    (solution,) = AutoencoderSolver(SIZE).solutions()
    assert all(bool(v.isfinite().all()) for v in (solution.encoder, solution.decoder, solution.decoder_bias))


def solution_and_rows(seed: int = 0) -> tuple[Solution, Tensor, Tensor, Tensor]:
    """A solution, source gradients [N, n], their pre-activations [N] and labels [N]."""
    generator = torch.Generator().manual_seed(seed)
    encoder, decoder, bias, feature = torch.randn(4, SIZE, generator=generator)
    labels = torch.tensor([1.0, -1.0] * 20)
    rows = torch.randn(40, SIZE, generator=generator) + labels[:, None] * feature
    solution = Solution(encoder * 1e-3 + feature * 1e-3, 0.01, decoder, bias)
    return solution, rows, rows @ solution.encoder + solution.encoder_bias, labels


@pytest.mark.parametrize("gain", [1.0, 1e-6, 300.0])
@pytest.mark.parametrize("flipped", [False, True])
def test_calibrated_orientation_and_level(gain: float, flipped: bool) -> None:
    solution, rows, _, labels = solution_and_rows()
    start = solution.with_gain(-gain if flipped else gain)
    found = calibrated(start, rows @ start.encoder + start.encoder_bias, labels)
    h = torch.tensor([found.encode(row) for row in rows])
    assert float(h.abs().median()) == pytest.approx(0.9, abs=0.01)
    assert float(h[labels > 0].mean()) > 0 > float(h[labels < 0].mean())
    assert torch.equal(found.decoder_bias, solution.decoder_bias)  # b_d stays, whatever is flipped


def test_calibrated_predicts_the_same_target_for_the_typical_feature_value() -> None:
    solution, rows, z, labels = solution_and_rows()
    found = calibrated(solution, z, labels, level=0.8)
    typical = math.tanh(float(np.median(z.abs().double().numpy())))
    torch.testing.assert_close(found.decode(0.8), solution.decode(typical), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.decode(-0.8), solution.decode(-typical), rtol=1e-3, atol=1e-3)
    turned = calibrated(solution, z, -labels, level=0.8)
    torch.testing.assert_close(turned.decode(0.8), found.decode(-0.8), rtol=1e-5, atol=1e-5)
    assert turned.encode(rows[0]) == pytest.approx(-found.encode(rows[0]))


def test_a_flip_does_not_change_what_is_decoded() -> None:
    solution, rows, _, _ = solution_and_rows()
    flipped = solution.with_gain(-1.0)
    for row in rows[:5]:
        assert flipped.encode(row) == pytest.approx(-solution.encode(row))
        torch.testing.assert_close(flipped.decode(flipped.encode(row)), solution.decode(solution.encode(row)))


def test_calibrated_of_an_encoder_that_reads_nothing() -> None:
    solution, _, z, labels = solution_and_rows()
    assert calibrated(solution, torch.zeros_like(z), labels) is solution


@pytest.mark.parametrize("outlier", [50.0, 1e-30])
def test_extreme_rows_do_not_set_the_gain(outlier: float) -> None:
    """Neither huge rows nor vanishing ones: all others keep their degrees, where a mean would saturate or silence them."""
    solution, _, _, labels = solution_and_rows()
    z = torch.linspace(0.5e-5, 1.5e-5, 40) * labels
    z[:15] = outlier * labels[:15]
    found = calibrated(solution, z, labels)
    h = torch.tanh(z[15:] * found.encoder[0] / solution.encoder[0]).abs()
    assert 0.5 < float(h.min()) < float(h.max()) < 0.999


def test_the_orientation_is_that_of_most_rows() -> None:
    solution, _, _, labels = solution_and_rows()
    z = 1e-3 * labels
    z[:3] = -1e3 * labels[:3]
    assert float(calibrated(solution, z, labels).encoder[0] / solution.encoder[0]) > 0


def test_a_quieter_reading_has_the_same_order_and_the_same_decoder() -> None:
    solution, rows, z, labels = solution_and_rows()
    loud = calibrated(solution, z, labels)
    quiet = loud.quieter(0.1)
    h = torch.tensor([[each.encode(row) for row in rows] for each in (loud, quiet)])
    assert torch.equal(h[0].argsort(), h[1].argsort())
    assert float(h[1].abs().median()) == pytest.approx(0.1, abs=0.01)
    assert torch.equal(quiet.decoder, loud.decoder) and torch.equal(quiet.decoder_bias, loud.decoder_bias)


@pytest.mark.parametrize("name", SOLVERS)
def test_coordinates_without_a_gradient_get_exactly_nothing(name: str) -> None:
    """Not the numbers that they were drawn as; of an optimizer's weight decay, too."""
    solver = make_solver(name, SIZE)
    silent, only_source = torch.arange(0, SIZE, 3), torch.arange(1, SIZE, 3)
    optimizer = torch.optim.AdamW(solver.parameters(), lr=0.1, weight_decay=0.01) if solver.needs_optimizer else None
    for s, t, label in with_identity(stream(30)):
        s[silent], t[silent], t[only_source] = 0.0, 0.0, 0.0
        solver.observe(s, t, label)
        if optimizer is not None:
            optimizer.step()
    again = make_solver(name, SIZE)
    again.load_state_dict(solver.whole_state())
    for found in (*solver.solutions(), *again.solutions()):
        assert not found.encoder[silent].any() and bool(found.encoder[only_source].all())
        for vector in (found.decoder, found.decoder_bias):
            assert not vector[silent].any() and not vector[only_source].any() and bool(vector[2::3].all())


def with_identity(pairs: list[tuple[Tensor, Tensor, float]]) -> list[tuple[Tensor, Tensor, float]]:
    return [*pairs, (pairs[0][0].clone(), torch.zeros(SIZE), 0.0)]
