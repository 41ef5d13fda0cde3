"""Judgement of encoders by rows that were not learned from, however few these are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradiend_hub.data import Row
from gradiend_hub.evaluation.intervals import groups_of, spread
from gradiend_hub.solvers import Convergence, convergence

FEW_GROUPS = 16
"""Fewer prompts or templates than this do not count as so many rows where they occur with both classes."""

MOST_ROWS = 512
"""Most rows that solutions are oriented, compared and judged by."""


def judged_by(h: Tensor, labels: Tensor, rows: Sequence[Row], *, tries: int = 1, of: str) -> Convergence:
    """Judge feature values of rows, [N], by the signs of their classes, [N]; see `convergence`.

    Rows that cannot be read, NaN, are left out, as in the training. Of many, `MOST_ROWS` are judged by.
    """
    chosen = torch.tensor(spread(h.isfinite().nonzero().flatten().tolist(), MOST_ROWS), dtype=torch.long)
    rows, labels = [rows[i] for i in chosen.tolist()], labels[chosen]
    return convergence(h[chosen], labels, units_of(rows, labels) if rows else None, tries=tries, of=of)


def units_of(rows: Sequence[Row], labels: Tensor) -> Tensor:
    """Number of the independent unit of each row, [N]: its prompt, document or template.

    Few prompts or templates do not count as so many rows. One that occurs with both classes cannot tell them apart, so that
    each text or pair of outputs in it is a unit. Both transitions of a pair are always one, as their gradients are the same
    but for the sign.
    """
    groups = groups_of(rows)
    if int(groups.max()) + 1 >= FEW_GROUPS:
        return torch.from_numpy(groups)
    classes: dict[int, set[float]] = {}
    for group, label in zip(groups.tolist(), labels.tolist(), strict=True):
        classes.setdefault(group, set()).add(label)
    keys = [
        group if len(classes[group]) == 1 else (group, _pair(row))
        for group, row in zip(groups.tolist(), rows, strict=True)
    ]
    numbers: dict[Any, int] = {}
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])


def _pair(row: Row) -> Any:
    return str(row.input) if row.group is None else frozenset([str(row.factual), str(row.alternative)])
