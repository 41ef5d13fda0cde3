"""The gradients that a training asks for: in which batches, from the base model or a store, and at which cost."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from gradiend_hub.evaluation.intervals import spread
from gradiend_hub.gradients import (
    Estimate,
    GradientReader,
    GradientStore,
    PairRows,
    PairStream,
    SkippedRows,
    StoredPairs,
    StoreKey,
    directional_derivatives,
    estimate,
)
from gradiend_hub.gradients.memory import format_bytes
from gradiend_hub.gradients.store import KEY_FILE
from gradiend_hub.objectives import examples_of
from gradiend_hub.progress import tell
from gradiend_hub.training.batches import TransitionBatchSampler

from .run import CALIBRATION_ROWS, Learned

__all__ = ["RowBatches", "pair_stream", "predicted", "row_sampler", "training_key"]

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


def pair_stream(
    reader: GradientReader, learned: Learned, state_vectors: int, skipped: SkippedRows | None = None
) -> PairStream:
    """Where the gradient pairs of a training come from.

    Args:
        state_vectors: vectors [n] that the solver holds.
        skipped: keeps count of rows without a finite gradient.
    """
    dataset, config, store = learned.data.dataset, learned.config, learned.args.gradient_store
    return PairStream(
        reader, learned.objective, PairRows(dataset.examples, dataset.labels, config.source, config.target),
        skipped=skipped or SkippedRows(len(dataset)), state_vectors=state_vectors,
        stored=_stored(learned, store) if store else None,
    )  # fmt: skip


def _stored(learned: Learned, folder: str) -> StoredPairs:
    groups, dtype = list(row_sampler(learned)), learned.args.gradient_store_dtype
    key = store_key(learned, groups)
    size = GradientStore.required_bytes(len(groups), learned.scope.size, dtype)
    tell(logger, "Gradient store %s: %s for %d batches", folder, format_bytes(size), len(groups))
    return StoredPairs(GradientStore(folder, key), {tuple(rows): number for number, rows in enumerate(groups)})


def store_key(learned: Learned, groups: list[list[int]]) -> StoreKey:
    """What the gradients of these batches depend on."""
    return StoreKey.of(
        learned.base_model, learned.scope, learned.objective, learned.data.dataset.examples, groups,
        dtype=learned.args.gradient_store_dtype,
    )  # fmt: skip


def training_key(learned: Learned) -> dict[str, str]:
    """What a checkpoint's state means something for, as text by name."""
    key = asdict(store_key(learned, [list(range(len(learned.data.dataset)))]))
    args, config = learned.args, learned.config
    fields = {name: key[name] for name in ("base", "objective", "rows", "scope", "kept")}
    fields |= {"source": config.source, "target": config.target, "solver": args.solver, "runs": args.runs}
    fields["class means of the target"] = args.decoder != "solver" or args.solver != "autoencoder"
    return {name: str(value) for name, value in fields.items()}


def predicted(
    reader: GradientReader,
    learned: Learned,
    observe: Callable[[Tensor, Tensor, float], object],
    state_vectors: int,
) -> Estimate:
    """Time and memory of a training, from three batches of typical and largest size.

    The time is that of its steps and of the evaluations between them, without what is finished and measured afterwards.

    Args:
        observe: what the solver does with s, t and their label.
    """
    dataset, args, config = learned.data.dataset, learned.args, learned.config
    batches = list(row_sampler(learned))
    tokens = [len(rows) * max(dataset.examples[i].cost for i in rows) for rows in batches]  # padded, as they are read
    by_tokens = sorted(zip(tokens, batches, strict=True))
    largest, mean = by_tokens[-1][1], sum(tokens) / len(tokens)
    typical = min(by_tokens, key=lambda pair: abs(pair[0] - mean))[1]
    both = [
        learned.objective.collate_pairs([dataset.examples[i] for i in rows]).to(reader.device)
        for rows in (typical, largest)
    ]
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * len(batches))
    stored = GradientStore.required_bytes(len(batches), learned.scope.size, args.gradient_store_dtype)
    return estimate(
        reader, learned.objective, both[0], largest=both[1], state_vectors=state_vectors,
        steps=steps, reads=_reads(learned, batches, steps),
        observe=lambda s, t: observe(s, t, dataset.labels[typical[0]]), store_bytes=stored if args.gradient_store else 0,
        source=config.source, target=config.target, evaluation_seconds=_evaluations(learned, steps, len(batches)),
    )  # fmt: skip


def _reads(learned: Learned, batches: list[list[int]], steps: int) -> int:
    """Batches whose gradients will be computed in so many steps: with a store, each that it has not yet, and once."""
    folder = learned.args.gradient_store
    if not folder:
        return steps
    first_epoch = range(min(steps, len(batches)))
    if not (Path(folder) / KEY_FILE).exists():
        return len(first_epoch)
    return len(set(GradientStore(folder, store_key(learned, batches)).missing).intersection(first_epoch))


def _evaluations(learned: Learned, steps: int, steps_an_epoch: int) -> float:
    """Seconds of the evaluations between the steps, from one of some rows."""
    args, rows = learned.args, learned.data.eval_rows
    times = {"steps": steps // max(int(args.eval_steps or 1), 1), "epoch": math.ceil(steps / steps_an_epoch)}
    count = times.get(str(getattr(args.eval_strategy, "value", args.eval_strategy)), 0) if rows else 0
    if not count:
        return 0.0
    some = spread(rows, args.eval_batch_size)
    tangents = learned.scope.dense_tensors(torch.ones(learned.scope.size) / learned.scope.size)
    samples = [e.alternative for e in examples_of(learned.objective, some, what="eval_dataset")]
    start = time.perf_counter()
    directional_derivatives(learned.base_model, learned.objective, samples, tangents, batch_size=args.eval_batch_size)
    return count * args.num_runs * (time.perf_counter() - start) * (len(rows) + CALIBRATION_ROWS) / len(some)
