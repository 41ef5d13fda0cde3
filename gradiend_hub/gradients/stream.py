"""Sources of a training's gradient pairs: computed, or read from a store; of all rows, or of this process's share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from gradiend_hub.objectives import Example, Objective

from .faults import SkippedRows
from .memory import memory_advised
from .pairs import GradientReader
from .store import GradientStore


def neutral_source(source: str) -> str:
    """Neutral slots are filled with their own token on both sides, so "diff" would be zero: its factual part is read."""
    return "factual" if source == "diff" else source


@dataclass(frozen=True)
class PairRows:
    """Tokenised rows, the label of each (0: its target is zero), and source and target as in `GradiendConfig`."""

    examples: Sequence[Example]
    labels: Sequence[float]
    source: str
    target: str


@dataclass(frozen=True)
class StoredPairs:
    """A store that is read, and written, in place of computing again; and the number of each batch in it, by its rows."""

    store: GradientStore
    groups: Mapping[tuple[int, ...], int]


def share_skipped(skipped: SkippedRows) -> None:
    """Let every process know the rows that any of them has left out. All processes must call it.

    Raises:
        TrainingError: together they are more than allowed.
    """
    found: list[dict[str, str]] = [{}] * distributed.get_world_size()
    distributed.all_gather_object(found, skipped.rows)
    skipped.join(found)


class PairStream:
    """Source and target gradient (s, t) of batches of rows.

    With several processes each computes its share of a batch's rows, and all get the mean over those that are usable.

    Args:
        reader: an open reader of the base model.
        skipped: keeps count of rows without a finite gradient, of all processes.
        state_vectors: vectors [n] that the solver holds, for advice when memory runs out.
    """

    def __init__(
        self,
        reader: GradientReader,
        objective: Objective,
        rows: PairRows,
        *,
        skipped: SkippedRows,
        state_vectors: float,
        stored: StoredPairs | None = None,
    ) -> None:
        self.reader, self.objective, self.rows, self.stored = reader, objective, rows, stored
        self.skipped, self.state_vectors = skipped, state_vectors
        self._told = len(skipped.rows)

    def pair(self, rows: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """s and t of the mean loss over a batch of one label, each [n], fp32; `None` if no row of it is usable.

        Raises:
            TrainingError: too many rows are unusable, a gradient is zero everywhere, or memory ran out.
        """
        neutral = self.rows.labels[rows[0]] == 0
        source, target = self.rows.source, self.rows.target
        if neutral:
            source, target = neutral_source(source), "diff"
        if self.stored is None:
            return self._shared(rows, source, target, neutral)
        store, group = self.stored.store, self.stored.groups[tuple(rows)]
        if not store.has(group):
            store.write(group, *(self._computed(rows, "alternative", "diff", neutral) or (None, None)))
        return store.read(group, source=source, target=target, device=self.reader.device)

    def _computed(self, rows: Sequence[int], source: str, target: str, neutral: bool) -> tuple[Tensor, Tensor] | None:
        batch = self.objective.collate_pairs([self.rows.examples[i] for i in rows]).to(self.reader.device)
        vectors, density = self.state_vectors, self.reader.scope.density
        with memory_advised(self.reader, self.objective, batch, state_vectors=vectors, density=density):
            pair = self.skipped.read_pair(
                self.reader, self.objective, batch, source=source, target=source if neutral else target
            )
        return (pair[0], torch.zeros_like(pair[0])) if pair and neutral else pair

    def _shared(self, rows: Sequence[int], source: str, target: str, neutral: bool) -> tuple[Tensor, Tensor] | None:
        if not (distributed.is_available() and distributed.is_initialized()):
            return self._computed(rows, source, target, neutral)
        mine = rows[distributed.get_rank() :: distributed.get_world_size()]
        pair = self._computed(mine, source, target, neutral) if mine else None
        s, t = pair or (self.reader.zeros(), self.reader.zeros())
        if s is t:
            t = s.clone()
        # rows that this process has read, and all that it has left out so far
        counts = torch.tensor([float(self.skipped.used if pair else 0), float(len(self.skipped.rows))])
        share = float(counts[0])
        counts = counts.to(s.device)
        distributed.all_reduce(counts)
        total, left_out = counts.tolist()
        if left_out != distributed.get_world_size() * self._told:
            share_skipped(self.skipped)
            self._told = len(self.skipped.rows)
        if not total:
            return None
        for vector in (s, t):
            distributed.all_reduce(vector.mul_(share / total))
        return s, t
