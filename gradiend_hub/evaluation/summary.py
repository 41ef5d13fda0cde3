"""Means over all rows and texts from what was read on some of them, with the intervals that this leaves.

What an edit changes on a text varies far less than the text's likelihood, and what it changes at one strength is nearly what
it changes at the next, times a number. So a value that was read on a few items is regressed on what other strengths gave
there, and the regression says what it would be on all the items that those were read on (two-phase sampling: W. G. Cochran,
Sampling Techniques, 1977, chapter 12). Its residuals are the only error beyond that of all items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .intervals import Array, Numbers, clamp, mean_error, student, upper_bound
from .report import StrengthPoint
from .scores import LEAST_NLL, relative_quality

EFFECT_REACH = 0.04
"""How far the interval of an effect may reach to both sides, whatever reading everything would give."""

DAMAGE_REACH = 0.25
"""The same of a damage, relative to it."""


@dataclass(frozen=True)
class Values:
    """Readings at one strength on the first rows and texts, item by item, in fp64.

    Attributes:
        probability: of each class's words at each row's slot: [rows, classes].
        nll: negative log-likelihood of each scored token: [tokens].
        correct: whether it is ranked first: [tokens].
        kl: KL(base‖edited) of the compared tokens: [≤ tokens].
        readings: other values of each row, by name: [rows].
    """

    probability: Array
    nll: Array
    correct: Array
    kl: Array
    readings: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Items:
    """All rows and tokens that can be read, in the order of reading.

    Attributes:
        classes: the direction's.
        row_class: index of each row's factual class, [rows].
        row_group: number of the template or document that each row is from, [rows].
        text: number of the text that each scored token is of, [tokens], and `compared` those of the compared tokens.
    """

    classes: tuple[str, str]
    row_class: Numbers
    row_group: Numbers
    text: Numbers
    compared: Numbers


@dataclass(frozen=True)
class Figure:
    """The mean of a value over all items, estimated from those that were read.

    Attributes:
        values: of the items that were read, [n].
        mean: of all items.
        error: standard error of `mean`.
        whole: the standard error that reading all items is expected to leave.
        freedom: degrees of freedom of `error`.
        groups: of all items, [N]; see `mean_error`.
    """

    values: Array
    mean: float
    error: float
    whole: float
    freedom: int
    groups: Numbers

    @property
    def missing(self) -> float:
        """Standard error of `mean` as an estimate of what reading all items would give."""
        return math.sqrt(max(0.0, self.error**2 - self.whole**2))

    @property
    def interval(self) -> list[float]:
        """Student's 95 % interval of the mean."""
        return student(self.mean, self.error, self.freedom)


def estimate(values: Array, groups: Numbers, references: Sequence[Figure] = ()) -> Figure:
    """Estimate the mean of a value over all items from the first of them.

    Args:
        values: [n], of the first n items.
        groups: of all items, [N]; see `mean_error`.
        references: the same items' values at other strengths, read on at least n items each.
    """
    count = len(values)
    mean, (error, freedom) = float(values.mean()), mean_error(values, groups[:count])
    if count == len(groups):
        return Figure(values, mean, error, error, freedom, groups)
    wide = min((len(r.values) for r in references), default=count)
    known = np.stack([r.values[:wide] for r in references], 1) if references else np.empty((wide, 0))
    centre = known[:count].mean(0)
    slopes, _, rank, _ = np.linalg.lstsq(known[:count] - centre, values - mean, rcond=None)
    fitted = (known - centre) @ slopes
    basis = np.linalg.svd(known[:count] - centre, full_matrices=False)[0][:, : int(rank)]
    leverage = 1 / count + np.square(basis).sum(1)  # an item that draws the regression to itself has a small residual
    rest = (values - mean - fitted[:count]) / np.clip(1 - leverage, 0.1, 1.0)
    of_rest = mean_error(rest, groups[:count])[0]
    # the variance of all items is that of what the regression says of them, and that of the rest
    shares = [_number(groups[:size]) / _number(groups) for size in (wide, count)]
    whole = math.hypot(math.sqrt(shares[0]) * mean_error(fitted, groups[:wide])[0], math.sqrt(shares[1]) * of_rest)
    missing = math.sqrt(1 - count / len(groups)) * of_rest
    missing = math.hypot(missing, *(float(slope) * r.missing for slope, r in zip(slopes, references, strict=True)))
    mean += float(slopes @ (np.array([r.mean for r in references]) - centre))
    return Figure(values, mean, math.hypot(whole, missing), whole, max(1, freedom - int(rank)), groups)


def difference(first: Figure, second: Figure) -> Figure:
    """Estimate the mean difference of two values over all items from the items that both were read on."""
    count = min(len(first.values), len(second.values))
    return estimate(first.values[:count] - second.values[:count], first.groups)


def _number(groups: Numbers) -> int:
    return len(np.unique(groups))


