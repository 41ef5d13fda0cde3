"""Gradients of a training: in which batches; as pairs of vectors, computed or read from a store, or by their factors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader

from gradiend_hub.errors import TrainingError
from gradiend_hub.gradients import (
    FactorReader,
    GradientReader,
    GradientStore,
    PairRows,
    PairStream,
    SkippedRows,
    StoredPairs,
    StoreKey,
    memory_advised,
    read_factors,
)
from gradiend_hub.gradients.memory import format_bytes
from gradiend_hub.gradients.pairs import NotFiniteError, not_finite_message, zero_message
from gradiend_hub.gradients.stream import share_skipped
from gradiend_hub.objectives import PairBatch
from gradiend_hub.progress import tell
from gradiend_hub.solvers import SketchSolver

from .batches import TransitionBatchSampler
from .run import TrainingRun

Learn = Callable[[Sequence[int]], Tensor | None]
"""Learns from a batch of rows of one label; returns the solver's losses, or `None` if no row of it is usable."""

logger = logging.getLogger(__name__)


class RowBatches(DataLoader[list[int]]):
    """A loader whose sampler learns the epoch from `Trainer`."""

    batch_sampler: TransitionBatchSampler

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


def row_sampler(run: TrainingRun) -> TransitionBatchSampler:
    """Sample batches of one class transition each; with a store, the same ones in every epoch."""
    args, fixed = run.args, run.args.gradient_store is not None
    return TransitionBatchSampler(run.data.dataset, args.train_batch_size, seed=args.row_seed, fixed=fixed)


def pair_stream(reader: GradientReader, run: TrainingRun, state_vectors: float, skipped: SkippedRows) -> PairStream:
    """Open the stream of a training's gradient pairs.

    Args:
        state_vectors: vectors [n] that the solver holds, for advice when memory runs out.
        skipped: keeps count of rows without a finite gradient.
    """
    dataset, config = run.data.dataset, run.config
    return PairStream(
        reader,
        run.objective,
        PairRows(dataset.examples, dataset.labels, config.source, config.target),
        skipped=skipped,
        state_vectors=state_vectors,
        stored=_stored(run, run.args.gradient_store) if run.args.gradient_store else None,
    )


class FactorStream:
    """Lets a `SketchSolver` learn from batches of rows by the factors of their gradients; no gradient is ever formed.

    With several processes each learns from its share of a batch's rows. What a batch adds is summed aside, so that rows
    without a finite gradient leave no trace.

    Args:
        reader: an open reader of the base model.
        skipped: keeps count of rows without a finite gradient, of all processes.
    """

    def __init__(self, reader: FactorReader, run: TrainingRun, solver: SketchSolver, skipped: SkippedRows) -> None:
        self.reader, self.objective, self.solver = reader, run.objective, solver
        self.examples, self.labels = run.data.dataset.examples, run.data.dataset.labels
        self.source, self.target = run.config.source, run.config.target
        self.skipped = skipped
        self.vectors = sum(values.numel() for values in solver.buffers()) / max(run.scope.size, 1)
        self._sums = solver.room()
        self._told = len(self.skipped.rows)

    def learn(self, rows: Sequence[int]) -> Tensor | None:
        """See `Learn`.

        Raises:
            TrainingError: too many rows are unusable, a gradient is zero everywhere, or memory ran out.
        """
        label, processes, loss = self.labels[rows[0]], self.solver.processes, None
        mine = rows[processes.rank :: processes.world]
        if label == 0:
            loss = self.solver.take(self._sums, label, len(mine))
        elif mine:
            batch = self.objective.collate_pairs([self.examples[i] for i in mine]).to(self.reader.device)
            with memory_advised(self.reader, self.objective, batch, state_vectors=self.vectors):
                if self.skipped.read(self.objective, batch, self.read) is not None:
                    loss = self.solver.take(self._sums, label, self.skipped.used, mine)
        if processes.world > 1:
            self._agree()
        return loss

    def read(self, batch: PairBatch) -> Tensor:
        """Sketches of the summed source and target gradients of a batch, [2, size], until the next batch is read."""
        sums, add = self._sums.zero_(), self.solver.sketching.add
        sinks = {self.target: partial(add, sums[1])} | {self.source: partial(add, sums[0])}
        read_factors(self.reader, self.objective, batch, sinks)
        if self.source == self.target:
            sums[1] = sums[0]
        for name, total in zip((self.source, self.target), sums, strict=True):
            if not bool(total.sum().isfinite()):
                raise NotFiniteError(not_finite_message(self.reader, name))
            if not bool(total.any()):
                raise TrainingError(zero_message(self.reader, name))
        return sums

    def _agree(self) -> None:
        left_out = torch.tensor([float(len(self.skipped.rows) != self._told)], device=self._sums.device)
        distributed.all_reduce(left_out)
        if bool(left_out):
            share_skipped(self.skipped)
            self._told = len(self.skipped.rows)


def _stored(run: TrainingRun, folder: str) -> StoredPairs:
    groups, dtype = list(row_sampler(run)), run.args.gradient_store_dtype
    key = store_key(run, groups)
    size = GradientStore.required_bytes(len(groups), run.scope.size, dtype)
    tell(logger, "Gradient store %s: %s for %d batches", folder, format_bytes(size), len(groups))
    return StoredPairs(GradientStore(folder, key), {tuple(rows): number for number, rows in enumerate(groups)})


def store_key(run: TrainingRun, groups: list[list[int]]) -> StoreKey:
    """Describe what the gradients of these batches depend on."""
    dtype = run.args.gradient_store_dtype
    return StoreKey.of(run.base_model, run.scope, run.objective, run.data.dataset.examples, groups, dtype=dtype)
