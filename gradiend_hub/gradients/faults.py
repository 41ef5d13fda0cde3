"""Rows that a base model cannot differentiate: named, left out once with a warning, and an error when they are many."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from gradiend_hub.errors import TrainingError
from gradiend_hub.objectives import Example, Objective, PairBatch

from .pairs import GradientReader, NotFiniteError, read_pair

logger = logging.getLogger(__name__)

T = TypeVar("T")


class SkippedRows:
    """Reads gradient pairs without the rows whose loss or gradient is not finite, and remembers these rows.

    Args:
        total: rows of the data set.
        share: largest share of them that may be left out; one row always may.

    Attributes:
        rows: the rows left out so far, and why.
        used: number of rows behind the pair that was read last.
    """

    def __init__(self, total: int, *, share: float = 0.01) -> None:
        self.total = total
        self.allowed = max(1, int(share * total))
        self.rows: dict[str, str] = {}
        self.used = 0

    def read_pair(
        self,
        reader: GradientReader,
        objective: Objective,
        batch: PairBatch,
        *,
        source: str = "alternative",
        target: str = "diff",
    ) -> tuple[Tensor, Tensor] | None:
        """As `read_pair`, over the usable rows of the batch; None if there is none.

        Raises:
            TrainingError: more rows than allowed are unusable, or a gradient is zero everywhere.
        """
        return self.read(objective, batch, partial(read_pair, reader, objective, source=source, target=target))

    def read(self, objective: Objective, batch: PairBatch, read: Callable[[PairBatch], T]) -> T | None:
        """Return what `read` does for the usable rows of the batch; `None` if there is none.

        Args:
            read: raises `NotFiniteError` where a loss or a gradient of the rows is not finite.

        Raises:
            TrainingError: more rows than allowed are unusable, or `read` raises it of all of them.
        """
        while len(batch):
            self.used = len(batch)
            try:
                return read(batch)
            except NotFiniteError as error:
                bad, reason = error.rows, "its loss is not finite"
                if not bad:
                    bad, reason = _bad_gradients(batch, read), "its gradient is not finite"
                if not bad:
                    raise
            for row in bad:
                self._skip(_describe(objective, batch, row), reason)
            batch = batch.select([i for i in range(len(batch)) if i not in bad])
        return None

    def skip(self, objective: Objective, example: Example) -> None:
        """Count a row that somebody else could not read.

        Raises:
            TrainingError: there are more of them than allowed.
        """
        self._skip(_describe(objective, objective.collate_pairs([example]), 0), "its loss is not finite")

    def _skip(self, row: str, reason: str) -> None:
        if row in self.rows:
            return
        self.rows[row] = reason
        self._require_few()
        logger.warning("Row left out, %s: %s", reason, row)

    def join(self, others: Sequence[Mapping[str, str]]) -> None:
        """Count rows that other processes have left out, too.

        Raises:
            TrainingError: together they are more than allowed.
        """
        for rows in others:
            self.rows |= rows
        self._require_few()

    def _require_few(self) -> None:
        if len(self.rows) > self.allowed:
            listed = "; ".join(f"{name} ({why})" for name, why in list(self.rows.items())[:3])
            raise TrainingError(
                f"{len(self.rows)} of {self.total} rows have no finite loss and gradient, more than the {self.allowed} that "
                f"may be left out. The first are: {listed}. Check these rows, or load the base model in float32."
            )


def _bad_gradients(batch: PairBatch, read: Callable[[PairBatch], Any]) -> tuple[int, ...]:
    bad = []
    for row in range(len(batch)):
        try:
            read(batch.select([row]))
        except NotFiniteError:
            bad.append(row)
        except TrainingError:
            pass  # the gradient of one row may be zero
    return tuple(bad)


def _describe(objective: Objective, batch: PairBatch, row: int) -> str:
    """Return the input of a row as text, and its two outputs."""
    text, factual = objective.describe(batch.factual.samples[row])
    _, alternative = objective.describe(batch.alternative.samples[row])
    return f"{text!r} with {factual!r} or {alternative!r}"
