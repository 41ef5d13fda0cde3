"""The strength unit: found by search, then written into the direction's config."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy.optimize import brentq

from gradiend_hub.errors import EditError

from .control import Control, above_control, control_curves
from .curve import QUALITY_FLOOR, WIDER, between
from .damage import GENERATION, set_label
from .part import NotFiniteError
from .probe import StrengthProbe
from .records import StrengthPoint
from .summary import Figure, difference

_DOUBLINGS = 10
"""Of the first dose, upwards and downwards, that the search tries."""
_STEPS = 8
"""Doses per doubling that the search tells apart: they are 9 % apart."""
_TIE = 0.01
"""Difference of two doses' effects that is not worth reading more for."""


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
        self.probe, self.floor, self.tried = probe, floor, set[int]()
        self._first = probe.dose_of(256)
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

    def _full(self, k: int) -> bool:
        """Return whether the next larger dose is over the floor even if damage grows no faster than the dose."""
        return self.damage(k) * math.pow(2.0, 1 / _STEPS) > 1 - self.floor

    def _worst(self, k: int) -> str:
        """Return the damage set that a dose damages most; the first one where there is NaN."""
        try:
            rises = [self.probe.summary(sign * self.dose(k)).rises.items() for sign in (1, -1)]
        except NotFiniteError:
            return next(iter(self.probe.scored))
        return max((item for of in rises for item in of), key=lambda item: item[1].expected_damage)[0]

    def limit(self, best: int) -> str | None:
        """Return what is not safe at the next larger dose; `None` if the next that was tried is safe."""
        above = min((k for k in self.tried if k > best), default=None)
        if self.unsound is not None and (above is None or above >= self.unsound):
            return GENERATION
        if above is not None and self.safe(above):
            return None
        if above is None:
            return self._worst(best) if self._full(best) else None
        return self._worst(best if self._full(best) else above)

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
        while high - low > 1 and not self._full(low):
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
        """The safe dose with the best effect, read on everything.

        What seems best is read to the end at once: the others, which are told from it, are known best from that.
        """
        while self.more(best := self.best()):
            self.finish(best)
        return best

    def finish(self, k: int) -> None:
        """Read both signs of a dose on everything, or until the model computes NaN there."""
        while self.more(k) and k in self.tried:
            pass


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
    then narrowed to 9 %, where the damage that was measured at its ends says that the floor is, or until 9 % more damage
    would be past the floor. The config's `strength_unit` becomes the safe dose with the best effect among those whose effect
    is above that of every random direction of equal damage; if there is none, the safe dose with the best effect.

    Doses are read on a few rows and texts. The one that seems best is then read on everything, which makes all the others'
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
        by_effect = sorted(filter(doses.safe, doses.tried), key=doses.effect, reverse=True)
        for k in [best, *(k for k in by_effect if k != best)]:
            doses.finish(k)
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
