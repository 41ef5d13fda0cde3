"""Some rows and neutral items in batches, read from a model as it is at the moment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gradiend_hub.errors import EditError
from gradiend_hub.objectives import IGNORED, Batch, Objective, QualityItem, Reading, Sample, batched

from .summary import Values

LOGITS = 2**26
"""Most logits of a batch, whatever its number of rows."""


class NotFiniteError(EditError):
    """At this strength the model computes NaN or infinity."""


@dataclass(frozen=True)
class Item:
    """One feature row: its number, its class and group, and the inputs in which the classes' outputs are read."""

    number: int
    row_class: int
    group: int
    readings: list[Reading]


@dataclass(frozen=True)
class Distributions:
    """The base model's distributions at some positions: p and log p, each [positions, V]."""

    probs: Tensor
    log_probs: Tensor

    @classmethod
    def of(cls, log_probs: Tensor) -> Distributions:
        probs = log_probs.exp()
        return cls(probs, log_probs.masked_fill(probs == 0, 0.0))

    def divergence(self, log_probs: Tensor) -> Tensor:
        """Return KL(base‖edited) at each position: Σ p·(log p − log q), where p = 0 counts for nothing."""
        terms: Tensor = torch.linalg.vecdot(self.probs, self.log_probs - log_probs)
        if bool(terms.isfinite().all()):
            return terms
        return (self.probs * (self.log_probs - log_probs)).masked_fill(self.probs == 0, 0.0).sum(-1)  # q = 0 where p is


