"""What each strength changes: class probabilities at the slots, and the language model's quality on neutral text."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradiend_hub.data import Row, require_classes
from gradiend_hub.errors import DataError, EditError
from gradiend_hub.gradients.directional import evaluating
from gradiend_hub.objectives import Objective, Slots, TokenizedSlots, slot_nll
from gradiend_hub.objectives.base import IGNORED

from .report import StrengthPoint

if TYPE_CHECKING:
    from gradiend_hub.model import GradiendModel

CURVE = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
"""Strengths of the published curve, in units of the recommended dose."""

LM_SCORE_FLOOR = 0.99
"""Lowest language-modelling score, relative to the base model's, at which an edit counts as safe."""

SCORED_TOKENS = 2000
"""Neutral tokens behind a language-modelling score, so that one flipped token cannot reject a dose."""

_MOST_DRAWS = 8
_WIDEST_SEARCH = 2**10


class StrengthProbe:
    """Measures a model at any strength on fixed rows and fixed neutral text, in place and batched.

    Args:
        model: the model whose strength is changed and restored.
        objective: of the base model.
        rows: feature rows of both classes.
        texts: neutral sentences; without any, the language-modelling score is not measured.
        seed: decides which tokens of a masked model's neutral text are scored.
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
    ) -> None:
        self.model = model
        self.objective = objective
        self.classes = require_classes(model.active_peft_config.feature_classes)
        fillers = model.active_peft_config.fillers
        if not fillers:
            raise DataError("The direction's config names no fillers, so class probabilities cannot be read.")
        self._fillers: dict[str, list[str]] = fillers
        self._row_classes = [row.factual_class for row in rows]
        self._readings = sorted(
            (reading for number, row in enumerate(rows) for reading in self._row_readings(number, row)),
            key=lambda reading: len(reading.sample.input_ids),
        )
        self._batches = self._collate([reading.sample for reading in self._readings], batch_size)
        scored = _scored_samples(objective, texts, seed)
        self._scored = self._collate(sorted(scored, key=lambda s: len(s.input_ids)), batch_size)
        self.scored_tokens = sum(len(s.positions) for s in scored)
        self._base_nll: Tensor | None = None
        self._measured: dict[float, StrengthPoint] = {}  # by dose, which does not change with the unit

    def _collate(self, samples: Sequence[TokenizedSlots], batch_size: int) -> list[Slots]:
        return [self.objective.collate(samples[i : i + batch_size]) for i in range(0, len(samples), batch_size)]

    def _row_readings(self, number: int, row: Row) -> list[_Reading]:
        """The inputs in which the classes' words are read, in the case of the word that the row had.

        Words of one token share one input. A longer word's probability is the product over its slots: of as many masks
        in a masked model, of each token after the ones before it in a causal one.
        """
        cased = _capitalised if row.factual[:1].isupper() else str
        fillers = sorted(
            {
                (name, self.objective.filler_tokens(row.masked, cased(word)))
                for name, words in self._fillers.items()
                for word in words
            }
        )
        samples = self.objective.slots(row.masked, [tokens for _, tokens in fillers])
        readings: dict[tuple[int, ...], _Reading] = {}
        for (name, tokens), sample in zip(fillers, samples, strict=True):
            reading = readings.setdefault(sample.input_ids, _Reading(number, sample, {}))
            reading.words.setdefault(name, []).append(tokens)
        return list(readings.values())

    def measure(self, strength: float) -> StrengthPoint:
        """One point of the curve. The model's strength is restored, bit for bit."""
        dose = strength * self.model.active_peft_config.strength_unit
        if dose not in self._measured:
            self._measured[dose] = self._measure(strength)
        return replace(self._measured[dose], strength=strength)

    def _measure(self, strength: float) -> StrengthPoint:
        base = self.model.get_base_model()
        device = next(base.parameters()).device
        with self.model.strength_at(strength), evaluating(base), torch.inference_mode():
            probability = self._probabilities(device)
            nll, correct = self._neutral(device)
        if nll is None or correct is None:
            return StrengthPoint(strength, probability, None, None, None, None)
        if strength == 0:
            self._base_nll = nll
        if self._base_nll is None:
            self.measure(0.0)
        assert self._base_nll is not None
        score, low = _relative_score(self._base_nll, nll)
        return StrengthPoint(strength, probability, float(nll.mean()), float(correct.mean()), score, low)

    def _probabilities(self, device: torch.device) -> dict[str, dict[str, float]]:
        sums = {c: dict.fromkeys(self.classes, 0.0) for c in self.classes}
        readings = iter(self._readings)
        for slots in self._batches:
            for log_probs in self.objective.log_probs(self.model.get_base_model(), slots.to(device)).cpu():
                reading = next(readings)
                for name, words in reading.words.items():
                    tokens = torch.tensor(words).T
                    of_tokens = log_probs[: len(tokens)].gather(1, tokens)  # [tokens of a word, words]
                    sums[self._row_classes[reading.row]][name] += float(of_tokens.sum(0).exp().sum())
        return {c: {d: total / self._row_classes.count(c) for d, total in sums[c].items()} for c in self.classes}

    def _neutral(self, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """Per scored token: negative log-likelihood and whether it is ranked first; each [tokens], fp64."""
        if not self._scored:
            return None, None
        nlls, correct = [], []
        for slots in self._scored:
            slots = slots.to(device)
            log_probs = self.objective.log_probs(self.model.get_base_model(), slots)
            real = slots.labels != IGNORED
            labels = slots.labels[real].unsqueeze(-1)
            chosen = log_probs[real]
            nlls.append(slot_nll(chosen.unsqueeze(1), labels).double().cpu())
            correct.append((chosen.argmax(-1) == labels.squeeze(-1)).double().cpu())
        return torch.cat(nlls), torch.cat(correct)

    def effect(self, up: StrengthPoint, down: StrengthPoint) -> float:
        """P(c₊) on rows of c₋ at a positive strength plus P(c₋) on rows of c₊ at the negative one."""
        first, second = self.classes
        return up.probability[second][first] + down.probability[first][second]


@dataclass(frozen=True)
class _Reading:
    """One input of a row, and the words by class whose tokens are read at its slots."""

    row: int
    sample: TokenizedSlots
    words: dict[str, list[tuple[int, ...]]]


def _capitalised(word: str) -> str:
    return word[:1].upper() + word[1:]


def _relative_score(base: Tensor, edited: Tensor) -> tuple[float, float]:
    """mean(base)/mean(edited) and its lower bound; the standard error is that of the paired difference per token."""
    mean = float(base.mean())
    difference = edited - base
    error = float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else 0.0
    change = float(difference.mean())
    return mean / (mean + change), mean / (mean + change + 1.645 * error)


def _scored_samples(objective: Objective, texts: Sequence[str], seed: int) -> list[TokenizedSlots]:
    """At least `SCORED_TOKENS` tokens to score, if the texts have them: masked texts are masked again until it is so."""
    rng = random.Random(seed)
    samples: list[TokenizedSlots] = []
    drawn: list[TokenizedSlots] = []
    for _ in range(_MOST_DRAWS):
        former, drawn = drawn, [s for text in texts for s in objective.scored_text(text, rng)]
        if drawn == former:  # a causal model scores every token at once; the same ones again would say nothing new
            break
        samples += drawn
        if sum(len(s.positions) for s in samples) >= SCORED_TOKENS:
            break
    return samples


def calibrate(probe: StrengthProbe, *, floor: float = LM_SCORE_FLOOR, refinements: int = 2) -> list[StrengthPoint]:
    """Find the dose with the best effect that leaves the language model intact, and make it strength ±1.

    A dose is safe if the lower bound of its language-modelling score reaches `floor` at both signs. From
    ‖Δ‖ = ‖W‖/256 doses double while they are safe (or halve until one is); the gap to the first unsafe one is then halved
    geometrically `refinements` times. The config's `strength_unit` becomes the safe dose with the best effect.

    Returns:
        Every point that was measured, its strength in the new unit.

    Raises:
        EditError: even the smallest dose damages the model.
    """
    model, config = probe.model, probe.model.active_peft_config
    former = config.strength_unit
    with model.strength_at(1.0):
        start = former / (256 * model.receipt.relative_norm)
    tried: dict[float, tuple[StrengthPoint, StrengthPoint]] = {}

    def safe(dose: float) -> bool:
        tried[dose] = probe.measure(dose / former), probe.measure(-dose / former)
        return all(p.lm_score_low is None or p.lm_score_low >= floor for p in tried[dose])

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
    while high not in tried and safe(high) and high < start * _WIDEST_SEARCH:
        low = high
        if effect(high) < effect(best):
            break  # past the best effect; without neutral text nothing else ends the search
        best, high = high, 2 * high
    for _ in range(refinements):
        middle = math.sqrt(low * high)
        if low < high and safe(middle):
            low = middle
            best = max(best, middle, key=effect)
        else:
            high = middle
    with model.strength_at(0.0):  # a strength in force afterwards is applied anew, in the new unit
        config.strength_unit = best
    points = (replace(p, strength=p.strength * former / best) for pair in tried.values() for p in pair)
    return sorted(points, key=lambda p: p.strength)


def safe_band(curve: Sequence[StrengthPoint], *, floor: float = LM_SCORE_FLOOR) -> list[float] | None:
    """Lowest and highest measured strength around 0 up to which the language-modelling score stays above `floor`."""
    if any(p.lm_score is None for p in curve):
        return None
    band = [0.0, 0.0]
    for side, sign in ((0, -1), (1, 1)):
        for point in sorted((p for p in curve if p.strength * sign > 0), key=lambda p: abs(p.strength)):
            if point.lm_score is None or point.lm_score < floor:
                break
            band[side] = point.strength
    return band
