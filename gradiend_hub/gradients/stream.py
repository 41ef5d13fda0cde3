"""Where a training's gradient pairs come from: computed, or read from a store; of all rows, or of this process's share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, distributed

from gradiend_hub.objectives import Example, Objective

from .faults import SkippedRows
from .memory import memory_advised
from .pairs import GradientReader
from .store import GradientStore

__all__ = ["PairStream", "neutral_source"]


def neutral_source(source: str) -> str:
    """Neutral slots are filled with their own token on both sides, so "diff" would be zero: its factual part is read."""
    return "factual" if source == "diff" else source


class PairStream:
    """Source and target gradient (s, t) of batches of rows.

    With several processes each computes its share of a batch's rows, and all get the sum.

    Args:
        reader: an open reader of the base model.
        examples: tokenised rows.
        labels: label of each row; rows of label 0 have a target of zero.
        source, target: as in `GradiendConfig`.
        skipped: keeps count of rows without a finite gradient.
        state_vectors: vectors [n] that the solver holds, for advice when memory runs out.
        store: read and written in place of computing again.
        groups: number of each batch in the store, by its rows.
    """

    def __init__(
        self,
        reader: GradientReader,
        objective: Objective,
        examples: Sequence[Example],
        labels: Sequence[float],
        *,
        source: str,
        target: str,
        skipped: SkippedRows,
        state_vectors: int,
        store: GradientStore | None = None,
        groups: Mapping[tuple[int, ...], int] | None = None,
    ) -> None:
        self.reader, self.objective, self.examples, self.labels = reader, objective, examples, labels
        self.source, self.target = source, target
        self.skipped, self.state_vectors = skipped, state_vectors
        self.store, self.groups = store, groups or {}

    def pair(self, rows: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """s and t of the mean loss over a batch of one label, each [n], fp32; `None` if no row of it is usable.

        Raises:
            TrainingError: too many rows are unusable, a gradient is zero everywhere, or memory ran out.
        """
        neutral = self.labels[rows[0]] == 0
        source, target = (neutral_source(self.source), "diff") if neutral else (self.source, self.target)
        if self.store is None:
            return self._shared(rows, source, target, neutral)
        group = self.groups[tuple(rows)]
        if not self.store.has(group):
            self.store.write(group, *(self._computed(rows, "alternative", "diff", neutral) or (None, None)))
        return self.store.read(group, source=source, target=target, device=self.reader.device)

    def _computed(self, rows: Sequence[int], source: str, target: str, neutral: bool) -> tuple[Tensor, Tensor] | None:
        batch = self.objective.collate_pairs([self.examples[i] for i in rows]).to(self.reader.device)
        with memory_advised(self.reader, self.objective, batch, state_vectors=self.state_vectors):
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
        share = torch.tensor(float(len(mine) if pair else 0), device=s.device)
        total = share.clone()
        for tensor, factor in ((total, 1.0), (s, float(share)), (t, float(share))):
            distributed.all_reduce(tensor.mul_(factor))
        return (s / total, t / total) if total > 0 else None
