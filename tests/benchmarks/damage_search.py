"""The largest dose of an edit that damages no text more than is allowed, and its damage at a given effect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from gradiend_hub.evaluation import StrengthPoint, StrengthProbe

__all__ = ["ALLOWED", "Held", "Side", "rise"]

ALLOWED = 0.01
"""Damage: relative rise of a negative log-likelihood."""

READINGS = 9
"""Most doses of each sign and rule that are tried."""


@dataclass(frozen=True)
class Held:
    """A decoder at one sign and rule: the dose, the figures there, and what limits the dose."""

    dose: float
    point: StrengthPoint
    limit: str


def rise(point: StrengthPoint, name: str, *, collateral: bool = False) -> float:
    """Relative rise of an NLL on a damage set, all outputs or all but the classes'."""
    of = point.damage[name]
    quality = of.collateral_quality if collateral else of.quality
    assert quality is not None
    return 1 / quality - 1


def counted(point: StrengthPoint, names: Sequence[str]) -> dict[str, float]:
    """Rises of what counts on some damage sets."""
    return {name: rise(point, name, collateral=name == "own") for name in names}


@dataclass
class Side:
    """One sign of a decoder, and what was read of it by dose."""

    probe: StrengthProbe
    sign: int
    classes: Sequence[str]
    points: dict[float, StrengthPoint] = field(default_factory=dict)

    def read(self, dose: float) -> StrengthPoint:
        """Measure a dose of this sign."""
        self.points[dose] = self.probe.measure_dose(self.sign * dose)
        return self.points[dose]

    def effect(self, point: StrengthPoint) -> float:
        return point.reading(*self.classes[:: self.sign]).value

    def largest(self, first: float, names: Sequence[str]) -> Held:
        """Find the largest dose at which no set rises by more than allowed, to about 3 % of the damage."""
        low, high, dose = (0.0, 0.0), (math.inf, math.inf), first
        best: StrengthPoint | None = None
        for _ in range(READINGS):
            point = self.read(dose)
            damage = max(counted(point, names).values())
            if damage <= ALLOWED:
                low, best = (dose, damage), point
            else:
                high = (dose, damage)
            if best is not None and low[1] > 0.97 * ALLOWED:
                break
            if best is None:  # damage that grows with less than the square would be approached for ever
                dose *= min(max(math.sqrt(0.985 * ALLOWED / damage), 0.2), 0.7)
            elif high[0] == math.inf:
                dose *= min(math.sqrt(0.985 * ALLOWED / max(damage, 1e-6)), 4.0)
            elif low[1] > 0:
                power = math.log(high[1] / low[1]) / math.log(high[0] / low[0])
                dose = low[0] * (0.985 * ALLOWED / low[1]) ** (1 / power)
            else:
                dose = math.sqrt(low[0] * high[0])
        assert best is not None, f"no dose of {READINGS} is within the damage that is allowed"
        rises = counted(best, names)
        return Held(low[0], best, max(rises, key=lambda name: rises[name]))

    def damage_at(self, effect: float, names: Sequence[str]) -> float | None:
        """The largest damage where the effect is a given one, from one more reading at about that dose; `None` if no dose
        that was read has as much."""
        place = self._place(effect, names)
        if place is not None and place[0] > 0:
            self.read(place[0])
            place = self._place(effect, names)
        return None if place is None else place[1]

    def _place(self, effect: float, names: Sequence[str]) -> tuple[float, float] | None:
        """Dose and damage of an effect, between the two doses on both sides of it."""
        points = {0.0: self.probe.measure_dose(0.0), **self.points}
        known = [(d, self.effect(p), max(counted(p, names).values())) for d, p in sorted(points.items())]
        reached = next((number for number, (_, value, _) in enumerate(known) if value >= effect), None)
        if not reached:
            return None if reached is None else (0.0, 0.0)
        (low, less, before), (high, more, after) = known[reached - 1 : reached + 1]
        share = (effect - less) / (more - less)
        return low + share * (high - low), before + share * (after - before)

    def by_row(self, dose: float) -> list[list[float]]:
        """Group and probability of the wanted class of each row that this sign should move."""
        wanted, items = 0 if self.sign > 0 else 1, self.probe.items
        moved = items.row_class != wanted
        found = self.probe.values(self.sign * dose).probability[moved, wanted]
        return [[int(g), round(float(p), 5)] for g, p in zip(items.row_group[moved], found, strict=True)]
