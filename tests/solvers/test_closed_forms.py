"""The solvers without an optimizer against scikit-learn and numpy, and their bookkeeping."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, Ridge
from torch import Tensor

from gradiend_hub.errors import ConfigError
from gradiend_hub.solvers import SOLVERS, AutoencoderSolver, ClosedFormSolver, RidgeSolver, Solver, make_solver
from gradiend_hub.solvers.ridge import PENALTIES, dual_ridge
from tests.solvers.test_solvers import SIZE, correlation, stream

Triple = tuple[Tensor, Tensor, float]


def with_neutral(pairs: list[Triple], every: int = 3, seed: int = 5) -> list[Triple]:
    """The stream with a neutral row after every few pairs: another source gradient, no target."""
    generator = torch.Generator().manual_seed(seed)
    out: list[Triple] = []
    for number, pair in enumerate(pairs):
        out.append(pair)
        if number % every == 0:
            out.append((2 * torch.randn(SIZE, generator=generator), torch.zeros(SIZE), 0.0))
    return out


def fed(solver: Solver, pairs: list[Triple]) -> list[float]:
    return [float(solver.observe(*pair)) for pair in pairs]


def matrix(pairs: list[Triple]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    s, t, labels = zip(*pairs, strict=True)
    return torch.stack(s).double().numpy(), torch.stack(t).double().numpy(), np.array(labels)


# -------------------------------------------------------------------------------------------------------- closed form


def test_class_means_are_as_far_apart_as_their_levels() -> None:
    pairs = stream(31)
    solver = ClosedFormSolver(SIZE)
    fed(solver, pairs)
    (solution,) = solver.solutions()
    s, _, labels = matrix(pairs)
    means = [torch.from_numpy(s[labels == sign].mean(0)).float() for sign in (1, -1)]
    z = [math.atanh(solution.encode(mean)) for mean in means]
    assert z[0] - z[1] == pytest.approx(2 * math.atanh(0.9), abs=1e-4)
    assert solution.encode(torch.zeros(SIZE)) == 0  # what has no gradient has no feature
    classes = [s[labels == sign] for sign in (1, -1)]
    variance = sum(np.square(rows - rows.mean(0)).sum(0) for rows in classes)
    expected = (classes[0].mean(0) - classes[1].mean(0)) / (variance + 0.1 * variance.mean())
    cosine = torch.cosine_similarity(solution.encoder.double(), torch.from_numpy(expected), dim=0)
    assert float(cosine) == pytest.approx(1, abs=1e-6)


def test_closed_form_decoder_is_least_squares_on_the_label() -> None:
    pairs = with_neutral(stream(25))
    solver = ClosedFormSolver(SIZE)
    fed(solver, pairs)
    (solution,) = solver.solutions()
    _, t, labels = matrix(pairs)
    expected = LinearRegression().fit(0.9 * labels[:, None], t)
    np.testing.assert_allclose(solution.decoder.numpy(), expected.coef_[:, 0], atol=1e-4)
    np.testing.assert_allclose(solution.decoder_bias.numpy(), expected.intercept_, atol=1e-4)


@pytest.mark.parametrize("name", ["closed_form", "ridge"])
@pytest.mark.parametrize("scale", [1e-7, 1e4])
def test_scale_of_the_gradients_does_not_matter(name: str, scale: float) -> None:
    plain, scaled = (make_solver(name, SIZE) for _ in range(2))
    fed(plain, stream(40))
    fed(scaled, stream(40, scale=scale))
    (expected,), (found,) = plain.solutions(), scaled.solutions()
    torch.testing.assert_close(found.encoder * scale, expected.encoder, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.decoder / scale, expected.decoder, rtol=1e-3, atol=1e-4)
    assert found.encoder_bias == expected.encoder_bias == 0


@pytest.mark.parametrize("name", ["closed_form", "ridge"])
def test_the_loss_is_that_of_the_means_so_far(name: str) -> None:
    solver = make_solver(name, SIZE)
    assert not solver.needs_optimizer and not list(solver.parameters())
    pairs = stream(9)
    losses = fed(solver, pairs)
    assert losses[:2] == [1, 1]  # of predicting nothing
    targets = [t.numpy() for _, t, _ in pairs]
    expected = np.square(np.mean(targets[:8:2], 0) - targets[8]).sum() / np.square(targets[8]).sum()
    assert losses[8] == pytest.approx(float(expected), rel=1e-4)
    assert float(solver.observe(pairs[0][0], torch.zeros(SIZE), 0.0)) == 0


# -------------------------------------------------------------------------------------------------------------- ridge


@pytest.mark.parametrize("neutral", [False, True])
def test_ridge_is_sklearns_with_the_best_left_out_error(neutral: bool) -> None:
    """λ is the one of the grid with the least error of predicting each vector from all others, refitted one by one."""
    pairs = with_neutral(stream(14)) if neutral else stream(14)
    s, _, labels = matrix(pairs)
    unit = float(np.square(s).sum(1).mean())

    def ridge(penalty: float) -> Ridge:
        return Ridge(alpha=penalty * unit, fit_intercept=False, solver="cholesky")

    def left_out(penalty: float) -> float:
        errors = []
        for i in range(len(s)):
            rest = np.arange(len(s)) != i
            model = ridge(penalty).fit(s[rest], labels[rest])
            errors.append(float(model.predict(s[i : i + 1])[0]) - labels[i])
        return float(np.square(errors).sum())

    best = min(PENALTIES.tolist(), key=left_out)
    expected = ridge(best).fit(s, labels)
    solver = RidgeSolver(SIZE)
    fed(solver, pairs)
    (solution,) = solver.solutions()
    gain = math.atanh(0.9)
    np.testing.assert_allclose(solution.encoder.numpy(), gain * expected.coef_, atol=2e-5)
    assert solution.encoder_bias == 0


def test_weighted_vectors_are_repeated_vectors() -> None:
    s, _, labels = matrix(stream(8))
    counts = torch.tensor([1.0, 2, 1, 3, 1, 1, 2, 1], dtype=torch.float64)
    gram = torch.from_numpy(s @ s.T)
    coefficients, fitted = dual_ridge(gram, torch.from_numpy(labels), counts)
    repeated = np.repeat(np.arange(8), counts.int().numpy())
    unit = float(np.square(s[repeated]).sum() / 8)  # the mean diagonal of 8 places
    found = coefficients.numpy() @ s
    candidates = [
        Ridge(alpha=float(p) * unit, fit_intercept=False, solver="cholesky").fit(s[repeated], labels[repeated])
        for p in PENALTIES.tolist()
    ]
    closest = min(candidates, key=lambda model: float(np.abs(model.coef_ - found).max()))
    np.testing.assert_allclose(found, closest.coef_, atol=1e-8)
    np.testing.assert_allclose(fitted.numpy(), closest.predict(s), atol=1e-8)


def test_a_full_bank_averages_pairs_of_equal_label() -> None:
    pairs = with_neutral(stream(40))
    solver = RidgeSolver(SIZE, capacity=9)
    fed(solver, pairs)
    used = solver.used
    assert used <= 9 and float(solver.counts.sum()) == len(pairs)
    s, _, labels = matrix(pairs)
    bank, counts = solver.bank[:used].double().numpy(), solver.counts[:used].numpy()
    for sign in (1, -1, 0):  # averages of averages, weighted, have the mean of all
        of = solver.labels[:used].numpy() == sign
        assert counts[of].sum() == (labels == sign).sum()
        np.testing.assert_allclose(counts[of] @ bank[of] / counts[of].sum(), s[labels == sign].mean(0), atol=1e-4)
    np.testing.assert_allclose(solver.gram[:used, :used].numpy(), bank @ bank.T, rtol=1e-4, atol=1e-2)
    (solution,) = solver.solutions()
    assert correlation(solution, stream(160)[120:]) > 0.98


def test_a_bank_in_a_file_is_the_same_and_leaves_nothing(tmp_path: Path) -> None:
    in_memory, on_disk = make_solver("ridge", SIZE), make_solver("ridge", SIZE, folder=tmp_path)
    for solver in (in_memory, on_disk):
        fed(solver, stream(12))
    (expected,), (found,) = in_memory.solutions(), on_disk.solutions()
    assert torch.equal(found.encoder, expected.encoder)
    assert not list(tmp_path.iterdir())


def test_neutral_rows_quieten_ridge() -> None:
    """A component that neutral rows share with one class does not count as the class."""
    generator = torch.Generator().manual_seed(1)
    noise = 4 * torch.randn(SIZE, generator=generator)

    def rows(seed: int) -> list[Triple]:
        pairs = stream(40, seed=0)
        g = torch.Generator().manual_seed(seed)
        mixed: list[Triple] = []
        for s, t, label in pairs:
            strength = float(torch.randn((), generator=g))
            mixed.append((s + (label > 0) * noise, t, label))
            mixed.append((strength * noise + torch.randn(SIZE, generator=g), torch.zeros(SIZE), 0.0))
        return mixed

    def neutral_reading(pairs: list[Triple]) -> float:
        solver = RidgeSolver(SIZE, capacity=128)
        fed(solver, pairs)
        (solution,) = solver.solutions()
        return sum(abs(solution.encode(s)) for s, _, label in rows(2) if label == 0) / 40

    assert neutral_reading(rows(1)) < 0.5 * neutral_reading([pair for pair in rows(1) if pair[2] != 0])


# --------------------------------------------------------------------------------------------------------- all solvers


@pytest.mark.parametrize("name", SOLVERS)
def test_an_interrupted_stream_ends_in_the_same_bits(name: str) -> None:
    pairs = with_neutral(stream(70))  # long enough for a full bank
    through, stopped, resumed = (make_solver(name, SIZE) for _ in range(3))
    optimizers = {solver: _optimizer(solver) for solver in (through, stopped, resumed)}

    def feed(solver: Solver, part: list[Triple]) -> None:
        for pair in part:
            solver.observe(*pair)
            if (optimizer := optimizers[solver]) is not None:
                optimizer.step()

    feed(through, pairs)
    feed(stopped, pairs[:50])
    resumed.load_state_dict(stopped.state_dict())
    if (old := optimizers[stopped]) is not None and (new := optimizers[resumed]) is not None:
        new.load_state_dict(old.state_dict())
    feed(resumed, pairs[50:])
    (expected,), (found,) = through.solutions(), resumed.solutions()
    for part in ("encoder", "decoder", "decoder_bias"):
        assert torch.equal(getattr(found, part), getattr(expected, part))
    assert found.encoder_bias == expected.encoder_bias


def _optimizer(solver: Solver) -> torch.optim.Optimizer | None:
    return torch.optim.AdamW(solver.parameters(), lr=0.1) if solver.needs_optimizer else None


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("label", [None, 1.0, 0.0])
def test_too_little_to_learn_from_gives_a_finite_solution(name: str, label: float | None) -> None:
    solver = make_solver(name, SIZE)
    if label is not None:
        solver.observe(torch.ones(SIZE), torch.ones(SIZE) * label, label)
    (solution,) = solver.solutions()
    assert all(bool(v.isfinite().all()) for v in (solution.encoder, solution.decoder, solution.decoder_bias))


def test_neutral_rows_do_not_shrink_the_autoencoders_target() -> None:
    plain, mixed = AutoencoderSolver(SIZE), AutoencoderSolver(SIZE)
    pairs = stream(20)
    fed(plain, pairs)
    fed(mixed, [(torch.ones(SIZE), torch.zeros(SIZE), 0.0), *pairs])
    assert torch.equal(plain.target_sums, mixed.target_sums)
    assert torch.equal(plain.decoder, mixed.decoder)  # both start from the first target that there is


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match=r"Unknown solver 'adam'.*autoencoder"):
        make_solver("adam", SIZE)
    with pytest.raises(ConfigError, match="'ridge' has no seeds"):
        make_solver("ridge", SIZE, seeds=(0, 1))
    with pytest.raises(ConfigError, match="at least 6"):
        RidgeSolver(SIZE, capacity=3)
    with pytest.raises(ConfigError, match="one positive learning-rate factor per seed"):
        make_solver("autoencoder", SIZE, seeds=(0, 1), rates=(1.0,))
