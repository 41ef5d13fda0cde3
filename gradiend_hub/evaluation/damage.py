"""Damage by the text that it is read on: neutral text, the feature rows' own text, and further sets that a user names.

What an edit is for changes the probability of the classes' outputs wherever one could stand. So on the rows' own text it
is the collateral that counts: the classes' outputs are taken out of the distribution at a position, and the rest is
renormalised. On all other text the whole distribution counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from gradiend_hub.artifact.validation import TWO

NEUTRAL, OWN = "neutral", "own"
"""Names of the sets that every evaluation has if there is text for them."""

GENERATION = "generation"
"""What limits a strength at which continuations are not sound."""


@dataclass(frozen=True)
class Damage:
    """Damage on one set of text at one strength.

    Attributes:
        tokens: scored tokens.
        nll: mean negative log-likelihood per scored token, in nats.
        accuracy: share of those tokens that the model ranks first.
        quality: the base model's nll divided by this nll; 1 is undamaged. `quality_low` is the lower end of its one-sided
            95 % interval, texts counted as units.
        kl: mean KL(base‖edited) of the whole distribution per scored token, in nats.
        collateral_quality, collateral_quality_low, collateral_kl: the same where the classes' outputs are taken out of the
            distribution and the rest is renormalised.
        intervals: 95 % intervals of "nll", "quality", "kl", "collateral_quality" and "collateral_kl".
    """

    tokens: int
    nll: float
    accuracy: float
    quality: float
    quality_low: float
    kl: float | None = None
    collateral_quality: float | None = None
    collateral_quality_low: float | None = None
    collateral_kl: float | None = None
    intervals: dict[str, Annotated[list[float], TWO]] = field(default_factory=dict)

    def counted(self, name: str) -> tuple[float, float]:
        """Return the quality that counts on a set of this name, and its lower end."""
        if self.counted_as(name) == "quality" or self.collateral_quality is None or self.collateral_quality_low is None:
            return self.quality, self.quality_low
        return self.collateral_quality, self.collateral_quality_low

    def counted_as(self, name: str) -> str:
        """Return what counts on a set of this name: "quality", or, on own text, "collateral_quality"."""
        return "collateral_quality" if name == OWN and self.collateral_quality is not None else "quality"


def worst(damage: Mapping[str, Damage], *, bound: bool = True) -> tuple[str, float] | None:
    """Return the set with the lowest quality (its lower end, unless `bound` is false), and that; `None` without sets."""
    if not damage:
        return None
    name = min(damage, key=lambda name: damage[name].counted(name)[bound])
    return name, damage[name].counted(name)[bound]


def set_label(name: str) -> str:
    """Return how people call what limits a dose: a damage set, or the continuations."""
    return {NEUTRAL: "neutral text", OWN: "own text", GENERATION: "continuations"}.get(name, f"the set {name!r}")
