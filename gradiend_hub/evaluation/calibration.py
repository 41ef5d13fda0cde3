"""The strength unit, the safe band and the break point: found by search, then written into the direction's config."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from scipy.optimize import brentq

from gradiend_hub.errors import EditError

from .control import Control, above_control, control_curves
from .damage import GENERATION, set_label
from .part import NotFiniteError
from .probe import StrengthProbe
from .report import StrengthPoint
from .summary import Figure, difference

CURVE = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
"""Strengths that every curve has, in units of the recommended dose; it is refined around its band and break point."""

QUALITY_FLOOR = 0.99
"""Lowest language-modelling score, relative to the base model's, at which an edit counts as safe."""

BREAK_QUALITY = 0.9
"""Language-modelling score under which the model counts as broken."""

WIDER = 1.5
"""How much wider intervals may be than reading everything would make them, where no decision needs more."""

_DOUBLINGS = 10
"""Of the first dose, upwards and downwards, that the search tries."""
_STEPS = 8
"""Doses per doubling that the search tells apart: they are 9 % apart."""
_TIE = 0.01
"""Difference of two doses' effects that is not worth reading more for."""
_WIDEST_CURVE = 64.0
_CLOSE = 1.2
"""Ratio of two strengths that need no third one between them."""
_NEAR = 0.15
"""Relative distance to a level at which a point is next to it."""


@dataclass(frozen=True)
class Search:
    """Measurements of the search for the strength unit, in the new unit.

    Attributes:
        points: every dose that was tried, at both signs.
        control: the random directions at ±1 (see `control_curves`).
        limited_by: what is not safe at the next dose: a damage set, or `GENERATION`; `None` where the effect is best at a
            smaller dose than would be safe.
    """

    points: list[StrengthPoint]
    control: list[Control]
    limited_by: str | None = None


class _Doses:
    """Doses ‖Δ‖ = 2^(k/8) · ‖W‖/256 by their k, measured at both signs as far as decisions need."""

    def __init__(self, probe: StrengthProbe, floor: float) -> None:
        config = probe.model.active_peft_config
        with probe.model.strength_at(1.0):
            self._first = config.strength_unit / (256 * probe.model.receipt.relative_norm)
        self.probe, self.floor, self.tried = probe, floor, set[int]()
        self.unsound: int | None = None
        """The lowest dose at which continuations were not sound."""

    def dose(self, k: int) -> float:
        return float(self._first * math.pow(2.0, k / _STEPS))

    def damage(self, k: int) -> float:
        """The larger damage of both signs, as reading everything is expected to bound it; infinite where there is NaN."""
        try:
            found = max(self.probe.summary(sign * self.dose(k)).expected_damage for sign in (1, -1))
        except NotFiniteError:
            return math.inf
        self.tried.add(k)
        return found

    def safe(self, k: int) -> bool:
        """Return whether every damage set is within the floor, and no smaller dose's continuations were unsound."""
        return (self.unsound is None or k < self.unsound) and self.damage(k) <= 1 - self.floor

    def _worst(self, k: int) -> str:
        """Return the damage set that a dose damages most; the first one where there is NaN."""
        try:
            rises = [self.probe.summary(sign * self.dose(k)).rises.items() for sign in (1, -1)]
        except NotFiniteError:
            return next(iter(self.probe.scored))
        return max((item for of in rises for item in of), key=lambda item: item[1].expected_damage)[0]

    def limit(self, best: int) -> str | None:
        """Return what is not safe at the next larger dose that was tried; `None` if that one is safe."""
        above = min((k for k in self.tried if k > best), default=None)
        if self.unsound is not None and (above is None or above >= self.unsound):
            return GENERATION
        if above is None or self.safe(above):
            return None
        return self._worst(above)

    def effects(self, k: int) -> list[Figure]:
        """Effect of each sign that has rows to show it; none where there is NaN."""
        try:
            found = [self.probe.summary(sign * self.dose(k)).effect(sign) for sign in (1, -1)]
        except NotFiniteError:
            return []
        return [f for f in found if f is not None]

    def effect(self, k: int) -> float:
        """Effect of both signs together."""
        return sum(figure.mean for figure in self.effects(k))

    def better(self, k: int, other: int) -> bool:
        """Return whether the effect of one dose is above that of another. More is read until that is decided, or a tie."""
        while True:
            gap = doubt = 0.0
            for mine, theirs in zip(self.effects(k), self.effects(other), strict=False):
                paired = difference(mine, theirs)
                gap, doubt = gap + paired.mean, math.hypot(doubt, 2 * paired.missing)
            if abs(gap) >= doubt or doubt <= _TIE or not (self.more(k) | self.more(other)):
                return gap > 0

    def more(self, k: int) -> bool:
        """Read both signs of a dose on the next part. Returns whether there was one."""
        try:
            return self.probe.more(self.dose(k)) | self.probe.more(-self.dose(k))
        except NotFiniteError:
            self.tried.discard(k)
            return True  # what is known has changed

    def best(self) -> int:
        """The safe dose with the best effect, as far as is known; see `calibrate`.

        Raises:
            EditError: even the smallest dose damages the model.
        """
        k = 0
        while not self.safe(k):
            k -= _STEPS
            if k < -_STEPS * _DOUBLINGS:
                raise EditError(
                    f"Even an edit of ‖Δ‖ = ‖W‖/{256 * 2**_DOUBLINGS} lowers the quality on {set_label(self._worst(k))} "
                    f"under {self.floor:.1%} of the base model's. Train longer, use more data, or lower the floor."
                )
        low = best = k
        high = k + _STEPS
        while high <= _STEPS * _DOUBLINGS and self.safe(high):
            low = high
            if self.better(best, high):
                return best  # past the best effect; without neutral text nothing else ends the search
            best, high = high, high + _STEPS
        while high - low > 1:
            ratio = math.pow(2.0, (high - low) / _STEPS)
            middle = between(1.0, self.damage(low), ratio, self.damage(high), 0.97 * (1 - self.floor))
            k = min(max(low + round(_STEPS * math.log2(middle)), low + 1), high - 1)
            if not self.safe(k):
                high = k
                continue
            low = k
            best = k if self.better(k, best) else best
        return best

    def settled(self) -> int:
        """The safe dose with the best effect, read on everything."""
        while self.more(best := self.best()):
            pass
        return best

    def by_effect(self) -> list[int]:
        """The safe ones, that of the best effect first."""
        return sorted(filter(self.safe, self.tried), key=self.effect, reverse=True)


