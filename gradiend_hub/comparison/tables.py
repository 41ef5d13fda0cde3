"""Small tables that a comparison gives: numbers beside what no feature would give, and the most that could be expected."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gradiend_hub import notebook
from gradiend_hub.errors import ConfigError
from gradiend_hub.printable import aligned, printable

from .vectors import Array

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_PLOT = "gradiend_hub.plots.comparison:{}"
"""Draws a table; a name, since figures are built upon comparisons."""


_JUDGED = "In brackets: what directions of coin labels reach, and what the same feature reaches from other rows."


class Cell(NamedTuple):
    """One number of a table; what is not known is `None`, and never 0.

    Attributes:
        value: what was measured, or computed.
        null: absolute value that directions of coin labels reach (95 % of them stay below).
        ceiling: value of the same feature learned from other rows.
    """

    value: float | None
    null: float | None = None
    ceiling: float | None = None


class Written:
    """A dataclass of named results that becomes JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values; what is not known is `None`."""
        return {one.name: _plain(getattr(self, one.name)) for one in fields(self)}  # type: ignore[arg-type]

    def to_json(self) -> str:
        """Return it as a JSON object; what is not known is null."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Written):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return _number(value) if isinstance(value, float) else value


@dataclass(frozen=True, eq=False)
class Matrix(Written):
    """A number for each row and column.

    Attributes:
        measure: what the numbers are, e.g. "cosine of decoders".
        rows, columns: their names.
        values: [rows, columns]; NaN where a number is not known.
        null: the same shape, absolute values that directions of coin labels reach; `None` if nothing is known of any.
        ceiling: the same shape, values of the same feature learned from other rows.
        notes: what to know when reading the table.
        symmetric: whether rows and columns are the same directions, and [i, j] is [j, i].
    """

    measure: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Array
    null: Array | None = None
    ceiling: Array | None = None
    notes: tuple[str, ...] = ()
    symmetric: bool = False

    def __getitem__(self, where: tuple[str, str]) -> Cell:
        """The number of a row and a column, by their names."""
        for name, known in zip(where, (self.rows, self.columns), strict=True):
            if name not in known:
                raise ConfigError(f"The table {self.measure!r} has no {name!r}; it has {', '.join(known)}.")
        at = self.rows.index(where[0]), self.columns.index(where[1])
        return Cell(*(None if part is None else _number(part[at]) for part in (self.values, self.null, self.ceiling)))

    def to_pandas(self, which: str = "values") -> pd.DataFrame:
        """A data frame of the "values", the "null" or the "ceiling"."""
        import pandas

        if which not in ("values", "null", "ceiling"):
            raise ConfigError(f"to_pandas: expected 'values', 'null' or 'ceiling', found {which!r}.")
        part = getattr(self, which)
        empty = np.full(self.values.shape, np.nan)
        return pandas.DataFrame(empty if part is None else part, list(self.rows), list(self.columns))

    def reordered(self, rows: Sequence[int], columns: Sequence[int] | None = None) -> Matrix:
        """The same table with rows (and columns; default: likewise) in another order."""
        at = np.ix_(list(rows), list(rows if columns is None else columns))
        return replace(
            self,
            rows=tuple(self.rows[i] for i in at[0].flatten()),
            columns=tuple(self.columns[j] for j in at[1].flatten()),
            values=self.values[at],
            null=None if self.null is None else self.null[at],
            ceiling=None if self.ceiling is None else self.ceiling[at],
        )

    def plot(self, **options: Any) -> Figure:
        """A heatmap; options as of `gradiend_hub.plots.comparison.plot_matrix`."""
        drawn: Figure = resolve_name(_PLOT.format("plot_matrix"))(self, **options)
        return drawn

    def _repr_html_(self) -> str:
        rows = ((name, [self._cell(i, j) for j in range(len(self.columns))]) for i, name in enumerate(self.rows))
        return notebook.table(self.measure, ["", *self.columns], rows) + notebook.lines(self.notes)

    def _cell(self, i: int, j: int) -> notebook.Cell:
        cell = self[self.rows[i], self.columns[j]]
        known = {"coin labels": cell.null, "same feature": cell.ceiling}
        title = ", ".join(f"{name} {value:.2f}" for name, value in known.items() if value is not None)
        inside = cell.null is not None and cell.value is not None and abs(cell.value) <= cell.null
        shown = notebook.number(cell.value, "+.2f")
        return notebook.Cell(f'<td title="{title}">{f"<i>{shown}</i>" if inside else shown}</td>')

    def __str__(self) -> str:
        judged = any(part is not None and np.isfinite(part).any() for part in (self.null, self.ceiling))
        cells = [[self._text(self[row, column], judged=judged) for column in self.columns] for row in self.rows]
        names = [printable(name, 80) for name in self.rows]
        head = ["", *(f"{printable(name, 80):>5}" for name in self.columns)]
        table = aligned([head, *([name, *row] for name, row in zip(names, cells, strict=True))])
        lines = [printable(self.measure), *([_JUDGED] if judged else []), table]
        return "\n".join([*lines, *(printable(note, 1000) for note in self.notes)])

    @staticmethod
    def _text(cell: Cell, *, judged: bool) -> str:
        """A number with its null and its ceiling in brackets, if any of the table is known."""
        if cell.value is None:
            return ""
        beside = ("–" if value is None else f"{value:.2f}" for value in (cell.null, cell.ceiling))
        return f"{cell.value:+.2f}" + (f" ({', '.join(beside)})" if judged else "")


