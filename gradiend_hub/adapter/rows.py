"""Another strength for every row of a batch: the rows of each strength are run by themselves, and joined again.

So every row gets what it would get alone, whatever the model does with its weights. A generation is split as a whole,
so that every group has its own cache; a cache that a forward returns is one for each group, and goes into the next
forward with the same strengths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from gradiend_hub.errors import ConfigError, EditError

ALTERNATIVE = "Run the rows of each strength by themselves, with `set_strength`."
CACHES = ("past_key_values", "cache_params", "cache")
ROWS = ("input_ids", "inputs_embeds", "pixel_values", "inputs")
"""Inputs that have a row for every row of the batch; position_ids, for one, may be of one row."""


@dataclass
class GroupedCache:
    """A cache for each group of rows: the memory of a forward with strengths by row."""

    groups: Groups
    caches: list[Any]

    def get_seq_length(self) -> int:
        """Tokens that were seen."""
        return int(self.caches[0].get_seq_length())


@dataclass
class Groups:
    """The rows of a batch, by strength.

    Attributes:
        batch: Number of rows.
        strengths: Strength by adapter, for every group.
        rows: Row numbers, for every group.
    """

    batch: int
    strengths: list[dict[str, float]]
    rows: list[list[int]]

    def by_adapter(self) -> dict[str, list[float]]:
        """Strength of every row, by adapter."""
        found = {name: [0.0] * self.batch for name in self.strengths[0]}
        for strengths, rows in zip(self.strengths, self.rows, strict=True):
            for name, strength in strengths.items():
                for row in rows:
                    found[name][row] = strength
        return found


def by_row(
    strengths: Any,
    current: Mapping[str, float],
    loaded: Sequence[str],
    args: tuple[Any, ...],
    inputs: Mapping[str, Any],
) -> Groups:
    """Group the rows of a batch by their strengths.

    Args:
        strengths: As the argument `strengths` of `GradiendModel.forward`.
        current: Current strength of the active directions.
        loaded: Names of all directions.
        args: Positional arguments of the forward.
        inputs: Keyword arguments of the forward.

    Raises:
        ConfigError: If the strengths are no finite numbers, or not one for every row.
    """
    if callable(strengths):
        strengths = strengths(*args, **inputs)
    if not isinstance(strengths, Mapping):
        if len(current) != 1:
            raise ConfigError(
                f"strengths: {len(current)} directions are active; give a dictionary by name of {list(current)}."
            )
        strengths = {next(iter(current)): strengths}
    if strange := [name for name in strengths if name not in loaded]:
        raise ConfigError(f"strengths: there is no direction {strange[0]!r}; loaded are {sorted(loaded)}.")
    first = [inputs[name] for name in ROWS if name in inputs]
    batch = next((len(x) for x in (*first, *args, *inputs.values()) if isinstance(x, torch.Tensor) and x.ndim), 0)
    columns = {name: numbers_by_row(name, values, batch) for name, values in strengths.items()}
    rows: dict[tuple[float, ...], list[int]] = {}
    for row, values in enumerate(zip(*columns.values(), strict=True)):
        rows.setdefault(values, []).append(row)
    others = {name: strength for name, strength in current.items() if name not in columns}
    return Groups(batch, [others | dict(zip(columns, values, strict=True)) for values in rows], list(rows.values()))


def numbers_by_row(name: str, values: Any, batch: int) -> list[float]:
    """The strengths of a direction, one for every row.

    Raises:
        ConfigError: If they are no finite numbers, or not one for every row.
    """
    if isinstance(values, torch.Tensor) or hasattr(values, "tolist"):
        values = values.tolist()
    is_list = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == batch
    if not (is_list and all(isinstance(x, Real) and not isinstance(x, bool) and math.isfinite(x) for x in values)):
        one = " For one strength for all rows, call `set_strength`." if isinstance(values, Real) else ""
        raise ConfigError(
            f"strengths of {name!r}: expected a finite number for each of {batch} rows, found {str(values)[:80]}.{one}"
        )
    return [float(x) for x in values]


def run_groups(
    groups: Groups,
    run: Callable[..., Any],
    set_strength: Callable[[dict[str, float]], None],
    args: tuple[Any, ...],
    inputs: Mapping[str, Any],
    *,
    padding: int | None = None,
) -> Any:
    """Run every group by itself, and join what comes out.

    Args:
        groups: The groups.
        run: The forward, or `generate`, of the model.
        set_strength: Sets the strength for the next group.
        args: Positional arguments of the call, of the whole batch.
        inputs: Keyword arguments of the call, of the whole batch.
        padding: Token that fills up the rows of a group that ended earlier, if groups may.

    Raises:
        EditError: If an input cannot be divided into rows, or an output not be joined from groups.
    """
    outputs = []
    for number, (strengths, rows) in enumerate(zip(groups.strengths, groups.rows, strict=True)):
        index = torch.tensor(rows)
        part = [_rows_of(f"argument {place}", value, index, groups, number) for place, value in enumerate(args)]
        named = {name: _rows_of(name, value, index, groups, number) for name, value in inputs.items()}
        set_strength(strengths)
        outputs.append(run(*part, **named))
    return outputs[0] if len(outputs) == 1 else _joined("output", outputs, groups, padding)


def _rows_of(name: str, value: Any, index: torch.Tensor, groups: Groups, number: int) -> Any:
    """The part of an input that belongs to a group."""
    if isinstance(value, GroupedCache):
        if value.groups != groups:
            raise EditError(
                f"{name}: it was made with other strengths by row. Give every row the strength that it had."
            )
        return value.caches[number]
    is_cache = isinstance(value, Cache) or (name in CACHES and not isinstance(value, (tuple, list, type(None))))
    if is_cache and len(groups.rows) > 1:
        raise EditError(f"{name}: a cache of the whole batch has no part for each strength. {ALTERNATIVE}")
    if isinstance(value, Mapping):
        parts = {key: _rows_of(f"{name}.{key}", one, index, groups, number) for key, one in value.items()}
        return type(value)(**parts) if isinstance(value, ModelOutput) else parts
    if isinstance(value, (list, tuple)) and any(isinstance(one, torch.Tensor) for one in value):
        return type(value)(_rows_of(name, one, index, groups, number) for one in value)
    if not isinstance(value, torch.Tensor) or value.ndim == 0 or name == "cache_position":
        return value
    # [positions], [rows, positions], or three of them for images and text
    dimension = value.ndim - 2 if name.endswith("position_ids") else 0
    if dimension < 0 or value.shape[dimension] == 1 != groups.batch:
        return value
    if value.shape[dimension] != groups.batch:
        raise EditError(f"{name} {list(value.shape)} has no row for each of the {groups.batch} rows. {ALTERNATIVE}")
    return value.index_select(dimension, index.to(value.device))


def _joined(name: str, parts: list[Any], groups: Groups, padding: int | None) -> Any:
    """The outputs of all groups as the output of the batch."""
    first = parts[0]
    if isinstance(first, torch.Tensor):
        return _joined_rows(name, parts, groups, padding)
    if isinstance(first, Mapping):
        keys = [key for key in first if all(part.get(key) is not None for part in parts)]
        return type(first)(**{key: _joined(key, [p[key] for p in parts], groups, padding) for key in keys})
    if isinstance(first, (tuple, list)):
        steps = zip(*parts, strict=False)
        if len({len(part) for part in parts}) > 1:
            raise EditError(
                f"{name}: groups ended after different numbers of steps and cannot be joined. {ALTERNATIVE}"
            )
        return type(first)(_joined(name, list(step), groups, padding) for step in steps)
    if first is None:
        return None
    return GroupedCache(groups, parts)


def _joined_rows(name: str, parts: list[torch.Tensor], groups: Groups, padding: int | None) -> Any:
    if padding is not None and name in ("output", "sequences"):
        longest = max(part.shape[1] for part in parts)
        parts = [torch.nn.functional.pad(part, (0, longest - part.shape[1]), value=padding) for part in parts]
    per_row = {part.shape[0] / len(rows) if part.ndim else 0.0 for part, rows in zip(parts, groups.rows, strict=True)}
    count = per_row.pop()
    many = padding is not None and count.is_integer()  # sequences that `generate` returns for one row
    if per_row or not (count == 1 or (many and count)):
        raise EditError(
            f"{name} {list(parts[0].shape)} is no row for each row of the batch, so it cannot be joined (a loss is a mean "
            f"over all rows: compute it from the logits). {ALTERNATIVE}"
        )
    order = torch.tensor([row for rows in groups.rows for row in rows]).argsort().to(parts[0].device)
    joined = torch.cat([part.unflatten(0, (-1, int(count))) for part in parts])
    return joined.index_select(0, order).flatten(0, 1)
