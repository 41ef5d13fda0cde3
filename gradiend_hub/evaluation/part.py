"""Some rows and damage items in batches, read from a model as it is at the moment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gradiend_hub.errors import EditError
from gradiend_hub.objectives import IGNORED, Batch, Objective, QualityItem, Reading, Sample, batched

from .damage import OWN
from .distributions import Distributions, Rest
from .intervals import Array
from .summary import Scores, SetItems, Values

LOGITS = 2**26
"""Most logits of a batch, whatever its number of rows."""


class NotFiniteError(EditError):
    """At this strength the model computes NaN or infinity."""


@dataclass(frozen=True)
class Item:
    """One feature row: its number, its class and group, and the inputs in which the classes' outputs are read.

    Attributes:
        own: tokens of the row's own text are labels of its first reading, too.
    """

    number: int
    row_class: int
    group: int
    readings: list[Reading]
    own: bool = False


@dataclass(frozen=True)
class _Job:
    """One batch, and what is read from it.

    Attributes:
        batch: the inputs.
        places: number of the item that each row is of, [B]; `None` if no outputs of classes are read.
        outputs: their ids by class, [B, C, W, K], −1 where there are fewer.
        slots: rows whose distribution at the slot is compared, [≤ B].
        of: damage set that the labels are of, if there are labels.
        real: places of the labels among the batch's positions, [labels], and `labels` the labels.
        collateral: which of them are no output of a class, [labels].
        picked: numbers of the labels at which distributions are compared, [≤ labels].
    """

    batch: Batch
    places: Tensor | None = None
    outputs: Tensor | None = None
    slots: Tensor | None = None
    of: str | None = None
    real: Tensor | None = None
    labels: Tensor | None = None
    collateral: Tensor | None = None
    picked: Tensor | None = None


class Part:
    """Rows and damage items that are read together. The first reading is of the base model, which others are compared with.

    Args:
        items: Feature rows.
        sets: Samples on which damage is read, by set; `unit` of those of the rows' own texts is the row's group.
        rest: Takes the classes' outputs out of a distribution.
        share: Share of the positions at which whole distributions are compared.
        seed: Decides which ones.

    Attributes:
        set_items: Texts of the scored labels by set.
        slot_groups: Groups of the items whose distributions are compared at the slot.
    """

    def __init__(
        self,
        objective: Objective,
        items: Sequence[Item],
        sets: Mapping[str, Sequence[QualityItem]],
        rest: Rest,
        *,
        batch_size: int,
        share: float,
        seed: int,
    ) -> None:
        self.objective, self.items, self.rest = objective, items, rest
        self._size, self._share, self._generator = batch_size, share, torch.Generator().manual_seed(seed)
        self._jobs: list[_Job] = []
        self._base: list[dict[str, Distributions]] = []  # of each job
        self._before: list[Tensor] = []  # log P of the classes' outputs, of each job that reads them
        self._units: dict[str, list[SetItems]] = {name: [] for name in sets}
        self._slot_items: list[int] = []
        readings = [(place, number, r) for place, item in enumerate(items) for number, r in enumerate(item.readings)]
        for with_own in (False, True):
            self._add_rows(
                [r for r in readings if (items[r[0]].own and r[1] == 0) == with_own], OWN if with_own else None
            )
        for name, quality in sets.items():
            for chosen in self._batched([item.sample for item in quality]):
                batch = objective.collate([quality[i].sample for i in chosen])
                self._jobs.append(self._scored(_Job(batch), name, [quality[i].unit for i in chosen]))
        self.set_items = {name: SetItems.joined(units) for name, units in self._units.items()}
        places = [job.places for job in self._jobs if job.places is not None]
        self.places = torch.cat(places) if places else torch.empty(0, dtype=torch.long)
        self.slot_groups = np.array([items[place].group for place in self._slot_items], np.int64)

    def _batched(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Group samples into batches of a size and at most `LOGITS` logits."""
        widths = [len(sample.positions) for sample in samples]
        most = max(LOGITS // self.objective.width, 1)
        return batched([sample.cost for sample in samples], self._size, widths=widths, most=most, stretch=1.25)

    def _add_rows(self, readings: Sequence[tuple[int, int, Reading]], of: str | None) -> None:
        """Make jobs of readings: (place of the item, number among its readings, reading)."""
        for chosen in self._batched([reading.sample for _, _, reading in readings]):
            rows = [readings[i] for i in chosen]
            batch = self.objective.collate([reading.sample for _, _, reading in rows])
            first = [i for i, (_, number, _) in enumerate(rows) if number == 0]
            slots = [first[i] for i in self._picked(len(first)).tolist()] if len(self.rest) else []
            self._slot_items += [rows[i][0] for i in slots]
            job = _Job(
                batch,
                torch.tensor([place for place, _, _ in rows]),
                _padded([reading.outputs for _, _, reading in rows]),
                torch.tensor(slots, dtype=torch.long),
            )
            groups = [self.items[place].group for place, _, _ in rows]
            self._jobs.append(job if of is None else self._scored(job, of, groups))

    def _picked(self, count: int) -> Tensor:
        """Draw the share of some positions at which distributions are compared."""
        return torch.randperm(count, generator=self._generator)[: math.ceil(self._share * count)].sort().values

    def _scored(self, job: _Job, of: str, units: Sequence[int]) -> _Job:
        """Let the labels of a job be read as those of a damage set; `units` are the rows' texts."""
        labels = job.batch.labels.flatten()
        real = (labels != IGNORED).nonzero().squeeze(1)
        labels = labels[real]
        text = np.repeat(units, job.batch.labels.shape[1])[real.numpy()].astype(np.int64)
        picked, collateral = self._picked(len(labels)), ~self.rest.holds(labels)
        self._units.setdefault(of, []).append(SetItems(text, text[collateral.numpy()], text[picked.numpy()]))
        return _Job(job.batch, job.places, job.outputs, job.slots, of, real, labels, collateral, picked)

    # ------------------------------------------------------------------------------------------------------ reading

    def read(self, model: nn.Module, strength: float) -> Values:
        """Read everything from the model as it is. `strength` is how messages call that.

        Raises:
            NotFiniteError: A probability or a log-likelihood is NaN or infinite.
        """
        device = next(model.parameters()).device
        slot_kl: list[Tensor] = []
        scores: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in self._units}
        now: list[Tensor] = []
        for number, job in enumerate(self._jobs):
            log_probs = self.objective.log_probs(model, job.batch.to(device))
            if number == len(self._base):
                self._base.append({})
            if job.outputs is not None:
                now.append(self._outputs(job.outputs, log_probs))
                slot_kl.append(self._slots(job, log_probs, self._base[number]))
            if job.of is not None:
                scores[job.of].append(self._labels(job, log_probs, self._base[number]))
        self._before = self._before or now
        chances, before = self._of_items(now), self._of_items(self._before)
        values = Values(
            (chances.softmax(-1) if self.objective.relative else chances.exp()).numpy(),
            self._within(now, chances, before),
            _joined(slot_kl),
            {name: of.double().numpy() for name, of in self.objective.row_readings(chances).items()},
            {name: Scores(*map(_joined, zip(*of, strict=True) if of else [[]] * 5)) for name, of in scores.items()},
        )
        self._check_finite(strength, values)
        return values

    def _outputs(self, outputs: Tensor, log_probs: Tensor) -> Tensor:
        """Return log P of each output of each class, [B, C, W], of their ids [B, C, W, K]; −∞ where there are fewer."""
        rows, classes, count, length = outputs.shape
        ids = outputs.to(log_probs.device).movedim(3, 1).flatten(2)  # [B, K, C·W]
        found = (log_probs[:, :length].gather(2, ids.clamp(min=0)).double() * (ids >= 0)).sum(1)
        if self.objective.per_token:
            found = found / (ids >= 0).sum(1).clamp(min=1)
        return found.masked_fill(ids[:, 0] < 0, -math.inf).view(rows, classes, count).cpu()

    def _of_items(self, outputs: Sequence[Tensor]) -> Tensor:
        """Add up the probabilities of outputs by their items: log P [B, C, W] of each job → [items, C]."""
        if not outputs:
            return torch.zeros(len(self.items), 2, dtype=torch.float64)
        chances = torch.cat([of.logsumexp(-1) for of in outputs])
        found = chances.new_full((len(self.items), chances.shape[1]), -math.inf)
        highest = found.scatter_reduce(0, self.places.unsqueeze(1).expand_as(chances), chances, "amax")
        highest = highest.nan_to_num(neginf=0.0)
        total = torch.zeros_like(found).index_add_(0, self.places, (chances - highest[self.places]).exp())
        return highest + total.log()

    def _within(self, now: Sequence[Tensor], chances: Tensor, before: Tensor) -> Array:
        """Return KL(base‖edited) of the distribution over the outputs of each class at each item: [items, C].

        With P = Σ p_w of the base model and Q of the edited one, it is Σ (p_w / P)·log(p_w / q_w) − log(P / Q).
        """
        found = torch.zeros_like(chances)
        place = 0
        for was, of in zip(self._before, now, strict=True):
            rows = self.places[place : place + len(of)]
            place += len(of)
            shares = (was - before[rows].unsqueeze(-1)).exp().nan_to_num(nan=0.0)
            found.index_add_(0, rows, (shares * (was - of)).masked_fill(shares == 0, 0.0).sum(-1))
        gap = (before - chances).masked_fill(before == -math.inf, 0.0)
        return (found - gap).clamp(min=0).numpy()

    def _slots(self, job: _Job, log_probs: Tensor, base: dict[str, Distributions]) -> Tensor:
        """Return KL(base‖edited) of the rest at the slots that are compared: [slots]."""
        if job.slots is None or not len(job.slots):
            return log_probs.new_empty(0)
        at_slots = log_probs[job.slots.to(log_probs.device), 0]
        if "slots" not in base:
            base["slots"] = Distributions.of(at_slots)
        return self.rest.divergence(base["slots"], at_slots)[1]

    def _labels(self, job: _Job, log_probs: Tensor, base: dict[str, Distributions]) -> tuple[Tensor, ...]:
        """Return the five readings of `Scores` of a job's labels."""
        assert job.real is not None and job.labels is not None and job.picked is not None and job.collateral is not None
        device = log_probs.device
        flat = log_probs.flatten(0, 1)
        if len(job.real) < len(flat):
            flat = flat[job.real.to(device)]
        labels = job.labels.to(device)
        nll = -flat.gather(1, labels.unsqueeze(1)).squeeze(1)
        collateral = nll + self.rest.log_share(flat)
        whole = flat if len(job.picked) == len(flat) else flat[job.picked.to(device)]
        if "labels" not in base:
            base["labels"] = Distributions.of(whole)
        kl, collateral_kl = self.rest.divergence(base["labels"], whole)
        return nll, flat.argmax(-1) == labels, collateral[job.collateral.to(device)], kl, collateral_kl

    def _check_finite(self, strength: float, values: Values) -> None:
        read = np.concatenate([values.probability, values.within], 1)
        rows = np.flatnonzero(~np.isfinite(read).all(1)).tolist()
        sets = values.sets.values()
        tokens = sum(int((~np.isfinite(scores.nll)).sum()) for scores in sets)
        rest = [values.slot_kl, *(of for scores in sets for of in (scores.kl, scores.collateral_kl))]
        if not rows and not tokens and all(np.isfinite(of).all() for of in rest):
            return
        edit = f"At strength {strength:g} the edited model" if strength else "The base model itself (strength 0)"
        advice = (
            "Use a lower strength, or load the base model in float32." if strength else "Check its weights and dtype."
        )
        first = f" (the first is row {min(self.items[i].number for i in rows)})" if rows else ""
        raise NotFiniteError(
            f"{edit} computes NaN or infinity: class probabilities on {len(rows)} of {len(self.items)} rows{first}, "
            f"likelihoods of {tokens} of {sum(len(scores.nll) for scores in sets)} tokens of text. {advice}"
        )


def _joined(parts: Sequence[Tensor]) -> Array:
    """Concatenate readings as fp64."""
    return np.concatenate([np.empty(0), *(part.double().cpu().numpy() for part in parts)])


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
