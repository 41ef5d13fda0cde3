"""Means over all rows and texts from what was read on some of them, with the intervals that this leaves.

What an edit changes on a text varies far less than the text's likelihood, and what it changes at one strength is nearly what
it changes at the next, times a number. So a value that was read on a few items is regressed on what other strengths gave
there, and the regression says what it would be on all the items that those were read on (two-phase sampling: W. G. Cochran,
Sampling Techniques, 1977, chapter 12). Its residuals are the only error beyond that of all items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from .damage import NEUTRAL, OWN, Damage
from .intervals import Array, Numbers, bounded_interval, mean_error, not_negative, student, upper_bound
from .records import StrengthPoint
from .scores import LEAST_NLL, relative_quality

EFFECT_REACH = 0.04
"""How far the interval of an effect may reach to both sides, whatever reading everything would give."""

DAMAGE_REACH = 0.25
"""The same of a damage, relative to it."""


@dataclass(frozen=True)
class Scores:
    """Readings of one damage set at one strength, token by token, in fp64.

    Collateral is what is left where the classes' outputs are taken out of the distribution and the rest is renormalised.

    Attributes:
        nll: negative log-likelihood of each scored token: [tokens].
        correct: whether it is ranked first: [tokens].
        collateral_nll: nll within the rest, of the tokens that are in it: [≤ tokens].
        kl: KL(base‖edited) of the compared tokens: [≤ tokens], and `collateral_kl` that of the rest.
    """

    nll: Array
    correct: Array
    collateral_nll: Array
    kl: Array
    collateral_kl: Array

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """Put readings of parts behind each other."""
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)))


@dataclass(frozen=True)
class Values:
    """Readings at one strength on the first rows and damage sets, item by item, in fp64.

    Attributes:
        probability: of each class's outputs at each row's slot: [rows, classes].
        within: KL(base‖edited) of the distribution over the outputs of one class at each slot: [rows, classes].
        slot_kl: KL(base‖edited) of the rest there, where distributions are compared: [≤ rows].
        readings: other values of each row, by name: [rows].
        sets: of each damage set.
    """

    probability: Array
    within: Array
    slot_kl: Array
    readings: dict[str, Array]
    sets: dict[str, Scores]

    @classmethod
    def joined(cls, parts: Sequence[Values]) -> Values:
        """Put readings of parts behind each other."""
        rows = {n: np.concatenate([getattr(p, n) for p in parts]) for n in ("probability", "within", "slot_kl")}
        names = dict.fromkeys(name for part in parts for name in part.sets)
        sets = {name: Scores.joined([p.sets[name] for p in parts if name in p.sets]) for name in names}
        readings = {name: np.concatenate([p.readings[name] for p in parts]) for name in parts[0].readings}
        return cls(**rows, readings=readings, sets=sets)


@dataclass(frozen=True)
class SetItems:
    """All tokens of a damage set that can be read, in the order of reading.

    Attributes:
        text: number of the text that each scored token is of, [tokens].
        collateral: the same of the tokens that are no output of a class, and `compared` of the compared ones.
    """

    text: Numbers
    collateral: Numbers
    compared: Numbers

    @classmethod
    def joined(cls, parts: Sequence[SetItems]) -> SetItems:
        """Put parts behind each other."""
        empty = np.empty(0, np.int64)
        return cls(*(np.concatenate([empty, *(getattr(p, f.name) for p in parts)]) for f in fields(cls)))


@dataclass(frozen=True)
class Items:
    """All rows and tokens that can be read, in the order of reading.

    Attributes:
        classes: the direction's.
        row_class: index of each row's factual class, [rows].
        row_group: number of the template or document that each row is from, [rows].
        slot_group: the same of the rows whose distributions are compared.
        shaped: classes with several outputs.
        sets: the damage sets.
    """

    classes: tuple[str, str]
    row_class: Numbers
    row_group: Numbers
    slot_group: Numbers
    shaped: tuple[str, ...]
    sets: dict[str, SetItems]


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

    @property
    def share_interval(self) -> list[float]:
        """95 % interval of the mean of values in [0, 1], which stays in there."""
        return bounded_interval(self.mean, self.error, self.freedom)


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
class Rise:
    """Rise of a mean NLL in nats over that of the base model, `before`; the figure's errors are those of their ratio."""

    figure: Figure
    before: float

    @property
    def expected_damage(self) -> float:
        """Upper bound of the damage, as reading all items is expected to give it."""
        bound = upper_bound(self.figure.mean, self.figure.whole, self.figure.freedom)
        return 1 - relative_quality(self.before + bound, self.before)

    @property
    def quality(self) -> float:
        """The base model's mean NLL divided by the edited model's."""
        return relative_quality(self.before + self.figure.mean, self.before)

    @property
    def quality_low(self) -> float:
        """Lower end of the quality's one-sided 95 % interval."""
        bound = upper_bound(self.figure.mean, self.figure.error, self.figure.freedom)
        return relative_quality(self.before + bound, self.before)

    @property
    def interval(self) -> list[float]:
        """95 % interval of the quality."""
        low, high = self.figure.interval
        return [relative_quality(self.before + end, self.before) for end in (high, low)]


