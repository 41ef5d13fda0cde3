"""Decoders that spare what text needs: (S + λ_S)⁻¹ M (A + λ_A)⁻¹, with Kronecker factors of the base model's information.

Among edits of equal damage to second order, ½·tr(Δᵀ S Δ A), the one of most effect on M. It keeps the rank of M. The best
dampings differ by model, by side and by sign, so they are chosen by measurement, among them the plain decoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.errors import EditError
from gradiend_hub.evaluation import StrengthProbe
from gradiend_hub.gradients import KroneckerFactors
from gradiend_hub.solvers import ByParameter, Solution


@dataclass(frozen=True)
class Damping:
    """Dampings in units of the mean diagonals of S and A; infinite: the side is left as it is.

    A vector, such as a bias, has a side of outputs alone. Where only inputs are damped, it gets nothing: all of the edit is
    in matrices then, which is the best there is on the bundled masked model, and a LoRA holds it whole.

    Attributes:
        outputs, inputs: λ_S and λ_A.
        diagonal: take the diagonals of S and A alone.
        rank: to which M is cut before; `None`: as it is.
    """

    outputs: float = math.inf
    inputs: float = math.inf
    diagonal: bool = False
    rank: int | None = None

    @property
    def kind(self) -> str:
        """Name what sets it apart from others, whose damage the factors rate otherwise; empty for both sides alike."""
        outputs, inputs = math.isinf(self.outputs), math.isinf(self.inputs)
        side = "" if outputs == inputs else "inputs" if outputs else "outputs"
        return side + "diagonal" * self.diagonal + "rank" * (self.rank is not None)

    @property
    def is_plain(self) -> bool:
        """Return whether the decoder stays as it is, its rank aside."""
        return math.isinf(self.outputs) and math.isinf(self.inputs)

    def __str__(self) -> str:
        kind = "plain" if self.is_plain else f"{'diagonal ' * self.diagonal}{self.outputs:g}/{self.inputs:g}"
        return kind + ("" if self.rank is None else f", rank {self.rank}")


def preconditioned(vector: ByParameter, factors: KroneckerFactors, damping: Damping) -> ByParameter:
    """Divide a decoder by damped Kronecker factors, and rescale it so that its norm stays."""
    parts = {name: _part(name, part, factors, damping) for name, part in vector.parts.items()}
    found = ByParameter(parts)
    return found * (vector.norm() / max(found.norm(), 1e-38))


def _part(name: str, part: Tensor | Factors, factors: KroneckerFactors, damping: Damping) -> Tensor | Factors:
    outputs, inputs = damping.outputs, damping.inputs
    if isinstance(part, Factors) and damping.rank is not None:
        part = part.to_rank(damping.rank)
    if damping.is_plain:
        return part
    if isinstance(part, Factors) and name in factors.outputs:
        sides = []
        for values, curvature, value in (
            (part.b.double(), factors.outputs[name], outputs),
            (part.a.double().mT, factors.inputs[name], inputs),
        ):
            solve = curvature.solve_diagonal if damping.diagonal else curvature.solve
            sides.append(values if math.isinf(value) else solve(values, value))
        return Factors(sides[0].float(), sides[1].mT.float().contiguous())
    if math.isinf(outputs) and not isinstance(part, Factors):
        return part * 0.0
    fisher = factors.diagonals.get(name)
    if fisher is None:  # text does not use it: as the others
        means = [values.mean() for values in factors.diagonals.values()]
        fisher = torch.stack(means).median().view(1) if means else torch.ones(1, dtype=torch.float64)
    mean, own = float(fisher.mean()), 0.0 if math.isinf(inputs) else inputs
    if isinstance(part, Factors):  # of which no factors are known
        return part * (1 / max(mean * (1 + own), 1e-38))
    return (part.double() / ((fisher + outputs * mean) * (1 + own)).clamp(min=1e-38)).float()


# ------------------------------------------------------------------------------------------------------- what is compared

LADDER = (10.0, 1.0, 0.1)
"""Dampings of both sides that are compared first, as long as a smaller one is better."""

PLAIN, NATURAL, ODD = "plain", "natural", "natural, one for both signs"
"""What is compared in the end."""

UNMEASURED = Damping(10.0, 10.0)
"""Where none can be compared."""

_MOST_DOSES = 12
_CLOSE = 1.1
"""Ratio of two doses between which none is looked for."""
_NEAR = 0.75
"""Share of the allowed damage that is near enough to it."""
_AIM = (1 + _NEAR) / 2
"""Share of the allowed damage that is looked for."""
_REACH = 1.3
"""Ratio of two doses from one of which the other's effect is estimated."""
_POWER = 0.5
"""Log-odds of an effect grow about with this power of the dose, where a single reading cannot tell: few rows move first."""


@dataclass(frozen=True)
class Outcome:
    """Effect of one sign of an edit at the largest dose that the damage allows."""

    effect: float
    dose: float


Measure = Callable[["Edits", Mapping[int, "float | None"]], Mapping[int, Outcome]]
"""Measures some signs (1, −1) of some edits, given a dose to begin with, if one is known."""


