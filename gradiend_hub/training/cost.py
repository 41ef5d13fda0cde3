"""Time, memory and disk of a whole job, predicted from a few gradients and one measurement of some rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from gradiend_hub.artifact.fields import matrix_shape
from gradiend_hub.data import Row
from gradiend_hub.evaluation import StrengthProbe
from gradiend_hub.evaluation.intervals import spread
from gradiend_hub.evaluation.part import LOGITS
from gradiend_hub.evaluation.probe import KL_VALUES
from gradiend_hub.gradients import (
    Estimate,
    FactorReader,
    GradientReader,
    GradientStore,
    Workload,
    directional_derivatives,
    estimate,
)
from gradiend_hub.gradients.kronecker import COLUMNS
from gradiend_hub.gradients.memory import activation_bytes
from gradiend_hub.gradients.store import KEY_FILE
from gradiend_hub.objectives import PairBatch, batched
from gradiend_hub.solvers import Solution

from .decoders import constant
from .run import COMPARED_ROWS, COMPARED_TOKENS, TrainingRun
from .solutions import as_direction, tangents_of
from .streams import Learn, row_sampler, store_key

UNIT_READINGS, PLAIN_READINGS = 12, 8
"""Readings of all rows and texts that an evaluation costs, encodings included: where it chooses the strength unit,
and where it uses it. Both vary by a half with the data."""

DECODER_READINGS = {"damage_aware": 24, "natural": 40}
"""First looks at what decoders are compared on, by decoder; about, as it depends on the dampings."""

FINISHING_VECTORS, MEASURING_VECTORS = 16, 5
"""Vectors [n] beside the solver's: while a direction is finished, with solutions, halves and what it is compared with
later, and while it is measured."""

AT_WORK = 3
"""Arrays of a batch's logits that exist at once while it is read: logits, log-probabilities, and their differences."""

LIBRARY_BYTES, FIGURE_SECONDS = 37_000_000, 4.0
"""Memory of what is loaded later, torch's formulas of derivatives and the libraries that draw, and time of drawing."""

KEPT_BYTES = 120_000_000
"""Most of what learning frees that finds no use later, when arrays have other sizes: two thirds of what the allocator keeps,
which it does of small ones."""

_SOME_ROWS, _SOME_TEXTS = 32, 16
"""Rows and texts that are measured for a prediction."""