class Summary:
    """The figures of one strength, each estimated when it is asked for.

    Args:
        values: of the first rows and tokens.
        items: all that there are.
        base: of the base model on all items; `None` if these are its values.
        other: of another strength on more items than these, if there is one.
    """

    def __init__(self, values: Values, items: Items, base: Summary | None = None, other: Summary | None = None) -> None:
        self.values, self.items = values, items
        self._base, self._other = base, other
        self._figures: dict[tuple[str, ...], Figure | None] = {}
        self._rises: dict[tuple[str, str], Rise | None] = {}

    def _figure(self, key: tuple[str, ...], own: Array, groups: Numbers) -> Figure | None:
        """Estimate a figure from its values, [n], of all items' groups [N]; `None` without values."""
        if key not in self._figures:
            known = [r for r in (self._base, self._other) if r is not None]
            references = [f for r in known if (f := r.figure(*key)) is not None]
            self._figures[key] = estimate(own, groups, references) if len(own) else None
        return self._figures[key]

    def figure(self, *key: str) -> Figure | None:
        """Return a figure by its key; `None` where there is nothing to read it from.

        Args:
            key: ("on", D, C) for the probability of class D's outputs on rows of class C; ("within", C) for the KL within
                class C; ("slot",) for the collateral KL at the slots; ("row", NAME) for another reading of the rows;
                (SET, NAME) for a value of a damage set.
        """
        items, values = self.items, self.values
        read = items.row_class[: len(values.probability)]
        match key:
            case ("on", wanted, other):
                of, column = items.classes.index(other), items.classes.index(wanted)
                return self._figure(key, values.probability[read == of, column], items.row_group[items.row_class == of])
            case ("within", name):
                return self._figure(key, values.within[:, items.classes.index(name)], items.row_group)
            case ("slot",):
                return self._figure(key, values.slot_kl, items.slot_group)
            case ("row", name):
                return self._figure(key, values.readings[name], items.row_group)
        of_set, name = key
        if of_set not in values.sets:  # none in the parts that were read
            return None
        groups = items.sets[of_set]
        texts = {"collateral_nll": groups.collateral, "kl": groups.compared, "collateral_kl": groups.compared}
        return self._figure(key, getattr(values.sets[of_set], name), texts.get(name, groups.text))

    def rise(self, of_set: str, name: str = "") -> Rise | None:
        """Return the rise of "nll" or "collateral_nll" on a damage set, by default of what counts as its damage."""
        key = of_set, name or ("collateral_nll" if of_set == OWN else "nll")
        if key not in self._rises:
            self._rises[key] = self._rise(*key)
        return self._rises[key]

    def _rise(self, of_set: str, name: str) -> Rise | None:
        nll = self.figure(of_set, name)
        if nll is None:
            return None
        groups = nll.groups
        if self._base is None:
            return Rise(Figure(np.zeros_like(nll.values), 0.0, 0.0, 0.0, 1, groups), nll.mean)
        # other texts would have another mean before, too, and the quality is a ratio to it
        before, count = self._base.figure(of_set, name), len(nll.values)
        assert before is not None
        rise = nll.mean - before.mean
        paired = nll.values - before.values[:count]
        if before.mean > LEAST_NLL:
            paired = paired - rise / before.mean * (before.values[:count] - before.mean)
        other = self._other.rise(of_set, name) if self._other else None
        whole = estimate(paired, groups, [other.figure] if other else ())
        error = math.hypot(whole.whole, nll.missing)
        return Rise(Figure(paired, rise, error, whole.whole, min(whole.freedom, nll.freedom), groups), before.mean)

    @property
    def rises(self) -> dict[str, Rise]:
        """Damage of each set that counts."""
        return {name: rise for name in self.items.sets if (rise := self.rise(name))}

    @property
    def expected_damage(self) -> float:
        """Largest damage of a set, as reading all items is expected to bound it; 0 without a set."""
        return max((rise.expected_damage for rise in self.rises.values()), default=0.0)

    def effect(self, sign: float) -> Figure | None:
        """Probability of the class that this sign makes likelier on rows of the other one; `None` without such rows."""
        wanted, other = self.items.classes if sign > 0 else self.items.classes[::-1]
        return self.figure("on", wanted, other)

    def narrow(self, sign: float, wider: float) -> bool:
        """Return whether the intervals of the effect and of the worst damage are narrow enough for a curve.

        They are if they are at most `wider` times as wide as reading everything is expected to make them, or reach no
        further than `EFFECT_REACH`, respectively `DAMAGE_REACH` of the damage.
        """
        effect, worst = self.effect(sign), max(self.rises.values(), key=lambda r: r.expected_damage, default=None)
        reaches = [(effect, EFFECT_REACH)]
        if worst is not None:
            reaches.append((worst.figure, DAMAGE_REACH * abs(worst.figure.mean)))
        return all(f is None or f.error <= wider * f.whole or 2 * f.error <= reach for f, reach in reaches)

    def point(self, strength: float) -> StrengthPoint:
        """The figures as a point of the curve."""
        chances: dict[str, dict[str, float]] = {}
        intervals = {}
        for of in self.items.classes:
            for wanted in self.items.classes:
                if found := self.figure("on", wanted, of):
                    chances.setdefault(of, {})[wanted] = min(max(found.mean, 0.0), 1.0)
                    intervals[f"{wanted} on {of}"] = found.share_interval
        slot = {}
        for key in (("slot",), *(("within", of) for of in self.items.shaped)):
            if found := self.figure(*key):
                name = " ".join(key) if key[1:] else "collateral"
                slot[name], intervals[f"slot {name}"] = max(0.0, found.mean), not_negative(found.interval)
        readings = {}
        for name in self.values.readings:
            if found := self.figure("row", name):
                readings[name], intervals[name] = found.mean, found.interval
                if np.isin(found.values, (0.0, 1.0)).all():  # the mean is a share of the items
                    readings[name], intervals[name] = min(max(found.mean, 0.0), 1.0), found.share_interval
        damage = {name: self._damage(name) for name in self.rises}
        plain = damage.get(NEUTRAL)
        if plain is not None:
            intervals |= {name: plain.intervals[name] for name in ("nll", "quality", "kl")}
        names = ("nll", "accuracy", "quality", "quality_low", "kl")
        figures = {name: getattr(plain, name, None) for name in names}  # None without neutral text
        return StrengthPoint(
            strength, chances, **figures, intervals=intervals, readings=readings, damage=damage, slot=slot
        )

    def _damage(self, of_set: str) -> Damage:
        """Return the figures of a set whose damage was read."""
        intervals: dict[str, list[float]] = {}
        means: dict[str, float] = {}
        for name in ("nll", "correct", "kl", "collateral_kl"):
            if found := self.figure(of_set, name):
                means[name], intervals[name] = max(0.0, found.mean), not_negative(found.interval)
                if name == "correct":
                    intervals[name] = found.share_interval
        plain, rest = self.rise(of_set, "nll"), self.rise(of_set, "collateral_nll")
        assert plain is not None
        intervals |= {"quality": plain.interval} | ({"collateral_quality": rest.interval} if rest else {})
        return Damage(
            tokens=len(self.items.sets[of_set].text),
            nll=plain.before + plain.figure.mean,
            accuracy=min(means["correct"], 1.0),
            quality=plain.quality,
            quality_low=plain.quality_low,
            kl=means.get("kl"),
            collateral_quality=rest.quality if rest else None,
            collateral_quality_low=rest.quality_low if rest else None,
            collateral_kl=means.get("collateral_kl"),
            intervals=intervals,
        )
