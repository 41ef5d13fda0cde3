"""Time, memory and disk of a whole job, predicted from a few gradients."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from gradiend_hub.evaluation.intervals import spread
from gradiend_hub.gradients import Estimate, GradientReader, GradientStore, Workload, directional_derivatives, estimate
from gradiend_hub.gradients.store import KEY_FILE
from gradiend_hub.objectives import PairBatch, examples_of

from .data import CALIBRATION_ROWS
from .run import TrainingRun
from .streams import row_sampler, store_key

__all__ = ["predicted"]


def predicted(
    reader: GradientReader,
    run: TrainingRun,
    observe: Callable[[Tensor, Tensor, float], object],
    *,
    state_vectors: int,
) -> Estimate:
    """Predict a job from three batches of typical and largest size.

    Args:
        observe: what the solver does with s, t and their label.
        state_vectors: vectors [n] that solver and optimizer hold.
    """
    dataset, args, config = run.data.dataset, run.args, run.config
    batches = list(row_sampler(run))
    tokens = [len(rows) * max(dataset.examples[i].cost for i in rows) for rows in batches]  # padded, as they are read
    by_tokens = sorted(zip(tokens, batches, strict=True))
    mean = sum(tokens) / len(tokens)
    typical, largest = min(by_tokens, key=lambda pair: abs(pair[0] - mean))[1], by_tokens[-1][1]

    def pairs(rows: list[int]) -> PairBatch:
        return run.objective.collate_pairs([dataset.examples[i] for i in rows]).to(reader.device)

    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * len(batches))
    work = Workload(
        pairs(typical),
        pairs(largest),
        steps=steps,
        reads=_reads(run, batches, steps),
        state_vectors=state_vectors,
        source=config.source,
        target=config.target,
        observe=lambda s, t: observe(s, t, dataset.labels[typical[0]]),
    )
    stored = GradientStore.required_bytes(len(batches), run.scope.size, args.gradient_store_dtype)
    return replace(
        estimate(reader, run.objective, work),
        store_bytes=stored if args.gradient_store else 0,
        later_seconds=_later(run, steps, len(batches)),
    )


def _reads(run: TrainingRun, batches: list[list[int]], steps: int) -> int:
    """Count the batches whose gradients will be computed in so many steps: with a store, each that it lacks, and once."""
    folder = run.args.gradient_store
    if not folder:
        return steps
    first_epoch = range(min(steps, len(batches)))
    if not (Path(folder) / KEY_FILE).exists():
        return len(first_epoch)
    return len(set(GradientStore(folder, store_key(run, batches)).missing).intersection(first_epoch))


def _later(run: TrainingRun, steps: int, steps_an_epoch: int) -> dict[str, float]:
    """Predict the seconds of everything but the steps, from encoding some rows."""
    args, rows = run.args, run.data.eval_rows
    times = {"steps": steps // max(int(args.eval_steps or 1), 1), "epoch": math.ceil(steps / steps_an_epoch)}
    count = times.get(str(getattr(args.eval_strategy, "value", args.eval_strategy)), 0) if rows else 0
    if not count:
        return {}
    some = spread(rows, args.eval_batch_size)
    tangents = run.scope.dense_tensors(torch.ones(run.scope.size) / run.scope.size)
    samples = [e.alternative for e in examples_of(run.objective, some, what="eval_dataset")]
    start = time.perf_counter()
    directional_derivatives(run.base_model, run.objective, samples, tangents, batch_size=args.eval_batch_size)
    seconds = (time.perf_counter() - start) / len(some)
    return {"between the steps": count * args.num_runs * seconds * (len(rows) + CALIBRATION_ROWS)}