@dataclass(frozen=True)
class Summary:
    """All figures of one strength.

    Attributes:
        figures: "D on C" (the probability of class D's words on rows of class C), "nll", "accuracy" and "kl".
        rise: of the nll in nats, whose errors are those of its ratio to `before`; `None` without scored tokens.
        before: mean nll of the base model.
    """

    figures: dict[str, Figure]
    rise: Figure | None = None
    before: float = 0.0

    @property
    def expected_damage(self) -> float:
        """1 − `quality_low`, as reading all items is expected to give it; 0 without scored tokens."""
        if self.rise is None:
            return 0.0
        rise = upper_bound(self.rise.mean, self.rise.whole, self.rise.freedom)
        return 1 - relative_quality(self.before + rise, self.before)

    def effect(self, classes: Sequence[str], sign: float) -> Figure | None:
        """Probability of the class that this sign makes likelier on rows of the other one; `None` without such rows."""
        wanted, other = classes if sign > 0 else tuple(classes)[::-1]
        return self.figures.get(f"{wanted} on {other}")

    def narrow(self, classes: Sequence[str], sign: float, wider: float) -> bool:
        """Return whether the intervals of effect and quality are narrow enough for a curve.

        They are if they are at most `wider` times as wide as reading everything is expected to make them, or reach no
        further than `EFFECT_REACH`, respectively `DAMAGE_REACH` of the damage.
        """
        effect, rise = self.effect(classes, sign), self.rise
        reaches = [(effect, EFFECT_REACH), (rise, DAMAGE_REACH * abs(rise.mean) if rise else 0.0)]
        return all(f is None or f.error <= wider * f.whole or 2 * f.error <= reach for f, reach in reaches)

    def point(self, strength: float, classes: Sequence[str]) -> StrengthPoint:
        """The figures as a point of the curve."""
        chances = {
            c: {d: min(max(self.figures[f"{d} on {c}"].mean, 0.0), 1.0) for d in classes}
            for c in classes
            if f"{c} on {c}" in self.figures
        }
        intervals = {n: clamp(f.interval, 0.0, 1.0) for n, f in self.figures.items() if " on " in n}
        others = {n: f for n, f in self.figures.items() if " on " not in n and n not in ("nll", "accuracy", "kl")}
        readings = {n: f.mean for n, f in others.items()}
        intervals |= {n: f.interval for n, f in others.items()}
        if self.rise is None:
            return StrengthPoint(strength, chances, None, None, None, None, intervals=intervals, readings=readings)
        nll, accuracy, kl = (self.figures[name] for name in ("nll", "accuracy", "kl"))
        before, rise = self.before, self.rise
        low, high = rise.interval
        intervals |= {"nll": clamp(nll.interval), "kl": clamp(kl.interval)}
        intervals["quality"] = [relative_quality(before + end, before) for end in (high, low)]
        return StrengthPoint(
            strength,
            chances,
            nll=before + rise.mean,
            accuracy=min(max(accuracy.mean, 0.0), 1.0),
            quality=relative_quality(before + rise.mean, before),
            quality_low=relative_quality(before + upper_bound(rise.mean, rise.error, rise.freedom), before),
            kl=max(0.0, kl.mean),
            intervals=intervals,
            readings=readings,
        )


def summarise(values: Values, items: Items, base: Summary | None = None, other: Summary | None = None) -> Summary:
    """Estimate all figures of one strength.

    Args:
        values: of the first rows and tokens.
        base: of the base model on all items; `None` if these are its values.
        other: of another strength on more items than these, if there is one.
    """
    references = [r for r in (base, other) if r is not None]

    def figure(name: str, own: Array, groups: Numbers) -> Figure:
        return estimate(own, groups, [r.figures[name] for r in references])

    figures = {}
    read = items.row_class[: len(values.probability)]
    for of, name in enumerate(items.classes):
        groups = items.row_group[items.row_class == of]
        for d, word_class in enumerate(items.classes if len(groups) else ()):
            key = f"{word_class} on {name}"
            figures[key] = figure(key, values.probability[read == of, d], groups)
    for name, of_rows in values.readings.items():
        figures[name] = figure(name, of_rows, items.row_group)
    if not len(values.nll):
        return Summary(figures)
    figures["nll"] = nll = figure("nll", values.nll, items.text)
    figures["accuracy"] = figure("accuracy", values.correct, items.text)
    figures["kl"] = figure("kl", values.kl, items.compared)
    if base is None:
        return Summary(figures, Figure(np.zeros_like(nll.values), 0.0, 0.0, 0.0, 1, items.text), nll.mean)
    # other texts would have another mean before, too, and the quality is a ratio to it
    before, count = base.figures["nll"], len(values.nll)
    rise = nll.mean - before.mean
    paired = values.nll - before.values[:count]
    if before.mean > LEAST_NLL:
        paired = paired - rise / before.mean * (before.values[:count] - before.mean)
    whole = estimate(paired, items.text, [other.rise] if other and other.rise else ())
    return Summary(
        figures,
        Figure(
            paired, rise, math.hypot(whole.whole, nll.missing), whole.whole, min(whole.freedom, nll.freedom), items.text
        ),
        before.mean,
    )
