"""The strength unit, the safe band and the break point: found by search, then written into the direction's config."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scipy.optimize import brentq

from gradiend_hub.errors import EditError

from .control import above_control, control_curves
from .probe import NotFiniteError, StrengthProbe
from .report import StrengthPoint

CURVE = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
"""Strengths that every curve has, in units of the recommended dose; it is refined around its band and break point."""

QUALITY_FLOOR = 0.99
"""Lowest language-modelling score, relative to the base model's, at which an edit counts as safe."""

BREAK_QUALITY = 0.9
"""Language-modelling score under which the model counts as broken."""

_WIDEST_SEARCH = 2**10
_WIDEST_CURVE = 64.0
_CLOSE = 1.2
"""Ratio of two strengths that need no third one between them."""
_NEAR = 0.15
"""Relative distance to a level at which a point is next to it."""


@dataclass(frozen=True)
class Search:
    """What the search for the strength unit has measured, in the new unit.

    Attributes:
        points: every strength of the direction.
        control: the random directions at ±1 (see `control_curves`), one curve each.
    """

    points: list[StrengthPoint]
    control: list[list[StrengthPoint]]


def calibrate(
    probe: StrengthProbe, *, floor: float = QUALITY_FLOOR, refinements: int = 2, controls: int = 0, seed: int = 0
) -> Search:
    """Find the dose with the best effect that leaves the language model intact, and make it strength ±1.

    A dose is safe if the lower bound of its language-modelling score reaches `floor` at both signs. From
    ‖Δ‖ = ‖W‖/256 doses double while they are safe (or halve until one is); the gap to the first unsafe one is then narrowed
    up to `refinements` times, where the damage that was measured at its ends says that the floor is. The config's
    `strength_unit` becomes the safe dose with the best effect among those whose effect is above that of every random
    direction of equal norm; if there is none, the safe dose with the best effect.

    Args:
        controls: random directions; without any, the effect alone decides.
        seed: of the first of them.

    Raises:
        EditError: even the smallest dose damages the model.
    """
    model, config = probe.model, probe.model.active_peft_config
    former = config.strength_unit
    with model.strength_at(1.0):
        start = former / (256 * model.receipt.relative_norm)
    tried: dict[float, tuple[StrengthPoint, StrengthPoint]] = {}
    damage: dict[float, float] = {}

    def safe(dose: float) -> bool:
        try:
            tried[dose] = probe.measure_dose(dose), probe.measure_dose(-dose)
        except NotFiniteError:
            damage[dose] = math.inf
            return False
        damage[dose] = max(0.0 if p.quality_low is None else 1 - p.quality_low for p in tried[dose])
        return damage[dose] <= 1 - floor

    def effect(dose: float) -> float:
        return probe.effect(*tried[dose])

    dose = start
    while not safe(dose):
        dose /= 2
        if dose < start / _WIDEST_SEARCH:
            raise EditError(
                f"Even an edit of ‖Δ‖ = ‖W‖/{256 * _WIDEST_SEARCH} lowers the language-modelling score under {floor:.1%} of "
                "the base model's. Train longer, use more data, or lower the floor."
            )
    low = best = dose
    high = 2 * dose
    while high not in damage and safe(high) and high < start * _WIDEST_SEARCH:
        low = high
        if effect(high) < effect(best):
            break  # past the best effect; without neutral text nothing else ends the search
        best, high = high, 2 * high
    for _ in range(refinements):
        middle = between(low, damage[low], high, damage.get(high, math.inf), 0.97 * (1 - floor))
        if low == high or middle / low < 1.05:
            break
        if safe(middle):
            low = middle
            best = max(best, middle, key=effect)
        else:
            high = middle
    doses = sorted((dose for dose in tried if damage[dose] <= 1 - floor), key=effect, reverse=True)
    with model.strength_at(0.0):  # a strength in force afterwards is applied anew, in the new unit
        control = _choose(probe, {dose: tried[dose] for dose in doses}, controls, seed)
    points = (replace(p, strength=p.strength / config.strength_unit) for pair in tried.values() for p in pair)
    return Search(sorted(points, key=lambda p: p.strength), control)


def _choose(
    probe: StrengthProbe, doses: Mapping[float, Sequence[StrengthPoint]], controls: int, seed: int
) -> list[list[StrengthPoint]]:
    """Make the first of some doses whose effect is above the control the unit, else the very first; its control."""
    config = probe.model.active_peft_config
    found: dict[float, list[list[StrengthPoint]]] = {}
    for dose, points in doses.items():
        config.strength_unit = dose
        found[dose] = control_curves(probe, (-1.0, 1.0), draws=controls, seed=seed)
        at_unit = [replace(p, strength=p.strength / dose) for p in points]
        if above_control(at_unit, found[dose]) is not False:
            return found[dose]
    config.strength_unit = next(iter(doses))
    return found[config.strength_unit]


def between(low: float, low_damage: float, high: float, high_damage: float, wanted: float) -> float:
    """A strength within (low, high), about where the damage is as wanted: it grows as a power of the strength.

    Halfway (geometrically), if the ends do not say.
    """
    if not (0 < low_damage < wanted < high_damage < math.inf):
        return math.sqrt(low * high)
    place = math.log(wanted / low_damage) / math.log(high_damage / low_damage)
    return low * math.pow(high / low, min(max(place, 0.1), 0.9))


@dataclass(frozen=True)
class Curve:
    """What was measured at some strengths.

    Attributes:
        points: from the lowest to the highest strength.
        not_finite: strengths at which the model computes NaN or infinity, so that there is no point.
    """

    points: list[StrengthPoint]
    not_finite: list[float]


