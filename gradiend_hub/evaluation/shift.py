"""The effect of a direction as measured, beside the effect that it is for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .report import SplitReport

SMALL_CHANGE = 0.05
"""Change of a probability that counts as hardly any."""

Outcome = Literal["works", "weak", "opposite", "not measured"]


@dataclass(frozen=True)
class Shift:
    """The probability of the class that a strength should make likelier, on rows of the other class.

    Attributes:
        strength: +1 or −1.
        wanted: class that this strength should make likelier, and `other` the other one.
        before: its probability at strength 0, and `after` at this one; `low` is the lower end of its 95 % interval.
        chance: its highest probability under the random directions of this strength.
        outcome: "works" if the probability rises by `SMALL_CHANGE` or more and its 95 % interval lies above `before` and
            `chance`; "opposite" if it falls by as much, or its whole interval lies below `before`; else "weak".
    """

    strength: float
    wanted: str
    other: str
    before: float | None
    after: float | None
    low: float | None
    chance: float | None
    outcome: Outcome

    @property
    def change(self) -> float:
        """Rise of the probability from strength 0 to this one; NaN where it was not measured."""
        return math.nan if self.before is None or self.after is None else self.after - self.before

    @property
    def claim(self) -> str:
        """The outcome in words."""
        return {
            "works": f"{self.wanted} becomes more likely",
            "weak": f"{self.wanted} becomes hardly more likely, or by chance",
            "opposite": f"the opposite of what it is for was measured: {self.wanted} becomes less likely",
            "not measured": f"the effect on {self.wanted} was not measured",
        }[self.outcome]

    @property
    def figures(self) -> str:
        """The figures behind it; empty if there are none."""
        if self.before is None or self.after is None:
            return ""
        chance = "" if self.chance is None else f"; random directions up to {self.chance:.3f}"
        return f"P({self.wanted}) on {self.other} rows {self.before:.3f} → {self.after:.3f}{chance}"


def shifts(split: SplitReport, classes: Sequence[str]) -> list[Shift]:
    """The shifts at strength +1 and −1; `classes` are (c₊, c₋)."""
    return [_shift(split, strength, *pair) for strength, pair in ((1.0, classes), (-1.0, classes[::-1]))]


def _shift(split: SplitReport, strength: float, wanted: str, other: str) -> Shift:
    points = {p.strength: p.reading(wanted, other) for p in split.curve if p.strength in (0.0, strength)}
    before = points[0.0].value if 0.0 in points else None
    after, interval = points.get(strength, (None, None))
    chance = (split.control_range(strength, wanted, other) or (None, None))[1]
    low, high = interval or (after, after)
    outcome: Outcome = "not measured"
    if before is not None and after is not None and low is not None and high is not None:
        if after < before and (high < before or before - after >= SMALL_CHANGE):
            outcome = "opposite"
        elif after - before >= SMALL_CHANGE and low > max(before, chance or 0.0):
            outcome = "works"
        else:
            outcome = "weak"
    return Shift(strength, wanted, other, before, after, low, chance, outcome)
