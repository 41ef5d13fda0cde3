"""What each strength changes: class probabilities at the slots, and the language model's quality on neutral text."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from gradiend_hub.data import Row, require_classes
from gradiend_hub.errors import DataError, EditError
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import IGNORED, Batch, Objective, QualityItem, Reading, Sample, batched, evaluating
from gradiend_hub.progress import tick

from .intervals import Array, Numbers, clamp, mean_bound, mean_interval, spread
from .report import StrengthPoint
from .scores import relative_quality

SCORED_TOKENS = 2000
"""Neutral tokens behind a language-modelling score, so that one flipped token cannot reject a dose."""

KL_VALUES = 2**26
"""Most values of the base model's distributions that are kept (268 MB); beyond that, fewer tokens are compared."""

LOGITS = 2**26
"""Most logits of a batch, whatever its number of rows."""

_MOST_DRAWS = 8
"""Times that a masked text is masked, each time at other tokens."""


class NotFiniteError(EditError):
    """At this strength the model computes NaN or infinity."""


@dataclass(frozen=True)
class _Item:
    """One feature row: its number, its class, and the inputs in which the classes' words are read."""

    number: int
    row_class: int
    readings: list[Reading]


@dataclass(frozen=True)
class Values:
    """What was read at one strength, item by item, in fp64.

    Attributes:
        probability: of each class's words at each row's slot: [rows, classes].
        nll: negative log-likelihood of each scored token: [tokens].
        correct: whether it is ranked first: [tokens].
        kl: KL(base‖edited) of the compared tokens: [≤ tokens].
    """

    probability: Array
    nll: Array
    correct: Array
    kl: Array


@dataclass(frozen=True)
class _Compared:
    """The base model's distributions at scored tokens: p and log p, [tokens, vocabulary]; `picked` ones if not all."""

    picked: Tensor | None
    probs: Tensor
    log_probs: Tensor

    @classmethod
    def of(cls, log_probs: Tensor, share: float, seed: int) -> _Compared:
        picked = None
        if share < 1:
            drawn = torch.randperm(len(log_probs), generator=torch.Generator().manual_seed(seed))
            picked = drawn[: math.ceil(share * len(log_probs))].to(log_probs.device)
            log_probs = log_probs[picked]
        probs = log_probs.exp()
        return cls(picked, probs, log_probs.masked_fill(probs == 0, 0.0))

    def divergence(self, log_probs: Tensor) -> Tensor:
        """KL(base‖edited) of each compared token, [tokens]: Σ p·(log p − log q), where p = 0 counts for nothing."""
        if self.picked is not None:
            log_probs = log_probs[self.picked]
        terms: Tensor = torch.linalg.vecdot(self.probs, self.log_probs - log_probs)
        if bool(terms.isfinite().all()):
            return terms
        return (self.probs * (self.log_probs - log_probs)).masked_fill(self.probs == 0, 0.0).sum(-1)  # q = 0 where p is