def predicted(
    reader: GradientReader | FactorReader,
    run: TrainingRun,
    observe: Callable[[Tensor, Tensor, float], object],
    *,
    learn: Learn | None = None,
    state_vectors: float,
    process_bytes: int,
    saved_bytes: int,
) -> Estimate:
    """Predict a job from three batches of typical and largest size.

    Args:
        observe: what the solver does with s, t and their label.
        learn: what it does with a batch, where it learns by factors.
        state_vectors: vectors [n] that solver and optimizer hold.
        process_bytes: memory that is in use beside base model and solver.
        saved_bytes: checkpoints and direction on disk.
    """
    dataset, args, config = run.data.dataset, run.args, run.config
    batches = list(row_sampler(run))
    tokens = [len(rows) * max(dataset.examples[i].cost for i in rows) for rows in batches]  # padded, as they are read
    mean = sum(tokens) / len(tokens)
    by_tokens = sorted(zip(tokens, batches, strict=True))
    # of identity rows (label 0) the difference of gradients is zero, which no reader hands on; they take memory all the same
    labelled = [pair for pair in by_tokens if dataset.labels[pair[1][0]]]
    typical, largest = min(labelled, key=lambda pair: abs(pair[0] - mean))[1], by_tokens[-1][1]

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
        learn=None if learn is None else lambda: learn(typical),
    )
    stored = GradientStore.required_bytes(min(steps, len(batches)), run.scope.size, args.gradient_store_dtype)
    learning, later = estimate(reader, run.objective, work), _later_bytes(reader, run)
    freed = learning.activation_bytes + learning.working_bytes + learning.gradient_bytes
    return replace(
        learning,
        store_bytes=stored if args.gradient_store else 0,
        later_bytes=later,
        process_bytes=process_bytes + LIBRARY_BYTES + min(2 * min(freed, later) // 3, KEPT_BYTES),
        saved_bytes=saved_bytes,
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


def _later_bytes(reader: GradientReader | FactorReader, run: TrainingRun) -> int:
    """Predict the memory of encoding and measuring beside base model and solver.

    It is the larger of two: a batch of rows that is encoded, and what a direction is finished with; and a batch whose
    probabilities are read, with the base model's distributions, which a probe keeps.
    """
    examples, size = run.judging[0], run.args.eval_batch_size
    batches = batched([example.cost for example in examples], size, stretch=1.25)  # cheap ones first, in each, too
    rows = max(batches, key=lambda batch: len(batch) * examples[batch[-1]].cost)
    longest = run.objective.collate_pairs([examples[rows[-1]]]).to(reader.device)
    encoded = len(rows) * activation_bytes(reader, run.objective, longest)
    if run.args.rank is None:  # forward-mode derivatives keep nothing: one layer's values and their derivatives
        encoded = 2 * encoded // max(len(reader.scope.parameters), 1)
    measured = [(run.data.eval_rows, run.data.texts)] if run.data.eval_sets else []
    measured += [(run.data.test.rows, run.data.test.texts)] if run.data.test is not None else []
    tokens, finished = run.args.quality_tokens, 4 * FINISHING_VECTORS * run.numbers + encoded + _factor_bytes(run)
    if run.args.decoder in DECODER_READINGS and run.compares:
        some = min(tokens, COMPARED_TOKENS)
        finished += _distribution_bytes(run, min(2 * COMPARED_ROWS, len(run.data.eval_rows)) + some + some // 2)
    if not measured:
        return finished
    read = _distribution_bytes(run, max(len(rows) + tokens // 2 + tokens * bool(texts) for rows, texts in measured))
    # alike lengths are read together, so that a batch has a part of the texts
    together = min(size, math.ceil(max(len(texts) for _, texts in measured) / 4) or 1)
    logits = together * run.objective.width * _labels(run)
    return int(max(finished, 4 * MEASURING_VECTORS * run.numbers + read + 4 * AT_WORK * min(LOGITS, logits)))


def _distribution_bytes(run: TrainingRun, positions: int) -> int:
    """Count the bytes of the base model's distributions, and of their logarithms, which a probe keeps."""
    return 4 * min(KL_VALUES, 2 * run.objective.width * positions)


def _factor_bytes(run: TrainingRun) -> int:
    """Count the bytes of the Kronecker factors that a natural decoder is divided by, and of the sums behind them."""
    if run.args.decoder != "natural":
        return 0
    matrices = [matrix_shape(p.shape, n in run.stacked) for n, p in run.scope.parameters.items() if p.dim() > 1]
    sides = [side for matrix in matrices for side in matrix[-2:]]
    return sum((4 + 8) * side * min(side, COLUMNS) for side in sides)


def _labels(run: TrainingRun) -> int:
    """Most labels of a neutral text, of some; 1 without any."""
    of_test = run.data.test.texts if run.data.test is not None else ()
    texts = spread(run.data.texts or of_test, _SOME_TEXTS)
    items = run.objective.quality_items(texts, labels=1, seed=run.args.seed)
    return max((len(item.sample.labels) for item in items), default=1)


def seconds_of_the_rest(run: TrainingRun, steps: int) -> dict[str, float]:
    """Predict the seconds of everything but the steps, by what it is."""
    args, data, steps_an_epoch = run.args, run.data, len(row_sampler(run))
    examples = run.judging[0]
    encoding = len(examples) * args.num_runs * _seconds_per_encoding(run)
    found = {"choosing the direction": encoding, "saving": FIGURE_SECONDS}
    if readings := DECODER_READINGS.get(args.decoder, 0) * run.compares:
        look = spread(data.eval_rows, COMPARED_ROWS)  # half of those of each class
        seconds = _seconds_per_reading(run, look, data.texts, tokens=COMPARED_TOKENS // 2)
        found["choosing the decoder"] = readings * seconds
    times = {"steps": steps // max(int(args.eval_steps or 1), 1), "epoch": math.ceil(steps / steps_an_epoch)}
    if data.eval_sets:
        strategy = str(getattr(args.eval_strategy, "value", args.eval_strategy))
        found["between the steps"] = times.get(strategy, 0) * encoding
        found["evaluating"] = UNIT_READINGS * _seconds_per_reading(run, data.eval_rows, data.texts)
    for rows in list(data.eval_sets.values())[1:]:
        found["evaluating"] += PLAIN_READINGS * _seconds_per_reading(run, rows, data.texts)
    if data.test is not None:
        found["testing"] = PLAIN_READINGS * _seconds_per_reading(run, data.test.rows, data.test.texts)
    return {name: seconds for name, seconds in found.items() if seconds}


def _seconds_per_encoding(run: TrainingRun) -> float:
    samples = [example.alternative for example in spread(run.judging[0], _SOME_ROWS)]
    tangents = tangents_of(constant(run.scope, run.args.rank, 1e-3, run.stacked), run.scope)
    start = time.perf_counter()
    directional_derivatives(run.base_model, run.objective, samples, tangents, batch_size=run.args.eval_batch_size)
    return (time.perf_counter() - start) / len(samples)


def _seconds_per_reading(
    run: TrainingRun, rows: Sequence[Row], texts: Sequence[Any], *, tokens: int | None = None
) -> float:
    """Time one reading of some rows and texts at strength 0, and extrapolate to all of them.

    Args:
        tokens: neutral tokens that are read; default: those of an evaluation.
    """
    nothing = constant(run.scope, run.args.rank, 0.0, run.stacked)
    direction = as_direction(Solution(nothing, 0.0, nothing, nothing), run.scope)
    some_rows, some_texts = spread(rows, _SOME_ROWS), spread(texts, _SOME_TEXTS)
    share = len(some_texts) / max(len(texts), 1)
    seconds = []
    with run.applied(direction) as model:
        for part_rows, part_texts in ((some_rows, some_texts), (some_rows, [])):
            some_tokens = max(1, round(share * run.args.quality_tokens))
            own = round(run.args.quality_tokens / 2 * len(some_rows) / max(len(rows), 1))
            sizes = {"seed": run.args.seed, "tokens": some_tokens, "own": own}
            probe = StrengthProbe(model, run.objective, part_rows, part_texts, **sizes)
            start = time.perf_counter()
            probe.measure(0.0)
            seconds.append(time.perf_counter() - start)
    whole, of_rows = seconds
    of_texts = max(whole - of_rows, 0.0) / share if share else 0.0
    part = 1.0 if tokens is None else min(tokens / run.args.quality_tokens, 1.0)
    return of_rows * len(rows) / len(some_rows) + part * of_texts
