"""The curve of a direction: measurements by strength, its safe band and its break point."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .part import NotFiniteError
from .probe import StrengthProbe
from .records import BREAK_QUALITY, StrengthPoint

CURVE = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
"""Strengths that every curve has, in units of the recommended dose; it is refined around its band and break point."""

QUALITY_FLOOR = 0.99
"""Lowest language-modelling score, relative to the base model's, at which an edit counts as safe."""

WIDER = 1.5
"""How much wider intervals may be than reading everything would make them, where no decision needs more."""

_BROAD = 4.0
"""The same where the model is about to break: that it does is all that such a strength tells."""
_WIDEST_CURVE = 64.0
_CLOSE = 1.2
"""Ratio of two strengths that need no third one between them."""
_NEAR = 0.15
"""Relative distance to a level at which a point is next to it."""


@dataclass(frozen=True)
class Curve:
    """Measurements at some strengths.

    Attributes:
        points: from the lowest to the highest strength.
        not_finite: strengths at which the model computes NaN or infinity, so that there is no point.
    """

    points: list[StrengthPoint]
    not_finite: list[float]


def measure_curve(
    probe: StrengthProbe,
    strengths: Sequence[float],
    *,
    exact: Collection[float] = (-1.0, 0.0, 1.0),
    floor: float | None = None,
) -> Curve:
    """Points at some strengths, read as far as `WIDER` says; with a `floor`, refined around the safe band and break point.

    Args:
        exact: strengths to read on everything, if they are among the others.

    Raises:
        NotFiniteError: the model computes NaN or infinity within strengths ±1.
    """
    curve: dict[float, StrengthPoint | None] = {}
    for strength in sorted(strengths, key=lambda s: (s not in exact, abs(s))):
        curve[strength] = _measured(probe, strength, exact=strength in exact)
        if curve[strength] is None and abs(strength) <= 1:
            probe.measure(strength)  # raises what is wrong
    if floor is not None and probe.scored:
        for sign in (-1, 1):
            _refine(probe, curve, sign, floor, aim=0.95, steps=3)
            _refine(probe, curve, sign, BREAK_QUALITY, aim=1.25, steps=3)
    found = sorted(curve.items(), key=lambda item: item[0])
    return Curve(  # what was read later may have made the first ones more precise
        [_read(probe, s) for s, point in found if point], [s for s, point in found if point is None]
    )


def _read(probe: StrengthProbe, strength: float) -> StrengthPoint:
    """Measure a strength as far as `WIDER` says, or `_BROAD` where a first look sees half the damage that breaks a model."""
    broken = _damage(probe.measure(strength, math.inf), bound=False) > (1 - BREAK_QUALITY) / 2
    return probe.measure(strength, _BROAD if broken else WIDER)


def _measured(probe: StrengthProbe, strength: float, *, exact: bool = False) -> StrengthPoint | None:
    try:
        return probe.measure(strength) if exact else _read(probe, strength)
    except NotFiniteError:
        return None


def _refine(
    probe: StrengthProbe, curve: dict[float, StrengthPoint | None], sign: int, level: float, *, aim: float, steps: int
) -> None:
    """Measure up to `steps` more strengths of one sign, next to where the language-modelling score falls under `level`.

    `aim` is the damage to look for, relative to that at the level: just below 1 finds the last strength before it; well
    above 1 one beyond it that is beyond it on other rows and texts, too.
    """
    allowed = 1 - level
    for _ in range(steps):
        side = sorted((abs(s), _damage(p, bound=aim < 1)) for s, p in curve.items() if s * sign > 0)
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
        curve[proposed] = _measured(probe, proposed)


def _damage(point: StrengthPoint | None, *, bound: bool) -> float:
    """Share of the quality that the worst damage set loses, or its upper bound; more than all where there is NaN."""
    worst = None if point is None else point.worst(bound=bound)
    return math.inf if worst is None else 1 - worst[1]


def _growth(side: Sequence[tuple[float, float]], wanted: float) -> float:
    """Factor by which the last of some (strength, damage) has to grow for the damage that is wanted."""
    (former, less), (last, damage) = side[-2] if len(side) > 1 else (0.0, 0.0), side[-1]
    if damage <= 0:
        return math.inf
    power = math.log(damage / less) / math.log(last / former) if 0 < less < damage else 2.0
    return math.pow(wanted / damage, 1 / max(power, 0.5))


def between(low: float, low_damage: float, high: float, high_damage: float, wanted: float) -> float:
    """A strength within (low, high), about where the damage is as wanted: it grows as a power of the strength.

    Halfway (geometrically), if the ends do not say.
    """
    if not (0 < low_damage < wanted < high_damage < math.inf):
        return math.sqrt(low * high)
    place = math.log(wanted / low_damage) / math.log(high_damage / low_damage)
    return low * math.pow(high / low, min(max(place, 0.1), 0.9))


def safe_band(curve: Sequence[StrengthPoint], *, floor: float = QUALITY_FLOOR) -> list[float] | None:
    """Lowest and highest measured strength around 0 up to which every quality's lower bound stays above `floor`.

    Each end is its own sign's: where one sign damages less than the other, it reaches further.
    """
    ends = band_ends(curve, floor=floor)
    return None if ends is None else [ends[0][0], ends[1][0]]


def band_ends(curve: Sequence[StrengthPoint], *, floor: float = QUALITY_FLOOR) -> list[tuple[float, str | None]] | None:
    """Both ends of the safe band, each with the damage set that is not safe beyond it; `None` if that was not seen."""
    if any(p.worst() is None for p in curve):
        return None
    ends: list[tuple[float, str | None]] = []
    for sign in (-1, 1):
        end = 0.0
        for point in sorted((p for p in curve if p.strength * sign > 0), key=lambda p: abs(p.strength)):
            name, quality_low = point.worst() or ("", 0.0)
            if quality_low < floor:
                ends.append((end, name))
                break
            end = point.strength
        else:
            ends.append((end, None))
    return ends


def break_point(
    curve: Sequence[StrengthPoint], not_finite: Sequence[float] = (), *, level: float = BREAK_QUALITY
) -> list[float | None] | None:
    """Nearest measured strength on each side of 0 at which the quality of a damage set is under `level`; `None` if none is.

    Strengths at which the model computes NaN (`Curve.not_finite`) count. Without a damage set there is nothing to say:
    `None`.
    """
    worst = {p.strength: p.worst(bound=False) for p in curve}
    if any(found is None for found in worst.values()):
        return None
    broken = [*not_finite, *(strength for strength, found in worst.items() if found and found[1] < level)]
    return [max((s for s in broken if s < 0), default=None), min((s for s in broken if s > 0), default=None)]
