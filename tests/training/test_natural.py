"""Decoders by Kronecker factors: the formula, and how each sign's dampings are chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gradiend_hub import GradiendConfig
from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.errors import EditError
from gradiend_hub.evaluation import StrengthProbe
from gradiend_hub.evaluation.part import NotFiniteError
from gradiend_hub.gradients import Curvature, KroneckerFactors
from gradiend_hub.solvers import ByParameter, Solution
from gradiend_hub.training.natural import (
    Damping,
    Edits,
    Outcome,
    best_edits,
    common_effect,
    estimate,
    outcome,
    preconditioned,
)

Starts = Mapping[int, float | None]
ROWS, COLUMNS, LENGTH = 6, 9, 5


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def curvature(matrix: Tensor) -> Curvature:
    values, vectors = torch.linalg.eigh(matrix)
    return Curvature(values, vectors, 0.0, float(matrix.diagonal().mean()), matrix.diagonal())


S = (lambda root: root @ root.T)(random(ROWS, ROWS, seed=1).double())
A = (lambda root: root @ root.T)(random(COLUMNS, COLUMNS, seed=2).double())
F = random(LENGTH, seed=3).square().double()
FACTORS = KroneckerFactors({"matrix": curvature(S)}, {"matrix": curvature(A)}, {"vector": F, "other": S.flatten()}, 0)


def vector(seed: int, rank: int = 2) -> ByParameter:
    return ByParameter(
        {
            "matrix": Factors(random(ROWS, rank, seed=seed), random(rank, COLUMNS, seed=seed + 1)),
            "vector": random(LENGTH, seed=seed + 2),
            "other": Factors(random(ROWS, 1, seed=seed + 3), random(1, ROWS, seed=seed + 4)),
        }
    )


def whole(found: ByParameter) -> Tensor:
    return torch.cat([(p.dense() if isinstance(p, Factors) else p).flatten() for p in found.parts.values()])


@pytest.mark.parametrize("outputs", [0.1, 10.0, math.inf])
@pytest.mark.parametrize("inputs", [0.01, 1.0, math.inf])
def test_the_formula(outputs: float, inputs: float) -> None:
    """(S + λ_S)⁻¹ M (A + λ_A)⁻¹ up to the norm, and of the rank of M."""
    given = vector(10)
    found = preconditioned(given, FACTORS, Damping(outputs, inputs))
    assert found.norm() == pytest.approx(given.norm())
    matrix = given.parts["matrix"].dense().double()  # type: ignore[operator]
    if outputs < math.inf:
        matrix = torch.linalg.solve(S + outputs * S.diagonal().mean() * torch.eye(ROWS), matrix)
    if inputs < math.inf:
        matrix = torch.linalg.solve(A + inputs * A.diagonal().mean() * torch.eye(COLUMNS), matrix.T).T
    part = found.parts["matrix"]
    assert isinstance(part, Factors) and part.rank == 2
    similarity = torch.cosine_similarity(part.dense().double().flatten(), matrix.flatten(), dim=0)
    assert float(similarity) == pytest.approx(1, abs=1e-5)


def test_a_bias_is_as_a_column_of_a_matrix_whose_input_is_one() -> None:
    """Vectors and matrices stay in proportion where outputs are damped."""
    given, damping = vector(10), Damping(2.0, 3.0)
    found = preconditioned(given, FACTORS, damping)
    plain = given.parts["vector"].double() / ((F + 2.0 * F.mean()) * (1 + 3.0))  # type: ignore[union-attr]
    matrix = given.parts["matrix"].dense().double()  # type: ignore[operator]
    matrix = torch.linalg.solve(S + 2.0 * S.diagonal().mean() * torch.eye(ROWS), matrix)
    matrix = torch.linalg.solve(A + 3.0 * A.diagonal().mean() * torch.eye(COLUMNS), matrix.T).T
    scale = float(found.parts["matrix"].dense().double().norm() / matrix.norm())  # type: ignore[operator]
    torch.testing.assert_close(found.parts["vector"].double(), scale * plain, rtol=1e-4, atol=1e-6)  # type: ignore[union-attr]


def test_where_only_inputs_are_damped_all_of_the_edit_is_in_matrices() -> None:
    """A vector has no inputs."""
    found = preconditioned(vector(10), FACTORS, Damping(inputs=3.0)).parts
    assert not found["vector"].any() and found["matrix"].dense().any()  # type: ignore[union-attr, operator]


def test_diagonals_and_ranks() -> None:
    given = vector(10)
    found = preconditioned(given, FACTORS, Damping(1.0, 1.0, diagonal=True)).parts["matrix"]
    matrix = given.parts["matrix"].dense().double()  # type: ignore[operator]
    rows, columns = (d + d.mean() for d in (S.diagonal(), A.diagonal()))
    expected = matrix / rows[:, None] / columns
    assert isinstance(found, Factors)
    similarity = torch.cosine_similarity(found.dense().double().flatten(), expected.flatten(), dim=0)
    assert float(similarity) == pytest.approx(1, abs=1e-5)
    cut = preconditioned(given, FACTORS, Damping(1.0, 1.0, rank=1)).parts["matrix"]
    assert isinstance(cut, Factors) and cut.rank == 1
    assert torch.equal(whole(preconditioned(given, FACTORS, Damping())), whole(given))


@pytest.mark.parametrize("target", ["diff", "factual", "alternative"])
@pytest.mark.parametrize("source", ["diff", "factual", "alternative"])
def test_edits_and_solutions_say_the_same(source: str, target: str) -> None:
    """A decoder makes the edits that it was made of, at strengths ±1, whatever the unit."""
    config = GradiendConfig(feature_classes=["a", "b"], source=source, target=target, strength_unit=3.0)
    solution = Solution(vector(1), 0.0, vector(20), vector(30))
    edits = Edits.of(solution, config)
    again = edits.solution(solution, config)
    torch.testing.assert_close(whole(again.decoder), whole(solution.decoder), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole(again.decoder_bias), whole(solution.decoder_bias), rtol=1e-4, atol=1e-5)
    for sign, edit in ((1.0, edits.plus), (-1.0, edits.minus)):
        c_w, c_b = config.coefficients(sign)
        expected = (c_w * whole(solution.decoder) + c_b * whole(solution.decoder_bias)) / 3.0
        torch.testing.assert_close(whole(edit), expected, rtol=1e-4, atol=1e-5)
    assert max(part.rank for part in edits.solution(solution, config, 2).decoder.parts.values()
               if isinstance(part, Factors)) == 2  # fmt: skip


def test_a_solution_without_a_bias_makes_opposite_edits() -> None:
    config = GradiendConfig(feature_classes=["a", "b"], strength_unit=3.0)
    edits = Edits.of(Solution(vector(1), 0.0, vector(20)), config)
    assert torch.equal(whole(edits.plus), -whole(edits.minus))
    torch.testing.assert_close(whole(edits.plus), config.coefficients(1.0)[0] * whole(vector(20)) / 3.0)


@pytest.mark.parametrize("common", [True, False])
def test_each_sign_gets_what_is_best_for_it(common: bool) -> None:
    """At its own best dose, so that one unit serves both. Where no damping serves both, signs are measured apart."""
    edits, asked = Edits(vector(40), vector(50)), []
    effects = {(Damping(10.0, 10.0), 1): 0.6, (Damping(1.0, 1.0), 1): 0.9, (Damping(inputs=10.0), -1): 0.8}
    known = {whole(edits.preconditioned(FACTORS, d).plus).double().sum().item(): d for d in _candidates()}

    def measure(candidate: Edits, signs: Starts) -> Mapping[int, Outcome]:
        damping = known[whole(candidate.plus).double().sum().item()]
        asked.append((damping, *signs))
        return {sign: Outcome(effects.get((damping, sign), 0.5), 2.0 if sign > 0 else 4.0) for sign in signs}

    choice = best_edits(edits, FACTORS, measure, common=common)
    found, by_damping = choice.edits, choice.effects
    assert asked[0] == (Damping(), 1, -1) and len(asked) == len(set(asked))
    assert all(len(one) == 3 for one in asked) == common
    expected = (
        preconditioned(edits.plus, FACTORS, Damping(1.0, 1.0)),
        preconditioned(edits.minus, FACTORS, Damping(inputs=10.0)),
    )
    torch.testing.assert_close(whole(found.plus), 2.0 * whole(expected[0]))
    torch.testing.assert_close(whole(found.minus), 4.0 * whole(expected[1]))
    # .9 + .5, where others have .6 + .5 and .5 + .8; without it, what both were measured at
    assert choice.common == (Damping(1.0, 1.0) if common else Damping(10.0, 10.0))
    assert by_damping["1/1 +"] == 0.9 and by_damping["inf/10 -"] == 0.8 and by_damping["plain +"] == 0.5


def _candidates() -> list[Damping]:
    values = (10.0, 1.0, 0.1, math.inf)
    some = [Damping(a, b) for a in values for b in values]
    return [
        *some,
        *(Damping(v, v, rank=1) for v in values),
        *(Damping(v, v, diagonal=True) for v in values[:3]),
    ]


def test_the_plain_decoder_stays_where_nothing_is_better() -> None:
    edits = Edits(vector(40), vector(50))
    seen: list[int] = []

    def measure(_: Edits, signs: Starts) -> Mapping[int, Outcome]:
        seen.append(len(seen))
        return {sign: Outcome(1.0 - 0.01 * len(seen), 1.0) for sign in signs}

    found = best_edits(edits, FACTORS, measure).edits
    assert torch.equal(whole(found.plus), whole(edits.plus))
    assert torch.equal(whole(found.minus), whole(edits.minus))


def test_what_is_known_is_not_measured_again_and_doses_begin_where_damage_is_expected() -> None:
    edits, asked = Edits(vector(40), vector(50)), []

    def measure(candidate: Edits, starts: Starts) -> Mapping[int, Outcome]:
        asked.append((candidate, dict(starts)))
        return {sign: Outcome(0.5, 2.0) for sign in starts}

    plain = {1: Outcome(0.6, 0.3), -1: Outcome(0.6, 0.7)}
    choice = best_edits(edits, FACTORS, measure, plain)
    assert choice.effects["plain +"] == 0.6 and choice.rivals == {
        "plain": Outcome(1.2, 0.3), "natural": Outcome(1.2, 1.0), "natural, one for both signs": Outcome(1.2, 0.3),
    }  # fmt: skip
    first, starts = asked[0]
    for sign, of in ((1, "plus"), (-1, "minus")):  # ½·dᵀ(S ⊗ A)d is the same as at the plain one's dose
        before, now = (_second_order(getattr(one, of)) for one in (edits, first))
        assert starts[sign] is not None and starts[sign] ** 2 * now == pytest.approx(plain[sign].dose ** 2 * before)
    assert all(s is not None for _, one in asked for s in one.values())


def test_a_kind_whose_damage_is_misjudged_for_a_sign_is_corrected_for_the_other() -> None:
    """Each kind has a right dose, as a ratio to what follows from second-order damage; others do not inherit the error."""
    edits = Edits(vector(40), vector(50))
    right = {"": 1.0, "inputs": 9.0, "outputs": 0.25, "rank": 0.5, "diagonal": 2.0}
    kinds = {whole(getattr(edits.preconditioned(FACTORS, d), of)).double().sum().item(): d.kind
             for d in _candidates() for of in ("plus", "minus")}  # fmt: skip
    asked: list[tuple[str, int, float]] = []

    def measure(candidate: Edits, starts: Starts) -> Mapping[int, Outcome]:
        found = {}
        for sign, start in starts.items():
            one = candidate.of_sign(sign)
            kind, dose = kinds[whole(one).double().sum().item()], 3.0 / math.sqrt(_second_order(one))
            asked.append((kind, sign, 1.0 if start is None else start / (right[kind] * dose)))
            found[sign] = Outcome(0.5, right[kind] * dose)
        return found

    best_edits(edits, FACTORS, measure, common=False)
    assert {kind for kind, *_ in asked} == set(right)
    for kind, sign, off in asked:
        assert off == pytest.approx(1.0 if sign < 0 or not kind else 1 / right[kind], rel=1e-5)


def _second_order(of: ByParameter) -> float:
    matrix = of.parts["matrix"].dense().double()  # type: ignore[operator]
    of_matrix = torch.einsum("ij,ik,kl,jl->", matrix, S, matrix, A)
    other = S.mean() * of.parts["other"].dense().double().square().sum()  # type: ignore[operator]
    return 0.5 * float(of_matrix + other + (of.parts["vector"].double().square() * F).sum())  # type: ignore[union-attr]


def test_what_text_hardly_uses_does_not_get_the_edit() -> None:
    """A parameter whose measured sensitivity is rounding noise, or of which none was measured, is taken as a typical one."""
    noise = {"keys": torch.full((LENGTH,), 1e-17, dtype=torch.float64)}
    sides = {n: curvature(S * scale) for n, scale in (("matrix", 1.0), ("second", 2.0), ("unused", 1e-12))}
    columns = {n: curvature(A) for n in sides}
    raw = KroneckerFactors(sides, columns, {"vector": F, **noise}, 0)
    parts = {n: Factors(random(ROWS, 2, seed=i), random(2, COLUMNS, seed=i + 1)) for i, n in enumerate(sides)}
    given = ByParameter({**parts, "vector": random(LENGTH, seed=7), "keys": 1e-9 * random(LENGTH, seed=8)})
    found, unsafe = (preconditioned(given, of, Damping(10.0, 10.0)) for of in (raw.trusted(), raw))
    share = {n: float(part.norm() if isinstance(part, Tensor) else part.dense().norm()) / given.norm()
             for n, part in found.parts.items()}  # fmt: skip
    assert share["keys"] < 1e-6 and 0.1 < share["unused"] / share["matrix"] < 10
    assert float(unsafe.parts["matrix"].dense().norm()) / given.norm() < 1e-6  # type: ignore[operator]
    same = KroneckerFactors({"matrix": sides["matrix"]}, {"matrix": columns["matrix"]}, {"vector": F}, 0)
    assert torch.equal(whole(preconditioned(vector(1), same.trusted(), Damping(1.0, 1.0))),
                       whole(preconditioned(vector(1), same, Damping(1.0, 1.0))))  # fmt: skip


def test_without_a_measurement() -> None:
    edits = Edits(vector(40), vector(50))
    choice = best_edits(edits, FACTORS, None)
    found = choice.edits
    assert choice.effects == {}
    assert torch.equal(whole(found.plus), whole(preconditioned(edits.plus, FACTORS, Damping(10.0, 10.0))))


@dataclass
class Probe:
    """As much of a `StrengthProbe` as a search for a dose needs: damage scale·dose², effect of the dose itself."""

    scale: float
    broken_from: float = math.inf
    minus: float = 1.0
    """Damage of negative doses, beside that of positive ones."""

    def __post_init__(self) -> None:
        self.asked: list[float] = []
        receipt = SimpleNamespace(relative_norm=1 / 64)
        config = SimpleNamespace(strength_unit=1.0)
        self.model = SimpleNamespace(active_peft_config=config, receipt=receipt, strength_at=lambda _: nullcontext())

    def summary(self, dose: float) -> Any:
        self.asked.append(dose)
        if abs(dose) >= self.broken_from:
            raise NotFiniteError("NaN")
        effect = lambda _sign: SimpleNamespace(mean=abs(dose))  # noqa: E731
        scale = self.scale * (self.minus if dose < 0 else 1.0)
        return SimpleNamespace(expected_damage=scale * dose**2, effect=effect)

    damage, dose_of = StrengthProbe.damage, StrengthProbe.dose_of

    def measure_dose(self, dose: float) -> float:
        return dose

    def effect(self, up: float, down: float) -> float:
        assert up == -down
        return up


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.01, 0.3, 50.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_dose_near_the_allowed_damage_is_found_in_few_readings(scale: float, sign: int) -> None:
    probe: Any = Probe(scale)
    found = outcome(probe, sign, 0.99)
    assert 0.7 * 0.01 <= scale * found.dose**2 <= 0.01
    assert found.effect == pytest.approx(found.dose)
    assert all(dose * sign > 0 for dose in probe.asked)
    assert len(set(probe.asked)) <= 8


def test_a_dose_below_what_the_model_cannot_compute() -> None:
    probe: Any = Probe(1e-6, broken_from=3.0)
    assert 2.0 < outcome(probe, 1, 0.99).dose < 3.0


@pytest.mark.parametrize("minus", [0.01, 1.0, 1.2, 100.0])
def test_both_signs_are_measured_at_a_dose_that_both_bear(minus: float) -> None:
    dose = common_effect(Probe(0.01, minus=minus), 0.99)  # type: ignore[arg-type]
    assert 0.7 * 0.01 <= 0.01 * max(1.0, minus) * dose**2 <= 0.01


def test_no_dose_is_safe() -> None:
    with pytest.raises(EditError, match="lowers the quality under 99"):
        outcome(Probe(math.inf), 1, 0.99)  # type: ignore[arg-type]


@pytest.mark.parametrize("power", [0.4, 1.0])
@pytest.mark.parametrize("start", [None, 0.02, 0.9, 30.0])
def test_an_estimate_is_near_what_the_search_finds(start: float | None, power: float) -> None:
    """Damage 0.01·dose², log-odds of the effect rising by dose^power from −2: at 87.5 % of the damage, dose .935."""
    probe: Any = Probe(0.01)
    read = probe.summary

    def summary(dose: float) -> Any:
        found = read(dose)
        chance = 1 / (1 + math.exp(2 - abs(dose) ** power))
        found.effect = lambda _sign: SimpleNamespace(mean=chance)
        return found

    probe.summary = summary
    found = estimate(probe, 1, 0.99, start)
    assert found.dose == pytest.approx(math.sqrt(0.875))
    assert found.effect == pytest.approx(1 / (1 + math.exp(2 - found.dose**power)), abs=0.01)
    assert len({dose for dose in probe.asked if dose}) <= (3 if start in (None, 0.9) else 4)


def test_an_estimate_below_what_the_model_cannot_compute_and_where_no_dose_is_safe() -> None:
    probe: Any = Probe(1e-6, broken_from=3.0)
    assert 1.5 < estimate(probe, 1, 0.99).dose < 3.0
    with pytest.raises(EditError, match="lowers the quality under 99"):
        estimate(Probe(math.inf), 1, 0.99)  # type: ignore[arg-type]


@pytest.mark.parametrize("start", [None, 0.25, 0.93, 4.0, 40.0])
def test_an_estimate_where_damage_grows_faster_than_the_square(start: float | None) -> None:
    """As at a cliff: a dose that is allowed is found, and no larger one is taken for it."""
    probe: Any = Probe(0.01)
    read = probe.summary

    def summary(dose: float) -> Any:
        found = read(dose)
        found.expected_damage = 0.01 * abs(dose) ** 6
        found.effect = lambda _sign: SimpleNamespace(mean=1 / (1 + math.exp(2 - abs(dose))))
        return found

    probe.summary = summary
    found = estimate(probe, 1, 0.99, start)
    assert 0.7 < found.dose < 1.2  # what is near enough to the damage is taken to grow as the square from there
    assert found.effect == pytest.approx(1 / (1 + math.exp(2 - found.dose)), abs=0.02)


def test_an_embedding_whose_sides_have_units_of_their_own_is_trusted() -> None:
    """Its rows are counts of tokens, its columns derivatives; those of other matrices are derivatives and inputs."""
    counts = torch.full((ROWS,), 1e-4, dtype=torch.float64)
    lookup = Curvature(counts[:0], torch.zeros(ROWS, 0, dtype=torch.float64), 0.0, 1e-4, counts)
    raw = KroneckerFactors(
        {"embedding": lookup, "matrix": curvature(1e-5 * S), "second": curvature(1e-5 * S)},
        {"embedding": curvature(1e-5 * A), "matrix": curvature(A), "second": curvature(A)}, {}, 0,
    )  # fmt: skip
    assert raw.trusted().outputs["embedding"] is lookup
    part = Factors(random(ROWS, 2, seed=1), random(2, COLUMNS, seed=2))
    expected = 0.5 * torch.einsum("i,ij,jl,il->", counts, part.dense().double(), 1e-5 * A, part.dense().double())
    assert raw.damage({"embedding": part}) == pytest.approx(float(expected))