@dataclass(frozen=True)
class Edits:
    """Edits of strength +1 and −1, which may have decoders of their own."""

    plus: ByParameter
    minus: ByParameter

    @classmethod
    def of(cls, solution: Solution, config: GradiendConfig) -> Edits:
        """The edits that a solution's decoder makes at strength ±1, at a unit of 1."""
        weights = (config.coefficients(sign) for sign in (1.0, -1.0))
        unit = 1 / config.strength_unit
        bias = solution.decoder_bias
        plus, minus = (
            solution.decoder * (w * unit) if bias is None else solution.decoder * (w * unit) + bias * (b * unit)
            for w, b in weights
        )
        return cls(plus, minus)

    def solution(self, solution: Solution, config: GradiendConfig, rank: int | None = None) -> Solution:
        """A solution with the decoder that makes these edits, cut to a rank."""
        (w, b), unit = config.coefficients(1.0), 1 / config.strength_unit
        weight = (self.plus + self.minus * -1.0) * (0.5 / (w * unit))
        bias = (self.plus + self.minus) * (0.5 / (b * unit))
        if rank is not None:
            weight, bias = weight.to_rank(rank), bias.to_rank(rank)
        return replace(solution, decoder=weight, decoder_bias=bias)

    def of_sign(self, sign: int) -> ByParameter:
        """The edit of strength +1 or −1."""
        return self.plus if sign > 0 else self.minus

    def preconditioned(self, factors: KroneckerFactors, damping: Damping) -> Edits:
        """Both divided by damped Kronecker factors."""
        return Edits(preconditioned(self.plus, factors, damping), preconditioned(self.minus, factors, damping))


@dataclass(frozen=True)
class Choice:
    """Decoders that validation rows chose.

    Attributes:
        edits: each sign's own decoder, at its own best dose.
        common: the one damping that is best for both signs together, of those that both were measured at.
        effects: by damping and sign.
        rivals: what is expected of the plain decoder, of these, and of the common one: the effect of both signs
            together, and the dose at which neither damages too much, about.
    """

    edits: Edits
    common: Damping
    effects: dict[str, float]
    rivals: dict[str, Outcome]


def best_edits(
    edits: Edits,
    factors: KroneckerFactors,
    measure: Measure | None,
    plain: Mapping[int, Outcome] | None = None,
    *,
    common: bool = True,
) -> Choice:
    """Choose each sign's decoder by measurement, the plain one among the candidates.

    First both sides are damped alike, less and less as long as that is better for a sign. Then each side is left as it is,
    M is cut to rank 1, and the diagonals are tried, with the damping that was best.

    Args:
        measure: without it, `UNMEASURED` is the damping.
        plain: what the edits themselves gave, where that is known.
        common: one damping for both signs is looked for, too, so that each is measured at both.
    """
    if measure is None:
        return Choice(edits.preconditioned(factors, UNMEASURED), UNMEASURED, {}, {})
    found: dict[int, dict[Damping, Outcome]] = {1: {}, -1: {}}
    # second-order damage at the dose that was allowed, by sign and by damping (or at last): the next one's is near it
    levels: dict[tuple[int, float | None], float] = {}
    errors: dict[str, float] = {}  # by kind of damping: ratio of a dose to the one that follows from it

    def note(sign: int, damping: Damping, outcome: Outcome, damage: float) -> None:
        found[sign][damping] = outcome
        if not damping.kind:
            levels[sign, damping.inputs] = levels[sign, None] = outcome.dose**2 * damage
        elif expected := start(sign, damping, damage):
            errors[damping.kind] = outcome.dose / expected

    def start(sign: int, damping: Damping, damage: float) -> float | None:
        level = levels.get((sign, min(damping.outputs, damping.inputs)), levels.get((sign, None)))
        return None if level is None or damage <= 0 else math.sqrt(level / damage)

    def best(sign: int) -> Damping:
        return max(found[sign], key=lambda damping: found[sign][damping].effect)

    def tried(damping: Damping, *signs: int) -> list[int]:
        """Measure a damping at some signs. Returns those of them for which it is the best one."""
        if missing := [sign for sign in signs if damping not in found[sign]]:
            candidate = edits.preconditioned(factors, damping)
            damage = {sign: factors.damage(candidate.of_sign(sign).parts) for sign in missing}
            expected = {sign: start(sign, damping, of) for sign, of in damage.items()}
            starts = {s: one and one * errors.get(damping.kind, 1.0) for s, one in expected.items()}
            for sign, one in measure(candidate, starts).items():
                note(sign, damping, one, damage[sign])
        return [sign for sign in signs if best(sign) == damping]

    for sign, one in (plain or {}).items():
        note(sign, Damping(), one, factors.damage(edits.of_sign(sign).parts))
    going = tried(Damping(), 1, -1)
    for value in LADDER:
        better = tried(Damping(value, value), *going)
        if not better:
            break
        going = going if common else better
    for sign in (1, -1):
        value = best(sign).outputs
        if math.isinf(value):
            value = LADDER[0]
        signs = (1, -1) if common else (sign,)
        for other in (Damping(inputs=value), Damping(outputs=value), Damping(value, value, rank=1)):
            tried(other, *signs)
        tried(Damping(value, value, diagonal=True), *signs)
    chosen = {sign: best(sign) for sign in (1, -1)}
    both = Edits(*(preconditioned(edits.of_sign(s), factors, d) * found[s][d].dose for s, d in chosen.items()))
    shared = [damping for damping in found[1] if damping in found[-1]]
    effects = {f"{d} {side}": one.effect for s, side in ((1, "+"), (-1, "-")) for d, one in found[s].items()}
    for_both = max(shared, key=lambda d: found[1][d].effect + found[-1][d].effect)
    rivals = {NATURAL: Outcome(sum(found[s][d].effect for s, d in chosen.items()), 1.0)}
    for name, d in ((PLAIN, Damping()), (ODD, for_both)):
        plus, minus = found[1][d], found[-1][d]
        rivals[name] = Outcome(plus.effect + minus.effect, min(plus.dose, minus.dose))
    return Choice(both, for_both, effects, rivals)


