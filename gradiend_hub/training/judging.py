"""Whether an encoder has learned its classes: judged by rows that were not learned from, however few they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradiend_hub.data import Row
from gradiend_hub.evaluation.intervals import groups_of
from gradiend_hub.scope import Scope
from gradiend_hub.solvers import Convergence, convergence

if TYPE_CHECKING:
    from .run import Reading, TrainingRun

__all__ = ["judged_by", "judged_encoder"]

FEW_GROUPS = 16
"""Fewer prompts or templates than this do not count as so many rows where all of them occur with both classes."""


def judged_encoder(run: TrainingRun, read: Reading, scope: Scope) -> Convergence:
    """Judge an oriented solution by validation rows.

    It may fail by training rows before, as any labels fit these; it cannot pass by them.
    """
    if run.is_judged_by_validation:  # they have chosen it, and its sign
        readable = [row for row, usable in zip(run.judging_rows, read.usable.tolist(), strict=True) if usable]
        return judged_by(read.h, read.labels, readable, tries=2 * len(run.args.runs), of="validation rows")
    seen = convergence(read.h, read.labels, of="training rows")
    if seen.faults:
        return seen
    rows = run.data.eval_rows
    h, labels = run.encode(read.solution, rows, scope) if rows else (torch.zeros(0), torch.zeros(0))
    return judged_by(h, labels, rows, of="validation rows")


def judged_by(h: Tensor, labels: Tensor, rows: Sequence[Row], *, tries: int = 1, of: str) -> Convergence:
    """Judge feature values of rows, [N], by the signs of their classes, [N]; see `convergence`.

    Rows that cannot be read, NaN, are left out, as in the training.
    """
    usable = h.isfinite()
    rows, labels = [row for row, is_usable in zip(rows, usable.tolist(), strict=True) if is_usable], labels[usable]
    return convergence(h[usable], labels, units_of(rows, labels) if rows else None, tries=tries, of=of)


def units_of(rows: Sequence[Row], labels: Tensor) -> Tensor:
    """Number of the independent unit of each row, [N]: its prompt, document or template.

    Few prompts or templates that all occur with both classes cannot tell the classes apart, so that each text or pair of
    outputs in them is a unit. Both transitions of a pair are always one, as their gradients are the same but for the sign.
    """
    groups = torch.from_numpy(groups_of(rows))
    pure = any(len(labels[groups == number].unique()) == 1 for number in groups.unique().tolist())
    if pure or int(groups.max()) + 1 >= FEW_GROUPS:
        return groups
    numbers: dict[Any, int] = {}
    return torch.tensor([numbers.setdefault(_pair(row), len(numbers)) for row in rows])


def _pair(row: Row) -> Any:
    if row.group is None:
        return str(row.input)
    return str(row.group), frozenset([str(row.factual), str(row.alternative)])
