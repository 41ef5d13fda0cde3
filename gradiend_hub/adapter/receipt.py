"""Receipts: what an edit did to the weights, measured on the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .arithmetic import Changes
from .layer import GradiendLayer


@dataclass(frozen=True)
class EditReceipt:
    """Account of an edit of the base model's weights.

    Attributes:
        tensors: Parameters in which some entry of Δ is not zero.
        entries: Weights with a non-zero Δ.
        relative_norm: `‖Δ‖ / ‖W‖` over the parameters of the direction, W being the base model's values.
        by_layer: The same for each transformer layer (or module outside of the layers).
        swallowed: Share of the entries whose value did not change, because Δ is smaller than the spacing of the numbers
            that the weights are stored in.
    """

    tensors: int
    entries: int
    relative_norm: float
    by_layer: dict[str, float]
    swallowed: float


def receipt_of(layers: Iterable[GradiendLayer]) -> EditReceipt:
    """Measure the current edit; one pass over the touched parameters."""
    return receipt_from({layer.site.name: layer.changes() for layer in layers})


def receipt_from(changes: Mapping[str, Changes]) -> EditReceipt:
    """Sum up the changes of parameters, by name."""
    entries = sum(change.entries for change in changes.values())
    groups: dict[str, list[Changes]] = {}
    for name, change in changes.items():
        groups.setdefault(layer_of(name), []).append(change)
    return EditReceipt(
        tensors=sum(change.entries > 0 for change in changes.values()),
        entries=entries,
        relative_norm=_relative_norm(changes.values()),
        by_layer={name: _relative_norm(group) for name, group in groups.items()},
        swallowed=sum(change.swallowed for change in changes.values()) / entries if entries else 0.0,
    )


def layer_of(name: str) -> str:
    """`bert.encoder.layer.3.output.dense.weight` → `bert.encoder.layer.3`; without a number, the owning module."""
    parts = name.split(".")
    depth = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts) - 2)
    return ".".join(parts[: depth + 1]) or name


def _relative_norm(changes: Iterable[Changes]) -> float:
    squares = [(change.delta_square, change.weight_square) for change in changes]
    delta, weight = (math.sqrt(sum(column)) for column in zip(*squares, strict=True)) if squares else (0.0, 0.0)
    return delta / weight if weight else (math.inf if delta else 0.0)