def calibrate(
    probe: StrengthProbe,
    *,
    floor: float = QUALITY_FLOOR,
    controls: int = 0,
    seed: int = 0,
    sound: Callable[[float], bool] | None = None,
) -> Search:
    """Find the dose with the best effect that leaves the base model intact, and make it strength ±1.

    A dose is safe if at both signs the lower bound of every damage set's quality reaches `floor`, and continuations are
    sound. From ‖Δ‖ = ‖W‖/256 doses double while they are safe (or halve until one is); the gap to the first unsafe one is
    then narrowed to 9 %, where the damage that was measured at its ends says that the floor is. The config's
    `strength_unit` becomes the safe dose with the best effect among those whose effect is above that of every random
    direction of equal damage; if there is none, the safe dose with the best effect.

    Doses are read on a few rows and texts. The one that seems best is then read on more of them, which makes all the others'
    figures more precise, too, until the best one is known on everything.

    Args:
        controls: random directions; without any, the effect alone decides.
        seed: of the first of them.
        sound: tells whether continuations at a strength are sound; asked at the best dose, and below it until they are.

    Raises:
        EditError: even the smallest dose damages the model.
    """
    config, doses = probe.model.active_peft_config, _Doses(probe, floor)
    found: dict[int, list[Control]] = {}
    with probe.model.strength_at(0.0):  # a strength in force afterwards is applied anew, in the new unit
        best = doses.settled()
        if sound is not None and not _sound_at(doses, best, sound):
            doses.unsound = _lowest_unsound(doses, best, sound)
            best = doses.settled()
        for k in [best, *(k for k in doses.by_effect() if k != best)]:
            while doses.more(k):
                pass
            if not doses.safe(k):
                continue
            config.strength_unit = doses.dose(k)
            found[k] = control_curves(probe, (-1.0, 1.0), draws=controls, seed=seed)
            points = [probe.measure(strength) for strength in (-1.0, 1.0)]
            if above_control(points, [drawn.points for drawn in found[k]]) is not False:
                break
        else:
            k = best
        config.strength_unit = unit = doses.dose(k)
    strengths = sorted(sign * doses.dose(k) / unit for k in doses.tried for sign in (-1, 1))
    return Search([probe.measure(strength, math.inf) for strength in strengths], found[k], doses.limit(k))


def _sound_at(doses: _Doses, k: int, sound: Callable[[float], bool]) -> bool:
    """Return whether continuations are sound at both signs of a dose, which becomes the unit."""
    doses.probe.model.active_peft_config.strength_unit = doses.dose(k)
    return sound(1.0) and sound(-1.0)


def _lowest_unsound(doses: _Doses, high: int, sound: Callable[[float], bool]) -> int:
    """Return the smallest dose, to 9 %, whose continuations are not sound, below one that is known to be so."""
    step = 2
    while not _sound_at(doses, low := high - step, sound):
        high, step = low, 2 * step
        if high < -_STEPS * _DOUBLINGS:
            raise EditError(
                "Continuations are not sound even at the smallest doses that were tried. Train longer, use more data, or "
                "look at what the direction makes the model write: gradiend_hub.evaluation.measure_generation()."
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _sound_at(doses, middle, sound) else (low, middle)
    return high


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
        curve[strength] = _measured(probe, strength, None if strength in exact else WIDER)
        if curve[strength] is None and abs(strength) <= 1:
            probe.measure(strength)  # raises what is wrong
    if floor is not None and probe.scored:
        for sign in (-1, 1):
            _refine(probe, curve, sign, floor, aim=0.95, steps=3)
            _refine(probe, curve, sign, BREAK_QUALITY, aim=1.25, steps=3)
    found = sorted(curve.items(), key=lambda item: item[0])
    return Curve(  # what was read later may have made the first ones more precise
        [probe.measure(s, WIDER) for s, point in found if point], [s for s, point in found if point is None]
    )


def _measured(probe: StrengthProbe, strength: float, wider: float | None = WIDER) -> StrengthPoint | None:
    try:
        return probe.measure(strength, wider)
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


def equalising_strength(probe: StrengthProbe, band: Sequence[float]) -> float:
    """The strength within `band` at which P(c₊) = P(c₋) on average over the rows: the dose for debiasing.

    Both classes' rows count the same. The strength is found to 0.01.

    Raises:
        EditError: within the band one class stays the likelier one.
    """

    def gap(strength: float) -> float:
        first, second = probe.classes
        chances = probe.measure(round(strength, 3), WIDER).probability.values()
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