class StrengthProbe:
    """Measures a model at any strength on fixed rows and fixed neutral text, in place and batched.

    Args:
        model: the model whose strength is changed and restored.
        objective: of the base model.
        rows: feature rows; a class without rows has no probabilities.
        texts: neutral sentences; without any, the language-modelling score is not measured.
        seed: decides which tokens of a masked model's neutral text are scored.
        tokens: neutral tokens to score at least, if the texts have them.

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
    ) -> None:
        self.model = model
        self.objective = objective
        self.seed = seed
        self.classes = require_classes(model.active_peft_config.feature_classes)
        if not rows:
            raise DataError("No rows: class probabilities need rows of at least one class.")
        fillers = model.active_peft_config.fillers
        words = {c: fillers[c] for c in self.classes if c in fillers} if fillers else None
        self.batch_size = batch_size
        items = [
            _Item(number, self.classes.index(row.factual_class), objective.readings(row, words or {}))
            for number, row in enumerate(rows)
        ]
        draws = min(_MOST_DRAWS, 1 + tokens // max(len(texts), 1))  # a draw has an output of each text, or more
        self._fill(items, objective.quality_items(texts, labels=tokens, draws=draws, seed=seed))

    def _fill(self, items: list[_Item], scored: list[QualityItem]) -> None:
        """Take what is to be measured, in batches of about equal length."""
        readings = [(place, reading) for place, item in enumerate(items) for reading in item.readings]
        batches = self._batched([reading.sample for _, reading in readings])
        self._items = items
        self._places = torch.tensor([readings[i][0] for chosen in batches for i in chosen])
        self._batches = [
            (
                self.objective.collate([readings[i][1].sample for i in chosen]),
                _padded([readings[i][1].outputs for i in chosen]),
            )
            for chosen in batches
        ]
        self._samples = scored
        batches = self._batched([item.sample for item in scored])
        self._scored = [self.objective.collate([scored[i].sample for i in chosen]) for chosen in batches]
        self._texts = [
            np.repeat([scored[i].unit for i in chosen], [len(scored[i].sample.labels) for i in chosen])
            for chosen in batches
        ]  # the text of each token, by batch
        self.scored = sum(map(len, self._texts))
        self._compared: list[_Compared] = []  # of each scored batch
        self._base: Values | None = None
        self._measured: dict[float, StrengthPoint] = {}  # by dose, which does not change with the unit

    def subset(self, rows: int, tokens: int) -> StrengthProbe:
        """A probe on up to `rows` rows of each class and on neutral texts of about `tokens` scored tokens."""
        classes = range(len(self.classes))
        chosen = [item for of in classes for item in spread([i for i in self._items if i.row_class == of], rows)]
        texts = round(len(self._samples) * min(1.0, tokens / max(self.scored, 1)))
        probe = copy.copy(self)
        probe._fill(chosen, spread(self._samples, max(texts, min(2, len(self._samples)))))
        return probe

    def _batched(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Group samples into batches of at most `batch_size` rows and `LOGITS` logits."""
        widths = [len(sample.positions) for sample in samples]
        most = max(LOGITS // self.objective.width, 1)
        return batched([sample.cost for sample in samples], self.batch_size, widths=widths, most=most)

    def measure(self, strength: float) -> StrengthPoint:
        """One point of the curve. The model's strength is restored, bit for bit.

        Raises:
            NotFiniteError: a probability or a log-likelihood is NaN or infinite.
        """
        return replace(self.measure_dose(strength * self.model.active_peft_config.strength_unit), strength=strength)

    def measure_dose(self, dose: float) -> StrengthPoint:
        """`measure` at a strength times unit, whatever the unit is; the point's strength is the dose."""
        if dose not in self._measured:
            base = self.base
            values = base if dose == 0 else self.read(dose / self.model.active_peft_config.strength_unit)
            self._measured[dose] = self.summarise(dose, values)
        return self._measured[dose]

    @property
    def base(self) -> Values:
        """What the base model does: strength 0."""
        if self._base is None:
            self._base = self.read(0.0)
        return self._base

    def read(self, strength: float) -> Values:
        """Everything at one strength of the active direction, item by item, in the probe's own order."""
        if strength != 0:
            _ = self.base  # KL compares with it
        base = self.model.get_base_model()
        device = next(base.parameters()).device
        with self.model.strength_at(strength), evaluating(base), torch.inference_mode():
            read = torch.cat([self._class_probabilities(base, *batch, device) for batch in self._batches]).cpu()
            tokens = [self._score(base, number, device) for number in range(len(self._scored))]
        nll, correct, kl = (torch.cat(parts) for parts in zip(*tokens, strict=True)) if tokens else [torch.empty(0)] * 3
        probability = torch.zeros(len(self._items), len(self.classes), dtype=read.dtype).index_add_(
            0, self._places, read
        )
        values = Values(*(part.double().cpu().numpy() for part in (probability, nll, correct, kl)))
        self._check_finite(strength, values)
        tick()
        return values

    def _class_probabilities(self, base: nn.Module, slots: Batch, words: Tensor, device: torch.device) -> Tensor:
        """Summed probability of each class's words: [B, C] of their token ids [B, C, W, K] (−1 where there are fewer)."""
        rows, classes, count, length = words.shape
        words = words.to(device).movedim(3, 1).flatten(2)  # [B, K, C·W]
        log_probs = self.objective.log_probs(base, slots.to(device))[:, :length]
        of_tokens = log_probs.gather(2, words.clamp(min=0)).double() * (words >= 0)
        chances: Tensor = of_tokens.sum(1).exp() * (words[:, 0] >= 0)
        return chances.view(rows, classes, count).sum(-1)

    def _score(self, base: nn.Module, number: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """nll and rank of every scored token of a batch, KL(base‖edited) of the compared ones."""
        slots = self._scored[number].to(device)
        log_probs = self.objective.log_probs(base, slots).flatten(0, 1)
        labels = slots.labels.flatten()
        real = (labels != IGNORED).nonzero().squeeze(1)
        if len(real) < len(labels):
            log_probs, labels = log_probs[real], labels[real]
        if number == len(self._compared):  # the base model comes first
            share = KL_VALUES / (2 * log_probs.shape[-1] * self.scored)
            self._compared.append(_Compared.of(log_probs, share, self.seed + number))
        nll = -log_probs.gather(1, labels.unsqueeze(1)).squeeze(1)
        return nll, log_probs.argmax(-1) == labels, self._compared[number].divergence(log_probs)

    def _check_finite(self, strength: float, values: Values) -> None:
        rows = [i for i, finite in enumerate(np.isfinite(values.probability)) if not finite.all()]
        tokens = int((~np.isfinite(values.nll)).sum())
        if not rows and not tokens and bool(np.isfinite(values.kl).all()):
            return
        edit = f"At strength {strength:g} the edited model" if strength else "The base model itself (strength 0)"
        first = f" (the first is row {min(self._items[i].number for i in rows)})" if rows else ""
        raise NotFiniteError(
            f"{edit} computes NaN or infinity: class probabilities on {len(rows)} of {len(self._items)} rows{first}, "
            f"likelihoods of {tokens} of {len(values.nll)} neutral tokens. "
            + (
                "Use a lower strength, or load the base model in float32."
                if strength
                else "Check its weights and dtype."
            )
        )

    def summarise(
        self, strength: float, values: Values, *, base: Values | None = None, anchor: StrengthPoint | None = None
    ) -> StrengthPoint:
        """The means and intervals of one strength.

        Args:
            base: the base model on the same items; by default this probe's.
            anchor: the base model's point on more items than these. The means are then the anchor's plus the mean
                difference from `base`, which varies far less than the items do when the edit changes little.
        """
        base = base or self.base
        chances: dict[str, dict[str, float]] = {}
        intervals: dict[str, list[float]] = {}
        for of, name in enumerate(self.classes):
            own = [i for i, item in enumerate(self._items) if item.row_class == of]
            if not own or (anchor and name not in anchor.probability):
                continue
            chances[name] = {}
            for d, word_class in enumerate(self.classes):
                if anchor is None:
                    centre, spread = 0.0, values.probability[own, d]
                else:
                    centre = anchor.probability[name][word_class]
                    spread = (values.probability - base.probability)[own, d]
                low, high = mean_interval(spread)
                chances[name][word_class] = min(max(centre + float(spread.mean()), 0.0), 1.0)
                intervals[f"{word_class} on {name}"] = clamp([centre + low, centre + high], 0.0, 1.0)
        if not len(values.nll):
            return StrengthPoint(strength, chances, None, None, None, None, intervals=intervals)
        return self._scores(
            StrengthPoint(strength, chances, None, None, None, None, None, intervals), values, base, anchor
        )

    def _scores(
        self, point: StrengthPoint, values: Values, base: Values, anchor: StrengthPoint | None
    ) -> StrengthPoint:
        """The point with what neutral text says."""
        texts, compared = self._token_texts()
        change = values.nll - base.nll
        before = float(base.nll.mean()) if anchor is None or anchor.nll is None else anchor.nll
        rise, gained = float(change.mean()), float((values.correct - base.correct).mean())
        ranked = float(base.correct.mean()) if anchor is None or anchor.accuracy is None else anchor.accuracy
        own, relative = before + change, change
        if anchor is None:  # other texts would have another mean before, too, and the score is a ratio to it
            own, relative = values.nll, change - rise / before * (base.nll - before)
        low, high = mean_interval(relative, texts)
        return replace(
            point,
            nll=before + rise,
            accuracy=ranked + gained,
            quality=relative_quality(before + rise, before),
            quality_low=before / (before + mean_bound(relative, texts)),
            kl=max(0.0, float(values.kl.mean())),
            intervals=point.intervals
            | {
                "nll": clamp(mean_interval(own, texts)),
                "quality": [before / (before + high), before / max(before + low, 1e-12)],
                "kl": clamp(mean_interval(values.kl, compared)),
            },
        )

    def _token_texts(self) -> tuple[Numbers, Numbers]:
        """The number of the text of each scored token, and of each of those whose distributions are compared."""
        picked = [
            texts if compared.picked is None else texts[compared.picked.cpu().numpy()]
            for texts, compared in zip(self._texts, self._compared, strict=True)
        ]
        return np.concatenate(self._texts), np.concatenate(picked)

    def effect(self, up: StrengthPoint, down: StrengthPoint) -> float:
        """P(c₊) on rows of c₋ at a positive strength plus P(c₋) on rows of c₊ at the negative one, of those with rows."""
        return sum(e for e in (up.effect, down.effect) if e is not None)


def _padded(outputs: Sequence[Sequence[Sequence[tuple[int, ...]]]]) -> Tensor:
    """Make [B, C, W, K] of lists of unequal length, filled up with −1."""
    count = max(len(of_class) for row in outputs for of_class in row)
    length = max(len(ids) for row in outputs for of_class in row for ids in of_class)
    found = torch.full((len(outputs), len(outputs[0]), count, length), -1)
    for b, row in enumerate(outputs):
        for c, of_class in enumerate(row):
            for w, ids in enumerate(of_class):
                found[b, c, w, : len(ids)] = torch.tensor(ids)
    return found