def outcome(probe: StrengthProbe, sign: int, floor: float, start: float | None = None) -> Outcome:
    """Find about the largest dose of one sign whose damage the floor allows, and read its effect.

    Damage grows about as the square of the dose, so each dose is where that says that the floor is.

    Args:
        start: dose to begin with; default: ‖Δ‖ = ‖W‖/64.

    Raises:
        EditError: even the smallest dose damages the model.
    """
    dose, allowed = start or probe.dose_of(64), 1 - floor
    low, high = 0.0, math.inf
    for _ in range(_MOST_DOSES):
        damage = probe.damage(sign * dose)
        low, high = (dose, high) if damage <= allowed else (low, dose)
        if (low and high / low < _CLOSE) or _NEAR * allowed <= damage <= allowed:
            break
        aim = dose * math.sqrt(_AIM * allowed / max(damage, allowed / 16))
        inside = aim if low < aim < high else math.sqrt(low * high) if high < math.inf else 4 * dose
        dose = inside if low else min(inside, dose / 1.5)
    if not low:
        raise _no_dose(probe, dose, floor)
    return Outcome(_effect(probe, sign, low), low)


def estimate(probe: StrengthProbe, sign: int, floor: float, start: float | None = None) -> Outcome:
    """Estimate what `outcome` finds, to compare candidates: from one reading near that dose, or from two or three.

    Damage grows about as the square of the dose. The effect's log-odds grow with the power of the dose that two readings
    tell, or with `_POWER`.

    Raises:
        EditError: even the smallest dose damages the model.
    """
    dose, allowed = start or probe.dose_of(64), 1 - floor
    before, read = _log_odds(_effect(probe, sign, 0.0)), dict[float, float]()  # rise of the log-odds by dose
    low, high, ratio = 0.0, math.inf, 1.0
    for _ in range(_MOST_DOSES):
        damage = probe.damage(sign * dose)
        low, high = (dose, high) if damage <= allowed else (low, dose)
        if damage < math.inf:
            read[dose] = _log_odds(_effect(probe, sign, dose)) - before
        ratio = math.sqrt(_AIM * allowed / max(damage, allowed / 64))
        if 1 / _REACH <= ratio <= _REACH:
            break
        if low and high / low < _REACH:
            dose, ratio = low, 1.0
            break
        aim = dose * max(ratio, 1 / 8)
        dose = aim if low < aim < high else math.sqrt(low * high)
    else:
        if not low:
            raise _no_dose(probe, dose, floor)
        dose, ratio = low, 1.0
    power, rise = _POWER, read[dose]
    for other, less in read.items():
        if other != dose and rise * less > 0:
            power = min(max(math.log(rise / less) / math.log(dose / other), 0.0), 1.0)
    return Outcome(1 / (1 + math.exp(-before - rise * ratio**power)), dose * ratio)


def common_effect(probe: StrengthProbe, floor: float, start: float | None = None) -> float:
    """Effect of both signs together at about the largest dose at which neither damages more than the floor allows.

    Args:
        start: dose to begin with; default: ‖Δ‖ = ‖W‖/64.

    Raises:
        EditError: even the smallest dose damages the model.
    """
    dose = outcome(probe, 1, floor, start).dose
    if probe.damage(-dose) > 1 - floor:
        dose = min(dose, outcome(probe, -1, floor, dose).dose)
    return probe.effect(probe.measure_dose(dose), probe.measure_dose(-dose))


def _effect(probe: StrengthProbe, sign: int, dose: float) -> float:
    """Effect of a dose of a sign; 0 without rows that could show it."""
    effect = probe.summary(sign * dose).effect(sign)
    return 0.0 if effect is None else effect.mean


def _log_odds(share: float) -> float:
    share = min(max(share, 1e-9), 1 - 1e-9)
    return math.log(share / (1 - share))


def _no_dose(probe: StrengthProbe, dose: float, floor: float) -> EditError:
    return EditError(
        f"Even an edit of {dose / probe.dose_of(64):.2g} ‖W‖/64 lowers the quality under {floor:.1%} of the base model's. "
        "Train longer, use more data, or lower the floor."
    )