@dataclass(frozen=True, eq=False)
class Profile(Written):
    """One table for each part of the model.

    Attributes:
        by: what the parts are, "layer" or "component".
        tables: part to its table.
    """

    by: str
    tables: dict[str, Matrix] = field(default_factory=dict)

    def __getitem__(self, part: str) -> Matrix:
        if part not in self.tables:
            raise ConfigError(f"There is no {self.by} {part!r}; there are {', '.join(self.tables)}.")
        return self.tables[part]

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with the parts as columns and the pairs as rows."""
        import pandas

        return pandas.DataFrame({part: table.to_pandas().stack() for part, table in self.tables.items()})

    def plot(self, **options: Any) -> Figure:
        """A line for each pair over the parts; options as of `gradiend_hub.plots.comparison.plot_profile`."""
        drawn: Figure = resolve_name(_PLOT.format("plot_profile"))(self, **options)
        return drawn

    def _repr_html_(self) -> str:
        return "".join(f"<h4>{notebook.safe(part)}</h4>{table._repr_html_()}" for part, table in self.tables.items())


def mean_and_spread(tables: Sequence[Matrix]) -> tuple[Matrix, Matrix]:
    """Mean and standard deviation (n − 1) of the same table over several runs, e.g. seeds.

    Raises:
        ConfigError: No tables, or tables of other measures or directions.
    """
    if not tables:
        raise ConfigError("mean_and_spread: expected at least one table, found none.")
    first = tables[0]
    if any((t.measure, t.rows, t.columns) != (first.measure, first.rows, first.columns) for t in tables):
        raise ConfigError("mean_and_spread: expected tables of one measure with the same rows and columns.")
    stack = np.stack([t.values for t in tables])
    parts: dict[str, Array | None] = {}
    for name in ("null", "ceiling"):
        known = [part for t in tables if (part := getattr(t, name)) is not None]
        parts[name] = np.mean(known, 0) if len(known) == len(tables) else None
    spread = stack.std(0, ddof=1) if len(tables) > 1 else np.full(first.values.shape, np.nan)
    runs = f"{len(tables)} runs"
    mean_of, spread_of = f"{first.measure}, mean of {runs}", f"{first.measure}, standard deviation of {runs}"
    return (
        replace(first, measure=mean_of, values=stack.mean(0), null=parts["null"], ceiling=parts["ceiling"]),
        replace(first, measure=spread_of, values=spread, null=None, ceiling=None),
    )


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
