"""The arithmetic of an edit, on tensors: `W' = round(W + Σ Δ_i)`, and the kept values that undo it.

The sum is taken in fp32 (fp64 for an fp64 model), in the order of the parts, and rounded once. Nothing here knows modules.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from gradiend_hub.artifact.direction import combine, sum_sparse

__all__ = ["Changes", "Edit", "Originals", "Part", "read_entries", "sum_dtype", "total_delta", "union", "write_edits"]

BLOCK = SPARSE_BLOCK = 1 << 17
"""Elements that are summed at a time; small enough for the cache."""


class Part(NamedTuple):
    """One adapter's share of a sum: `Δ = c_w·weight + c_b·bias` at flat `indices` (everywhere if `None`)."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    indices: torch.Tensor | None
    c_w: float
    c_b: float

    def delta(self, dtype: torch.dtype) -> torch.Tensor:
        """Δ of the stored entries, `[k]`."""
        bias = None if self.bias is None else self.bias.to(dtype)
        return combine(self.weight.to(dtype), bias, self.c_w, self.c_b)


class Changes(NamedTuple):
    """What an edit does to one parameter: counts and squared norms."""

    entries: int
    swallowed: int
    delta_square: float
    weight_square: float


@dataclass
class Originals:
    """Values of the base model's `parameter` under a merged edit: at sorted flat `indices` `[k]`, or all (`None`).

    `version` is torch's count of changes to the parameter after the edit was written; `None` if it is not known.
    """

    parameter: torch.Tensor
    indices: torch.Tensor | None
    values: torch.Tensor
    version: int | None = None

    def note_version(self) -> None:
        """Take note that the parameter holds the edit now."""
        self.version = None if self.parameter.is_inference() else self.parameter._version

    def are_overwritten(self) -> bool:
        """Whether somebody else has changed the parameter in place since (as far as torch counts it)."""
        return self.version is not None and self.version != self.parameter._version

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "version": None}  # a copy counts anew


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type in which an edit of a parameter of this type is summed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def total_delta(parts: list[Part], numel: int, dtype: torch.dtype) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Σ Δ_i as `(flat indices, values)`, or `(None, values [numel])` as soon as one part is dense."""
    if len(parts) == 1:
        return parts[0].indices, parts[0].delta(dtype)
    if all(part.indices is not None for part in parts):
        return sum_sparse((part.indices, part.delta(dtype)) for part in parts if part.indices is not None)
    total: torch.Tensor | None = None
    for part in parts:
        delta = part.delta(dtype)
        if part.indices is not None:
            delta = torch.zeros(numel, dtype=dtype, device=delta.device).index_copy(0, part.indices.long(), delta)
        total = delta if total is None else total + delta
    assert total is not None
    return None, total


def read_entries(tensor: torch.Tensor, indices: torch.Tensor | None) -> torch.Tensor:
    """A copy of the entries at flat indices, `[k]`; of all entries, flat, if `indices` is `None`."""
    if indices is None:
        return tensor.detach().clone().reshape(-1)
    if tensor.is_contiguous():
        return tensor.detach().view(-1).index_select(0, indices)
    return tensor.detach()[torch.unravel_index(indices.long(), tensor.shape)]


def write_entries(tensor: torch.Tensor, indices: torch.Tensor | None, values: torch.Tensor) -> None:
    """Write `[k]` values to flat indices, in place; all entries if `indices` is `None`."""
    data = tensor.detach()
    if indices is None:
        data.copy_(values.view(data.shape))
    elif data.is_contiguous():
        data.view(-1).index_copy_(0, indices.long(), values)
    else:
        data.index_put_(torch.unravel_index(indices.long(), data.shape), values)


def union(supports: list[torch.Tensor | None]) -> torch.Tensor | None:
    """Sorted union of index vectors; `None` (everything) if one of them is."""
    vectors = [support for support in supports if support is not None]
    if len(vectors) < len(supports):
        return None
    return vectors[0] if len(vectors) == 1 else torch.unique(torch.cat(vectors))


class Edit(NamedTuple):
    """What is to be written into one parameter: `round(originals + Σ parts)`."""

    parameter: torch.Tensor
    originals: Originals
    parts: list[Part]

    def write(self) -> None:
        """Write it, in one pass over memory where one dense part is all there is."""
        parameter, originals, parts = self
        if len(parts) == 1 and parts[0].indices is None and originals.indices is None and parameter.is_contiguous():
            _write_dense(parameter, originals.values, parts[0])
        else:
            write_entries(parameter, originals.indices, self._summed())

    def _summed(self) -> torch.Tensor:
        """`round(originals + Σ Δ_i)` over the entries of `originals`."""
        parameter, originals, parts = self
        if not parts:
            return originals.values
        dtype = sum_dtype(parameter.dtype)
        indices, delta = total_delta(parts, parameter.numel(), dtype)
        if delta.numel() == originals.values.numel():
            return (originals.values.to(dtype) + delta).to(parameter.dtype)
        assert indices is not None
        # Some merged adapter has strength zero; its entries keep their bits (-0.0 + 0.0 would not).
        where = (
            indices.long()
            if originals.indices is None
            else torch.searchsorted(originals.indices.long(), indices.long())
        )
        return originals.values.index_copy(0, where, (originals.values[where].to(dtype) + delta).to(parameter.dtype))

    @property
    def is_one_sparse_part(self) -> bool:
        """Whether one sparse part covers exactly the entries that were kept."""
        return (
            len(self.parts) == 1
            and self.parts[0].indices is not None
            and self.parts[0].indices.numel() == self.originals.values.numel()
            and self.parameter.is_contiguous()
        )


@torch.no_grad()
def write_edits(edits: Iterable[Edit]) -> None:
    """Write many edits; sparse ones with the same coefficients share their sums, as most tensors have few entries."""
    groups: dict[tuple[object, ...], list[Edit]] = defaultdict(list)
    edits = list(edits)
    for edit in edits:
        if edit.is_one_sparse_part:
            parameter, part = edit.parameter, edit.parts[0]
            key = (part.c_w, part.c_b, part.bias is None, part.weight.dtype, parameter.dtype, parameter.device)
            groups[key].append(edit)
        else:
            edit.write()
    for group in groups.values():
        start, entries = 0, 0
        for stop, edit in enumerate(group, start=1):
            entries += edit.originals.values.numel()
            if entries >= SPARSE_BLOCK or stop == len(group):
                _write_sparse(group[start:stop])
                start, entries = stop, 0
    for edit in edits:
        edit.originals.note_version()


def _write_sparse(edits: list[Edit]) -> None:
    """Write edits of one sparse part each, with the same coefficients and types."""
    parts, originals = [edit.parts[0] for edit in edits], [edit.originals.values for edit in edits]
    dtype, (_, _, _, c_w, c_b) = sum_dtype(edits[0].parameter.dtype), parts[0]
    biases = [part.bias for part in parts if part.bias is not None]
    # In place on the joined copies, in the order of `Part.delta`: fresh memory costs more than the sum.
    delta = torch.cat([part.weight for part in parts]).to(dtype).mul_(c_w)
    if biases:
        delta.add_(torch.cat(biases).to(dtype).mul_(c_b))
    values = torch.cat(originals)
    torch.add(values, delta, out=values)
    indices = torch.cat([part.indices for part in parts if part.indices is not None]).long()
    sizes = [kept.numel() for kept in originals]
    for edit, where, written in zip(edits, indices.split(sizes), values.split(sizes), strict=True):
        edit.parameter.detach().view(-1).index_copy_(0, where, written)


def _write_dense(parameter: torch.Tensor, originals: torch.Tensor, part: Part) -> None:
    """`parameter = round(originals + Δ)` for one dense part, block by block: no temporary tensor outgrows the cache."""
    target, dtype = parameter.detach().view(-1), sum_dtype(parameter.dtype)
    if target.numel() <= BLOCK:
        torch.add(originals, part.delta(dtype), out=target)
        return
    room, second = (torch.empty(BLOCK, dtype=dtype, device=target.device) for _ in range(2))
    weights, biases = part.weight.detach().split(BLOCK), () if part.bias is None else part.bias.detach().split(BLOCK)
    for number, (written, kept, weight) in enumerate(
        zip(target.split(BLOCK), originals.split(BLOCK), weights, strict=True)
    ):
        size = written.numel()
        if size < BLOCK:
            room, second = room[:size], second[:size]
        delta = torch.mul(weight.to(dtype), part.c_w, out=room)
        if biases:
            delta.add_(torch.mul(biases[number].to(dtype), part.c_b, out=second))
        torch.add(kept, delta, out=written)
