"""Rows of different lengths in batches: grouped by cost, padded, or run apart."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from .samples import Batch

T = TypeVar("T")

FEW = 8
"""Items of a batch whose padding is not worth another batch."""


def batched(
    costs: Sequence[int],
    size: int,
    *,
    widths: Sequence[int] | None = None,
    most: int | None = None,
    stretch: float | None = None,
) -> list[list[int]]:
    """Group items of about equal cost into batches, cheap ones first.

    Args:
        costs: Cost of each item; within a batch all are padded to the largest.
        size: Most items in a batch.
        widths: Numbers of positions that are read of each item, if `most` is given.
        most: Most positions in a batch, counted as items times the largest width.
        stretch: How many times the smallest cost of a batch the largest may be, once the batch has `FEW` items: padding
            costs more than another batch does.

    Returns:
        Indices of the items by batch.
    """
    batches: list[list[int]] = []
    width = 0
    for i in sorted(range(len(costs)), key=lambda i: costs[i]):
        own = 0 if widths is None else widths[i]
        width = max(width, own)
        full = not batches or len(batches[-1]) == size
        wide = most is not None and not full and (len(batches[-1]) + 1) * width > most
        uneven = (
            stretch is not None and not full and len(batches[-1]) >= FEW and costs[i] > stretch * costs[batches[-1][0]]
        )
        if full or wide or uneven:
            batches.append([])
            width = own
        batches[-1].append(i)
    return batches


def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Pad rows to the longest one, to the right: [B, T]."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


def padded_tokens(rows: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """Return token ids and attention mask of some rows, each [B, T], padded to the right."""
    return {"input_ids": padded(rows, pad), "attention_mask": padded([(1,) * len(row) for row in rows], 0)}


def by_length(batch: Batch, read: Callable[[Batch], Tensor]) -> Tensor:
    """Read the rows of each length by themselves, without padding: for models that padding changes the output of.

    Args:
        batch: Rows with an `attention_mask`, padded to the right.
        read: What returns a tensor with a row for each of a batch.
    """
    lengths = batch.inputs["attention_mask"].sum(1).tolist()
    rows = {length: [i for i, other in enumerate(lengths) if other == length] for length in dict.fromkeys(lengths)}
    parts = []
    for length, chosen in rows.items():
        part = batch.select(chosen)
        inputs = {name: value[:, :length] for name, value in part.inputs.items()}
        parts.append(read(Batch(inputs, part.positions, part.labels, part.samples)))
    order = torch.tensor([i for chosen in rows.values() for i in chosen], device=parts[0].device)
    return torch.cat(parts)[order.argsort()]


def by_turns(groups: Collection[Sequence[T]]) -> list[T]:
    """Return the first item of each group, then the second ones, and so on."""
    turns = range(max(map(len, groups), default=0))
    return [group[turn] for turn in turns for group in groups if turn < len(group)]
