"""The gradients that a training asks for: in which batches, from the base model or a store, and at which cost."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from torch import Tensor
from torch.utils.data import DataLoader

from .data import TransitionBatchSampler
from .gradients import (
    Estimate,
    GradientReader,
    GradientStore,
    PairRows,
    PairStream,
    SkippedRows,
    StoredPairs,
    StoreKey,
    estimate,
)
from .learned import Learned

__all__ = ["RowBatches", "pair_stream", "predicted", "row_sampler"]

logger = logging.getLogger(__name__)


class RowBatches(DataLoader[list[int]]):
    """A loader whose sampler learns the epoch from `Trainer`."""

    batch_sampler: TransitionBatchSampler

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


def row_sampler(learned: Learned) -> TransitionBatchSampler:
    """Batches of one class transition each; with a store, the same ones in every epoch."""
    args, fixed = learned.args, learned.args.gradient_store is not None
    return TransitionBatchSampler(learned.data.dataset, args.train_batch_size, seed=args.row_seed, fixed=fixed)


def pair_stream(reader: GradientReader, learned: Learned, state_vectors: int) -> PairStream:
    """Where the gradient pairs of a training come from.

    Args:
        state_vectors: vectors [n] that the solver holds.
    """
    dataset, config, store = learned.data.dataset, learned.config, learned.args.gradient_store
    return PairStream(
        reader, learned.objective, PairRows(dataset.examples, dataset.labels, config.source, config.target),
        skipped=SkippedRows(len(dataset)), state_vectors=state_vectors,
        stored=_stored(learned, store) if store else None,
    )  # fmt: skip


def _stored(learned: Learned, folder: str) -> StoredPairs:
    groups, dtype = list(row_sampler(learned)), learned.args.gradient_store_dtype
    key = StoreKey.of(
        learned.base_model, learned.scope, learned.objective, learned.data.dataset.examples, groups, dtype=dtype
    )
    size = GradientStore.required_bytes(len(groups), learned.scope.size, dtype)
    logger.info("Gradient store %s: %.1f MB", folder, size / 1e6)
    return StoredPairs(GradientStore(folder, key), {tuple(rows): number for number, rows in enumerate(groups)})


def predicted(
    reader: GradientReader,
    learned: Learned,
    observe: Callable[[Tensor, Tensor, float], object],
    state_vectors: int,
) -> Estimate:
    """Time and memory of a training, from three batches of typical and largest size.

    Args:
        observe: what the solver does with s, t and their label.
    """
    dataset, args, config = learned.data.dataset, learned.args, learned.config
    batches = list(row_sampler(learned))
    lengths = [sum(dataset.examples[i].length for i in rows) for rows in batches]
    typical, largest = (sorted(zip(lengths, batches, strict=True))[k][1] for k in (len(batches) // 2, -1))
    both = [
        learned.objective.collate_pairs([dataset.examples[i] for i in rows]).to(reader.device)
        for rows in (typical, largest)
    ]
    stored = GradientStore.required_bytes(len(batches), learned.scope.size, args.gradient_store_dtype)
    return estimate(
        reader, learned.objective, both[0], largest=both[1], state_vectors=state_vectors,
        steps=args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * len(batches)),
        observe=lambda s, t: observe(s, t, dataset.labels[typical[0]]), store_bytes=stored if args.gradient_store else 0,
        source=config.source, target=config.target,
    )  # fmt: skip
