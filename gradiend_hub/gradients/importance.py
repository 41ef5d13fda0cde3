"""Pre-pruning: which coordinates tell the two feature classes apart, read from a sample of rows before training.

A row with label y = ±1 has the gradient g_i. The class signal of a coordinate is the mean of y_i·g_i, with both classes
weighing the same: half the difference of the class means. (Without y the classes of `diff`, whose signs are opposite,
would cancel.) This is linear in the rows, so one backward pass serves a whole batch, and the result does not depend on how
rows are batched, beyond the rounding of the base model's own arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradiend_hub.errors import ConfigError, TrainingError
from gradiend_hub.objectives import Example, Objective, batched
from gradiend_hub.progress import progress
from gradiend_hub.scope import Scope

from .faults import SkippedRows
from .pairs import GradientReader, NotFiniteError, slot_losses

MEASURES = ("mean", "snr")
"""What `importance` can measure."""

_NOISE = 1e-4
"""Standard error, relative to the mean class signal of all coordinates, below which "snr" ranks nothing higher."""

_CHUNK = 1 << 20
"""Values that are looked at a time, so that no temporary is as large as the gradients."""


def prune(
    reader: GradientReader,
    objective: Objective,
    examples: Sequence[Example],
    labels: Sequence[float],
    *,
    density: float,
    **options: Any,
) -> Scope:
    """The reader's scope with the most important coordinates only: `max(1, round(density · n))` of them.

    One set of coordinates serves encoder and decoder, so one gradient decides. The default `diff` is right for every
    source and target: it holds the gradients of both fillers of a row, so what the context alone contributes cancels.

    Args:
        reader: an open reader of the base model with the scope to choose from.
        examples: training rows.
        labels: ±1 per row, its class; rows with 0 (identity or neutral) say nothing about classes and are left out.
        density: share of the scope's coordinates to keep, in (0, 1].
        **options: `measure`, `gradient`, `samples`, `batch_size` and `skipped` of `importance`.

    Raises:
        ConfigError: an argument out of range, or rows of one class only.
        TrainingError: an importance that is not finite, or fewer coordinates with any gradient than are to be kept.
    """
    if not 0 < density <= 1:
        raise ConfigError(f"density must lie in (0, 1], found {density}.")
    scope = reader.scope
    if density == 1:
        return scope
    values = importance(reader, objective, examples, labels, **options)
    count = max(1, round(density * scope.size))
    useful = sum(int(part.count_nonzero()) for part in values.split(_CHUNK))
    if useful < count:
        raise TrainingError(
            f"density={density} keeps {count:,} coordinates, but only {useful:,} of {scope.size:,} in scope have any "
            f"gradient ({scope.summary()}). Lower the density, or choose a scope that the loss uses."
        )
    return scope.keep(top_k(scope.split(values), count))


def importance(
    reader: GradientReader,
    objective: Objective,
    examples: Sequence[Example],
    labels: Sequence[float],
    *,
    measure: str = "mean",
    gradient: str = "diff",
    samples: int = 128,
    batch_size: int = 16,
    skipped: SkippedRows | None = None,
) -> Tensor:
    """Measure how much each coordinate in scope says about the class: [n], fp32, ≥ 0.

    Args:
        reader: an open reader of the base model.
        examples: training rows.
        labels: ±1 per row; rows with 0 are left out.
        measure: "mean", |mean of y·g|: keeps most of the edit's effect; one backward pass per batch, and one vector of n
            values. "snr", the difference of the class means over its standard error: separates the classes better with
            less of the effect; a backward pass per row, and four vectors of n values.
        gradient: "factual", "alternative" or "diff".
        samples: rows to read, as many of each class, evenly spread over the rows.
        batch_size: rows per forward pass; a matter of memory and time only.
        skipped: keeps count of rows without a finite loss, in whose place others are read.
    """
    if measure not in MEASURES:
        raise ConfigError(f"measure must be one of {MEASURES}, found {measure!r}.")
    skipped, usable = skipped or SkippedRows(len(examples)), list(labels)
    while True:
        weights = _stratified(usable, samples)
        chosen = sorted(weights)
        groups = batched([examples[i].cost for i in chosen], batch_size if measure == "mean" else 1)
        batches = [[chosen[place] for place in group] for group in groups]
        rows = [i for batch in batches for i in batch]
        try:
            if measure == "mean":
                total = reader.zeros()
                for batch in progress(batches, "choosing coordinates", len(batches)):
                    _read(reader, objective, examples, {i: weights[i] for i in batch}, gradient, into=total)
                values = total.abs_()
            else:
                read = (
                    _read(reader, objective, examples, {i: 1.0}, gradient, into=reader.zeros())
                    for i in progress(rows, "choosing coordinates", len(rows))
                )
                values = _signal_to_noise(read, [weights[i] for i in rows])
            break
        except NotFiniteError as error:
            for row in error.rows:
                skipped.skip(objective, examples[row])
                usable[row] = 0.0
    if not bool(values.max().isfinite()):  # which NaN is not, either
        raise TrainingError(
            f"The importance of the coordinates is not finite: a gradient of the {len(rows)} sampled rows overflows. Load "
            "the base model in float32 or bfloat16."
        )
    return values


def _read(
    reader: GradientReader,
    objective: Objective,
    examples: Sequence[Example],
    weights: Mapping[int, float],
    gradient: str,
    *,
    into: Tensor,
) -> Tensor:
    """Adds Σ weight·∇L of some rows to a vector."""
    batch = objective.collate_pairs([examples[i] for i in weights]).to(reader.device)
    losses = slot_losses(reader.model, objective, batch, gradient)
    if not bool(losses.isfinite().all()):
        bad = tuple(i for i, loss in zip(weights, losses.tolist(), strict=True) if not math.isfinite(loss))
        raise NotFiniteError(f"The base model's loss is not finite for row {bad[0]}.", bad)
    return reader.read(losses @ losses.new_tensor(list(weights.values())), into=into)


def _signal_to_noise(gradients: Iterator[Tensor], weights: Sequence[float]) -> Tensor:
    """|m₊ − m₋| / (√(v₊/N₊ + v₋/N₋) + ε) with class means m and variances v.

    ε is a small share of the mean |m₊ − m₋|, so that rounding is no signal (e.g. of key biases, whose gradient is zero).
    Sums of squares are taken around the class means so far (Welford), so small differences of large means survive.
    """
    counts = {1.0: 0, -1.0: 0}
    means: dict[float, Tensor] = {}
    squares: Tensor | None = None  # Σ over both classes, each in units of its final N·(N − 1)
    for weight, gradient in zip(weights, gradients, strict=True):
        label, size = (1.0 if weight > 0 else -1.0), round(0.5 / abs(weight))
        counts[label] += 1
        mean = means.setdefault(label, torch.zeros_like(gradient))
        if squares is None:
            squares = torch.zeros_like(gradient)
        gradient -= mean
        share = (1 - 1 / counts[label]) / (size * max(size - 1, 1))
        mean.add_(gradient, alpha=1 / counts[label])
        squares.addcmul_(gradient, gradient, value=share)
    assert squares is not None
    signal = means.pop(1.0).sub_(means.pop(-1.0)).abs_()
    return signal.div_(squares.sqrt_().add_(_NOISE * float(signal.mean()) or 1.0))


def _stratified(labels: Sequence[float], count: int) -> dict[int, float]:
    """Sampled rows with weights y/(2·N_y): as many of each class, evenly spread over the rows of the class."""
    if count < 2:
        raise ConfigError(f"samples must be at least 2, one row of each class, found {count}.")
    weights: dict[int, float] = {}
    for label in (1.0, -1.0):
        rows = [i for i, y in enumerate(labels) if y == label]
        if not rows:
            raise ConfigError(
                f"Pruning needs rows of both classes; none of the {len(labels)} rows has label {label:+.0f}."
            )
        taken = min(count // 2, len(rows))
        weights |= {rows[j * len(rows) // taken]: label / (2 * taken) for j in range(taken)}
    return weights


def top_k(importance: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The `count` largest values over all tensors, exactly: sorted flat int64 indices by name.

    Values must be ≥ 0 and fp32. Their bits then order as the values do, so the threshold is found by counting the upper
    and then the lower 16 bits, a million values at a time, with no sort and no copy. Ties at the threshold go to the
    earlier coordinate.
    """
    upper, above = _digit(importance, count, None)
    lower, tied = _digit(importance, count - above, upper)
    threshold, ties = upper << 16 | lower, count - above - tied
    chosen: dict[str, Tensor] = {}
    for name, values in importance.items():
        parts = []
        for number, bits in enumerate(_bits(values).split(_CHUNK)):
            indices = (bits >= threshold).nonzero().squeeze(1)
            equal = bits[indices] == threshold
            parts.append(indices[~equal | (equal.cumsum(0) <= ties)] + number * _CHUNK)
            ties -= min(ties, int(equal.sum()))
        chosen[name] = torch.cat(parts)
    return chosen


def _bits(values: Tensor) -> Tensor:
    """Flat fp32 values ≥ 0 as integers of the same order."""
    return values.flatten().view(torch.int32)


def _digit(importance: Mapping[str, Tensor], count: int, upper: int | None) -> tuple[int, int]:
    """The 16 bits at which the `count`-th largest value stands, and how many values are larger in these bits.

    With `upper` the lower 16 bits of the values that have these upper bits are read, else the upper 16 bits of all.
    """
    histogram = torch.zeros(1 << 16, dtype=torch.int64)
    for values in importance.values():
        for bits in _bits(values).split(_CHUNK):
            digits = bits >> 16 if upper is None else bits[bits >> 16 == upper] & 0xFFFF
            histogram += torch.bincount(digits, minlength=1 << 16).cpu()
    reached = histogram.flip(0).cumsum(0)
    place = int(torch.searchsorted(reached, count))
    digit = (1 << 16) - 1 - place
    return digit, int(reached[place] - histogram[digit])