class Part:
    """Rows and neutral items that are read together. The first reading is of the base model, which others are compared with.

    Args:
        items: Feature rows.
        quality: Samples on which the model's quality is scored.
        share: Share of the scored labels at which whole distributions are compared.
        seed: Decides which ones.

    Attributes:
        units: Number of the text of each scored label, [labels].
        compared: The same of the labels at which distributions are compared.
    """

    def __init__(
        self,
        objective: Objective,
        items: Sequence[Item],
        quality: Sequence[QualityItem],
        *,
        batch_size: int,
        share: float,
        seed: int,
    ) -> None:
        self.objective, self.items = objective, items
        readings = [(place, reading) for place, item in enumerate(items) for reading in item.readings]
        batches = self._batched([reading.sample for _, reading in readings], batch_size)
        self.places = torch.tensor([readings[i][0] for chosen in batches for i in chosen], dtype=torch.long)
        self.row_batches = [
            (
                objective.collate([readings[i][1].sample for i in chosen]),
                _padded([readings[i][1].outputs for i in chosen]),
            )
            for chosen in batches
        ]
        batches = self._batched([item.sample for item in quality], batch_size)
        self.quality_batches = [objective.collate([quality[i].sample for i in chosen]) for chosen in batches]
        self.units, self.compared = np.empty(0, np.int64), np.empty(0, np.int64)
        self._picked: list[Tensor] = []
        for chosen in batches:
            units = np.repeat([quality[i].unit for i in chosen], [len(quality[i].sample.labels) for i in chosen])
            generator = torch.Generator().manual_seed(seed + len(self._picked))
            picked = torch.randperm(len(units), generator=generator)[: math.ceil(share * len(units))].sort().values
            self._picked.append(picked)
            self.units = np.concatenate([self.units, units])
            self.compared = np.concatenate([self.compared, units[picked.numpy()]])
        self._base: list[Distributions] = []  # of each quality batch

    def _batched(self, samples: Sequence[Sample], size: int) -> list[list[int]]:
        """Group samples into batches of at most `size` rows and `LOGITS` logits."""
        widths = [len(sample.positions) for sample in samples]
        most = max(LOGITS // self.objective.width, 1)
        return batched([sample.cost for sample in samples], size, widths=widths, most=most, stretch=1.25)

    def read(self, model: nn.Module, strength: float) -> Values:
        """Read everything from the model as it is. `strength` is how messages call that.

        Raises:
            NotFiniteError: A probability or a log-likelihood is NaN or infinite.
        """
        device = next(model.parameters()).device
        read = [self._class_probabilities(model, *batch, device) for batch in self.row_batches]
        chances = (
            self._of_items(torch.cat(read).cpu()) if read else torch.zeros(len(self.items), 2, dtype=torch.float64)
        )
        probability = chances.softmax(-1) if self.objective.relative else chances.exp()
        scored = [self._score(model, number, device) for number in range(len(self.quality_batches))]
        nll, correct, kl = (torch.cat(of) for of in zip(*scored, strict=True)) if scored else [torch.empty(0)] * 3
        readings = {name: of.double().numpy() for name, of in self.objective.row_readings(chances).items()}
        whole = [of.double().cpu().numpy() for of in (probability, nll, correct, kl)]
        values = Values(whole[0], whole[1], whole[2], whole[3], readings)
        self._check_finite(strength, values)
        return values

    def _class_probabilities(self, model: nn.Module, batch: Batch, outputs: Tensor, device: torch.device) -> Tensor:
        """Return log P of each class's outputs together: [B, C] of their ids [B, C, W, K] (−1 where there are fewer)."""
        rows, classes, count, length = outputs.shape
        ids = outputs.to(device).movedim(3, 1).flatten(2)  # [B, K, C·W]
        log_probs = self.objective.log_probs(model, batch.to(device))[:, :length]
        of_ids = log_probs.gather(2, ids.clamp(min=0)).double() * (ids >= 0)
        chances = of_ids.sum(1)
        if self.objective.per_token:
            chances = chances / (ids >= 0).sum(1).clamp(min=1)
        chances = chances.masked_fill(ids[:, 0] < 0, -math.inf)
        return chances.view(rows, classes, count).logsumexp(-1)

    def _of_items(self, chances: Tensor) -> Tensor:
        """Add up the probabilities of readings by their items: log P [readings, C] → [items, C]."""
        found = chances.new_full((len(self.items), chances.shape[1]), -math.inf)
        places = self.places.unsqueeze(1).expand_as(chances)
        highest = found.scatter_reduce(0, places, chances, "amax").nan_to_num(neginf=0.0)
        total = torch.zeros_like(found).index_add_(0, self.places, (chances - highest[self.places]).exp())
        return highest + total.log()

    def _score(self, model: nn.Module, number: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return nll and rank of every scored label of a batch, and KL(base‖edited) of the compared ones."""
        batch, picked = self.quality_batches[number].to(device), self._picked[number].to(device)
        log_probs = self.objective.log_probs(model, batch).flatten(0, 1)
        labels = batch.labels.flatten()
        real = (labels != IGNORED).nonzero().squeeze(1)
        if len(real) < len(labels):
            log_probs, labels = log_probs[real], labels[real]
        whole = log_probs if len(picked) == len(log_probs) else log_probs[picked]
        if number == len(self._base):
            self._base.append(Distributions.of(whole))
        nll = -log_probs.gather(1, labels.unsqueeze(1)).squeeze(1)
        return nll, log_probs.argmax(-1) == labels, self._base[number].divergence(whole)

    def _check_finite(self, strength: float, values: Values) -> None:
        rows = [i for i, finite in enumerate(np.isfinite(values.probability)) if not finite.all()]
        tokens = int((~np.isfinite(values.nll)).sum())
        if not rows and not tokens and bool(np.isfinite(values.kl).all()):
            return
        edit = f"At strength {strength:g} the edited model" if strength else "The base model itself (strength 0)"
        advice = (
            "Use a lower strength, or load the base model in float32." if strength else "Check its weights and dtype."
        )
        first = f" (the first is row {min(self.items[i].number for i in rows)})" if rows else ""
        raise NotFiniteError(
            f"{edit} computes NaN or infinity: class probabilities on {len(rows)} of {len(self.items)} rows{first}, "
            f"likelihoods of {tokens} of {len(values.nll)} neutral tokens. {advice}"
        )


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
