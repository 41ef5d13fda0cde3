"""Whether an encoder has learned its classes: judged by rows that were not learned from, however few they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradiend_hub.data import Row
from gradiend_hub.evaluation.intervals import groups_of, spread
from gradiend_hub.scope import Scope
from gradiend_hub.solvers import Convergence, convergence

if TYPE_CHECKING:
    from .run import Reading, TrainingRun

__all__ = ["judged_by", "judged_encoder"]

FEW_GROUPS = 16
"""Fewer prompts or templates than this do not count as so many rows where they occur with both classes."""

MOST_ROWS = 512
"""Most rows that are judged by."""


def judged_encoder(run: TrainingRun, read: Reading, scope: Scope) -> Convergence:
    """Judge an oriented solution by validation rows.

    It may fail by training rows before, as any labels fit these; it cannot pass by them.
    """
    looks = _looks(run)
    if run.is_judged_by_validation:  # they have chosen it, and its sign
        readable = [row for row, usable in zip(run.judging_rows, read.usable.tolist(), strict=True) if usable]
        return judged_by(read.h, read.labels, readable, tries=2 * len(run.args.runs) * looks, of="validation rows")
    seen = convergence(read.h, read.labels, of="training rows")
    if seen.faults:
        return seen
    rows = run.data.eval_rows
    h, labels = run.encode(read.solution, rows, scope) if rows else (torch.zeros(0), torch.zeros(0))
    return judged_by(h, labels, rows, tries=looks, of="validation rows")


def _looks(run: TrainingRun) -> int:
    """From how many checkpoints the validation rows have chosen one."""
    args = run.args
    if not args.load_best_model_at_end:
        return 1
    epoch = math.ceil(len(run.data.dataset) / args.train_batch_size)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * epoch)
    every = epoch if args.eval_strategy == "epoch" else max(1, int(args.eval_steps or 1))
    return max(1, math.ceil(int(steps) / every))


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