def measure_curve(
    probe: StrengthProbe,
    strengths: Sequence[float],
    measured: Sequence[StrengthPoint] = (),
    *,
    floor: float | None = None,
) -> Curve:
    """Points at `strengths` and those `measured` already; with a `floor`, refined around the safe band and break point.

    Raises:
        NotFiniteError: the model computes NaN or infinity within strengths ±1.
    """
    curve: dict[float, StrengthPoint | None] = {point.strength: point for point in measured}
    for strength in strengths:
        try:
            curve[strength] = probe.measure(strength)
        except NotFiniteError:
            if abs(strength) <= 1:
                raise
            curve[strength] = None
    if floor is not None and probe.scored:
        for sign in (-1, 1):
            _refine(probe, curve, sign, floor, aim=0.95, steps=1)
            _refine(probe, curve, sign, BREAK_QUALITY, aim=1.25, steps=3)
    found = sorted(curve.items(), key=lambda item: item[0])
    return Curve([point for _, point in found if point], [strength for strength, point in found if point is None])


def _refine(
    probe: StrengthProbe, curve: dict[float, StrengthPoint | None], sign: int, level: float, *, aim: float, steps: int
) -> None:
    """Measure up to `steps` more strengths of one sign, next to where the language-modelling score falls under `level`.

    `aim` is the damage to look for, relative to that at the level: just below 1 finds the last strength before it; well
    above 1 one beyond it that is beyond it on other rows and texts, too.
    """
    allowed = 1 - level
    for _ in range(steps):
        side = sorted((abs(s), _damage(p)) for s, p in curve.items() if s * sign > 0)
        split = next((place for place, (_, damage) in enumerate(side) if damage > allowed), len(side))
        if split == 0 or side[split - 1][0] >= _WIDEST_CURVE:
            return
        low, low_damage = side[split - 1]
        if split < len(side):
            high, high_damage = side[split]
            near = low_damage > (aim - _NEAR) * allowed if aim < 1 else high_damage < (aim + _NEAR) * allowed
            if high / low < _CLOSE or near:
                return
            # a strength that gives NaN may be any number of times too high
            proposed = min(between(low, low_damage, high, high_damage, aim * allowed), 4.0 * low)
        else:
            proposed = low * min(max(_growth(side, aim * allowed), 1.1), 4.0)
        proposed = sign * round(proposed, 2)
        if proposed in curve:
            return
        try:
            curve[proposed] = probe.measure(proposed)
        except NotFiniteError:
            curve[proposed] = None


def _damage(point: StrengthPoint | None) -> float:
    """Share of the language-modelling score that is lost; all of it, and more, where the model computes NaN."""
    return math.inf if point is None or point.quality is None else 1 - point.quality


def _growth(side: Sequence[tuple[float, float]], wanted: float) -> float:
    """Factor by which the last of some (strength, damage) has to grow for the damage that is wanted."""
    (former, less), (last, damage) = side[-2] if len(side) > 1 else (0.0, 0.0), side[-1]
    if damage <= 0:
        return math.inf
    power = math.log(damage / less) / math.log(last / former) if 0 < less < damage else 2.0
    return math.pow(wanted / damage, 1 / max(power, 0.5))


def safe_band(curve: Sequence[StrengthPoint], *, floor: float = QUALITY_FLOOR) -> list[float] | None:
    """Lowest and highest measured strength around 0 up to which the language-modelling score stays above `floor`."""
    if any(p.quality is None for p in curve):
        return None
    band = [0.0, 0.0]
    for side, sign in ((0, -1), (1, 1)):
        for point in sorted((p for p in curve if p.strength * sign > 0), key=lambda p: abs(p.strength)):
            if point.quality is None or point.quality < floor:
                break
            band[side] = point.strength
    return band


def break_point(
    curve: Sequence[StrengthPoint], not_finite: Sequence[float] = (), *, level: float = BREAK_QUALITY
) -> list[float | None] | None:
    """Nearest measured strength on each side of 0 whose language-modelling score is under `level`; `None` if none is.

    Strengths at which the model computes NaN (`Curve.not_finite`) count. Without language-modelling scores there is nothing
    to say: `None`.
    """
    if any(p.quality is None for p in curve):
        return None
    broken = [*not_finite, *(p.strength for p in curve if p.quality is not None and p.quality < level)]
    return [max((s for s in broken if s < 0), default=None), min((s for s in broken if s > 0), default=None)]


def equalising_strength(probe: StrengthProbe, band: Sequence[float]) -> float:
    """The strength within `band` at which P(c₊) = P(c₋) on average over the rows: the dose for debiasing.

    Both classes' rows count the same. The strength is found to 0.01.

    Raises:
        EditError: within the band one class stays the likelier one.
    """

    def gap(strength: float) -> float:
        first, second = probe.classes
        chances = probe.measure(round(strength, 3)).probability.values()
        return sum(of[first] - of[second] for of in chances) / len(chances)

    low, high = band
    ends = gap(low), gap(high)
    if ends[0] * ends[1] > 0:
        raise EditError(
            f"No strength from {low:g} to {high:g} makes {probe.classes[0]!r} and {probe.classes[1]!r} equally likely: the "
            f"difference of their probabilities goes from {ends[0]:+.3f} to {ends[1]:+.3f}. Measure on rows whose context "
            "decides for neither class, or allow more damage with a lower floor."
        )
    return round(float(brentq(gap, low, high, xtol=0.01)), 3)
