"""Gradient pairs of a training: in which batches, and computed or read from a store."""

from __future__ import annotations

import logging

from torch.utils.data import DataLoader

from gradiend_hub.gradients import (
    GradientReader,
    GradientStore,
    PairRows,
    PairStream,
    SkippedRows,
    StoredPairs,
    StoreKey,
)
from gradiend_hub.gradients.memory import format_bytes
from gradiend_hub.progress import tell

from .batches import TransitionBatchSampler
from .run import TrainingRun

__all__ = ["RowBatches", "pair_stream", "row_sampler", "store_key"]

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


def pair_stream(
    reader: GradientReader, run: TrainingRun, state_vectors: int, skipped: SkippedRows | None = None
) -> PairStream:
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
        skipped=skipped or SkippedRows(len(dataset)),
        state_vectors=state_vectors,
        stored=_stored(run, run.args.gradient_store) if run.args.gradient_store else None,
    )


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
