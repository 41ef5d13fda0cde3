"""Class probabilities at the slots, and the model's quality on neutral text, at any strength."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from gradiend_hub.data import Row, require_classes
from gradiend_hub.errors import DataError
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import Objective, QualityItem, evaluating
from gradiend_hub.progress import tick

from .damage import NEUTRAL
from .distributions import Rest
from .intervals import groups_of, spread
from .own import OwnText
from .part import Item, NotFiniteError, Part
from .records import StrengthPoint
from .summary import Items, SetItems, Summary, Values

SCORED_TOKENS = 2000
"""Neutral tokens behind a quality, so that one flipped token cannot reject a dose."""

OWN_TOKENS = 1000
"""Tokens of the rows' own texts behind a collateral damage."""

KL_VALUES = 2**26
"""Most values of the base model's distributions that are kept (268 MB); beyond that, fewer tokens are compared."""

FIRST = 24
"""Rows of each class, and texts, that a first look takes at least. Each further part is as large as all before it."""

_MOST_DRAWS = 8
"""Times that a masked text is masked, each time at other tokens."""


class StrengthProbe:
    """Measures a model at any strength on fixed rows and fixed damage sets, in place and batched.

    Rows and texts are in parts, each evenly spread over all; a strength is read part by part, as far as it has to be. From
    some of them, the figures of all are estimated (see `summary`).

    Args:
        model: the model whose strength is changed and restored.
        objective: of the base model.
        rows: feature rows; a class without rows has no probabilities.
        texts: neutral sentences; without any, damage on them is not measured.
        seed: decides which tokens of a masked model's texts are scored.
        tokens: neutral tokens to score at least, if the texts have them.
        own: tokens of the rows' own texts to score, about; by default none.
        others: further damage sets by name.
        exhaustive: read everything at every strength.

    Raises:
        DataError: no row, or a row where a class's word cannot be read (see `require_readable`).
    """

    def __init__(
        self,
        model: GradiendModel,
        objective: Objective,
        rows: Sequence[Row],
        texts: Sequence[str] = (),
        *,
        batch_size: int = 32,
        seed: int = 0,
        tokens: int = SCORED_TOKENS,
        own: int = 0,
        others: Mapping[str, Sequence[QualityItem]] | None = None,
        exhaustive: bool = False,
    ) -> None:
        self.model, self.objective, self.seed = model, objective, seed
        self.batch_size, self.exhaustive = batch_size, exhaustive
        self.classes = require_classes(model.active_peft_config.feature_classes)
        if not rows:
            raise DataError("No rows: class probabilities need rows of at least one class.")
        fillers = model.active_peft_config.fillers or {}
        words = {c: fillers.get(c, []) for c in self.classes}
        items = [
            Item(number, self.classes.index(row.factual_class), int(group), objective.readings(row, words))
            for number, (row, group) in enumerate(zip(rows, groups_of(rows), strict=True))
        ]
        outputs = objective.class_outputs(words, [reading for item in items for reading in item.readings])
        self._rest = Rest(outputs, objective.width)
        self._own = OwnText(objective, rows, outputs, own, seed)
        self._alike: StrengthProbe | None = None
        draws = min(_MOST_DRAWS, 1 + tokens // max(len(texts), 1))  # a draw has an output of each text, or more
        neutral = objective.quality_items(texts, labels=tokens, draws=draws, seed=seed)
        self._fill(
            items, ({NEUTRAL: neutral} if neutral else {}) | {n: list(of) for n, of in (others or {}).items() if of}
        )

    def _fill(self, rows: Sequence[Item], sets: Mapping[str, Sequence[QualityItem]]) -> None:
        """Take what is to be measured, in parts."""
        self._rows, self._sets = rows, sets
        sizes = Counter(item.row_class for item in rows)
        numbers = {
            name: {unit: number for number, unit in enumerate(sorted({item.unit for item in of}))}
            for name, of in sets.items()
        }
        most = 0 if self.exhaustive else max(map(_halvings, (*sizes.values(), *map(len, numbers.values()))))
        parts: list[tuple[list[Item], dict[str, list[QualityItem]]]] = [
            ([], {name: [] for name in sets}) for _ in range(most + 1)
        ]
        of_class = {name: iter(_parts(size, most)) for name, size in sizes.items()}
        for item in rows:
            parts[next(of_class[item.row_class])][0].append(item)
        for name, of in sets.items():
            of_unit = _parts(len(numbers[name]), most)
            for scored in of:
                parts[of_unit[numbers[name][scored.unit]]][1][name].append(scored)
        share = self._own.share([item.number for item in rows])
        filled = [self._own.added(items, quality, share) for items, quality in parts]
        labels = sum(len(item.sample.labels) for _, part in filled for of in part.values() for item in of)
        own = sum(len(item.readings[0].sample.labels) for part, _ in filled for item in part if item.own)
        kept = min(1.0, KL_VALUES / (2 * self.objective.width * max(labels + len(rows) + own, 1)))
        self.parts = [
            Part(
                self.objective,
                *part,
                self._rest,
                batch_size=self.batch_size,
                share=kept,
                seed=self.seed + 1000 * number,
            )
            for number, part in enumerate(filled)
        ]
        ordered = [item for part in self.parts for item in part.items]
        names = dict.fromkeys(name for part in self.parts for name in part.set_items)
        several = [
            c for n, c in enumerate(self.classes) if any(sum(len(r.outputs[n]) for r in i.readings) > 1 for i in rows)
        ]
        self.items = Items(
            self.classes,
            np.array([item.row_class for item in ordered]),
            np.array([item.group for item in ordered]),
            np.concatenate([part.slot_groups for part in self.parts]),
            tuple(several),
            {n: SetItems.joined([p.set_items[n] for p in self.parts if n in p.set_items]) for n in names},
        )
        self._forget()

    @property
    def scored(self) -> dict[str, int]:
        """Scored tokens by damage set."""
        return {name: len(items.text) for name, items in self.items.sets.items() if len(items.text)}

    def _forget(self) -> None:
        self._read: dict[float, list[Values]] = {}  # by dose, which does not change with the unit: parts that were read
        self._broken: dict[float, NotFiniteError] = {}
        self._summaries: dict[float, Summary] = {}

    def subset(self, rows: int, tokens: int) -> StrengthProbe:
        """A probe on up to `rows` rows of each class and on texts of about `tokens` scored tokens of each damage set."""
        chosen = [
            item
            for of in range(len(self.classes))
            for item in spread([i for i in self._rows if i.row_class == of], rows)
        ]
        sets = {}
        for name, items in self._sets.items():
            count = round(len(items) * min(1.0, tokens / max(self.scored[name], 1)))
            sets[name] = spread(items, max(count, min(2, len(items))))
        probe = copy.copy(self)
        probe._own = replace(self._own, tokens=min(self._own.tokens, tokens))
        probe._fill(chosen, sets)
        return probe

    def aside(self, model: GradiendModel | None = None, *, like: bool = False) -> StrengthProbe:
        """A probe on the same rows and texts for another direction; it knows the base model's figures.

        Args:
            model: with the other direction on the same base model; default: this one, which is given the direction later.
            like: the other direction changes nearly what this one does, so that what was read of this one tells much of
                it: a few readings give its figures as exactly as all would.
        """
        self._extend(0.0)
        probe = copy.copy(self)
        probe.model = model or self.model
        probe._forget()
        probe._alike = self if like else None
        probe._read[0.0] = self._read[0.0]
        return probe

    def measure(self, strength: float, wider: float | None = None) -> StrengthPoint:
        """One point of the curve. The model's strength is restored, bit for bit.

        Args:
            wider: read only until the intervals of effect and quality are at most this many times as wide as those that
                everything is expected to give, or narrow enough (see `Summary.narrow`); by default, read everything.

        Raises:
            NotFiniteError: a probability or a log-likelihood is NaN or infinite.
        """
        dose = strength * self.model.active_peft_config.strength_unit
        return replace(self.measure_dose(dose, wider), strength=strength)

    def measure_dose(self, dose: float, wider: float | None = None) -> StrengthPoint:
        """`measure` at a strength times unit, whatever the unit is; the point's strength is the dose."""
        if wider is None:
            self._extend(dose)
        while wider is not None and not self.summary(dose).narrow(dose, wider) and self.more(dose):
            pass
        return self.summary(dose).point(dose)

    def more(self, dose: float) -> bool:
        """Read a dose on the next part. Returns whether there was one."""
        done = self._done(dose)
        self._extend(dose, done + 1)
        return done < len(self.parts)

    def summary(self, dose: float) -> Summary:
        """The figures of a dose, as far as it was read; on the first part, at least."""
        key = _key(dose)
        if key in self._broken or not self._done(dose):
            self._extend(dose, 1)
        if key not in self._summaries:
            base = other = None
            if key:
                base = self.summary(0.0)
                closer = [k for k in self._read if k * key > 0 and len(self._read[k]) > len(self._read[key])]
                if closer:  # the dose with the most similar changes
                    other = self.summary(min(closer, key=lambda k: abs(math.log(k / key))))
                elif self._alike is not None and self._alike._done(dose) > self._done(dose):
                    other = self._alike.summary(dose)
            self._summaries[key] = Summary(self.values(dose), self.items, base, other)
        return self._summaries[key]

    def values(self, dose: float) -> Values:
        """Return the readings of a dose, item by item in the order of `items`; of everything, if nothing was read."""
        if not self._done(dose):
            self._extend(dose)
        return Values.joined(self._read[_key(dose)])

    def _done(self, dose: float) -> int:
        return len(self._read.get(_key(dose), ()))

    def _extend(self, dose: float, count: int | None = None) -> None:
        """Read a dose on the first `count` parts, or on all of them. The base model is always read on all."""
        key = _key(dose)
        if key in self._broken:
            raise self._broken[key]
        if key:
            self._extend(0.0)  # others are compared with it
        read = self._read.setdefault(key, [])
        left = self.parts[len(read) : count if key else None]
        if not left:
            return
        base, strength = self.model.get_base_model(), dose / self.model.active_peft_config.strength_unit
        self._summaries.clear()
        with self.model.strength_at(strength), evaluating(base), torch.inference_mode():
            for part in left:
                try:
                    read.append(part.read(base, strength))
                except NotFiniteError as error:
                    self._broken[key] = error
                    del self._read[key]
                    raise
        tick()

    def damage(self, dose: float) -> float:
        """Bound of the worst damage, as reading everything is expected to give it; infinite where there is NaN."""
        try:
            return self.summary(dose).expected_damage
        except NotFiniteError:
            return math.inf

    def dose_of(self, part: int) -> float:
        """The dose at which ‖Δ‖ = ‖W‖/`part`."""
        with self.model.strength_at(1.0):
            return float(self.model.active_peft_config.strength_unit / (part * self.model.receipt.relative_norm))

    def effect(self, up: StrengthPoint, down: StrengthPoint) -> float:
        """P(c₊) on rows of c₋ at a positive strength plus P(c₋) on rows of c₊ at the negative one, of those with rows."""
        return sum(e for e in (up.effect, down.effect) if e is not None)


def _key(dose: float) -> float:
    """The dose, so that a product and a quotient of the same numbers are one."""
    return float(f"{dose:.12g}")


def _halvings(count: int) -> int:
    """Return how often some items are halved until about a first look is left."""
    return max(0, round(math.log2(max(count, 1) / FIRST)))


def _parts(count: int, most: int) -> list[int]:
    """Return the part of each of `count` items: the last has half of them, the one before half of the others.

    All parts before another are about evenly spread over all items: they are the first ones of a van der Corput sequence.
    """
    bits = max(count - 1, 0).bit_length()
    order = sorted(range(count), key=lambda number: f"{number:0{bits}b}"[::-1])
    found = [0] * count
    halvings = _halvings(count) if most else 0
    for halving in range(halvings):  # of the last part first
        for number in order[max(FIRST, math.ceil(count / 2 ** (halving + 1))) : math.ceil(count / 2**halving)]:
            found[number] = most - halving
    return found
