"""The arithmetic of an edit, on tensors: `W' = round(W + Σ Δ_i)`, and the kept values that undo it.

The sum is taken in fp32 (fp64 for an fp64 model), in the order of the parts, and rounded once. Merged or not, the same
bits come out, and undoing gives the base model's bits. Nothing here knows modules.

A low-rank Δ is a matrix product, so its last bits are those of the device's order of sums; it is formed in the same pieces
wherever it is used, so that on one device they are always the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from gradiend_hub.artifact.low_rank import Block, Factors, Form
from gradiend_hub.artifact.parameter import ParameterDirection, combine, sum_sparse
from gradiend_hub.artifact.storage import index_dtype

BLOCK = 1 << 17
"""Elements of a dense sum that are written at a time; small enough for the cache, so that no temporary tensor is large."""


class Part(NamedTuple):
    """One adapter's share of a sum: `Δ = c_w·weight + c_b·bias`.

    At flat `indices`, everywhere if `None`; or a matrix product, if weight and bias are the factors of a `form`.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    indices: torch.Tensor | None
    c_w: float
    c_b: float
    form: Form | None = None

    def factors(self, dtype: torch.dtype) -> Factors:
        """Δ of a low-rank part by its factors, in fresh tensors."""
        assert self.form is not None
        vectors = ((self.weight, self.c_w), (self.bias, self.c_b))
        given = [(vector, c) for vector, c in vectors if vector is not None and c != 0] or [(self.weight, 0.0)]
        return Factors.joined([self.form.factors(vector.to(dtype)) * c for vector, c in given])

    def delta(self, dtype: torch.dtype) -> torch.Tensor:
        """Δ of the stored entries, `[k]`; of all elements, if it is low-rank."""
        if self.form is not None:
            return self.factors(dtype).dense().view(-1)
        bias = None if self.bias is None else self.bias.to(dtype)
        return combine(self.weight.to(dtype), bias, self.c_w, self.c_b)

    @torch.no_grad()
    def direction(self, shape: tuple[int, ...]) -> ParameterDirection:
        """Δ as a decoder without a bias, fp32 on the CPU, in the form that it has."""
        if self.form is not None:
            return ParameterDirection(shape, self.factors(torch.float32).to("cpu").short())
        indices = None if self.indices is None else self.indices.to(index_dtype(math.prod(shape))).cpu()
        return ParameterDirection(shape, self.delta(torch.float32).cpu(), indices=indices)

    def tensors(self) -> list[torch.Tensor]:
        """Its vectors."""
        return [tensor for tensor in (self.weight, self.bias, self.indices) if tensor is not None]


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type in which an edit of a parameter of this type is summed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def total_delta(parts: Sequence[Part], numel: int, dtype: torch.dtype) -> tuple[torch.Tensor | None, torch.Tensor]:
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


def delta_pieces(parts: Sequence[Part], numel: int, dtype: torch.dtype) -> Iterator[tuple[slice, torch.Tensor]]:
    """Σ Δ_i piece by piece, as `(flat place, values)`; the values may be written over, and are by the next piece.

    No part is sparse, and no tensor is as large as the parameter.
    """
    products = {number: part.factors(dtype) for number, part in enumerate(parts) if part.form is not None}
    if len({factors.form.matrix for factors in products.values()}) > 1:  # a stack and a matrix: rare
        yield slice(0, numel), total_delta(parts, numel, dtype)[1]
        return
    first = next(iter(products.values()), None)
    flat = (slice(start, min(start + BLOCK, numel)) for start in range(0, numel, BLOCK))
    places = list(first.blocks()) if first is not None else [Block(0, slice(0), piece) for piece in flat]
    # one piece of memory for all products: fresh memory is slow memory
    room = max((place.flat.stop - place.flat.start for place in places), default=0) if first is not None else 0
    rooms = {number: factors.b.new_empty(room) for number, factors in products.items()}
    for place in places:
        total = None
        for number, part in enumerate(parts):
            if number in products:
                delta = rooms[number][: place.flat.stop - place.flat.start]
                products[number].block(place, out=delta.view(-1, products[number].a.shape[-1]))
            else:
                bias = None if part.bias is None else part.bias[place.flat]
                delta = part._replace(weight=part.weight[place.flat], bias=bias).delta(dtype)
            total = delta if total is None else total + delta
        assert total is not None
        yield place.flat, total


def rounded(values: torch.Tensor, delta: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """`round(W + Σ Δ_i)`, elementwise: the one place where an edit meets the base model's values.

    The sum is that of the wider type, delta's, and rounded once; into `out`, if it is given, and delta may be written over
    then.
    """
    if out is None:
        return torch.add(values, delta).to(values.dtype)
    if out.dtype == delta.dtype:
        return torch.add(values, delta, out=out)
    return out.copy_(delta.add_(values))  # `add` from one type into another takes fresh memory for both


def edited(base: torch.Tensor, parts: Sequence[Part]) -> torch.Tensor:
    """`W'` as a new tensor of the base's shape and layout; differentiable. Without parts, the base itself."""
    if not parts:
        return base
    indices, delta = total_delta(parts, base.numel(), sum_dtype(base.dtype))
    if indices is None:
        return rounded(base, delta.view(base.shape))
    if base.is_contiguous():
        flat, indices = base.view(-1), indices.long()
        return flat.index_copy(0, indices, rounded(flat.index_select(0, indices), delta)).view(base.shape)
    places = torch.unravel_index(indices.long(), base.shape)  # keeps the layout, and with it the order of later sums
    return base.index_put(places, rounded(base[places], delta))


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


@dataclass
class Originals:
    """Values of the base model's `parameter` under a merged edit: at sorted flat `indices` `[k]`, or all (`None`).

    `version` is torch's count of changes to the parameter after the edit was written; `None` if it is not known.
    """

    parameter: torch.Tensor
    indices: torch.Tensor | None
    values: torch.Tensor
    version: int | None = None

    @classmethod
    def of(cls, parameter: torch.Tensor, indices: torch.Tensor | None) -> Originals:
        """Keep what a parameter holds at these places."""
        return cls(parameter, indices, read_entries(parameter, indices))

    @torch.no_grad()
    def write(self, parts: Sequence[Part]) -> None:
        """Write `round(originals + Σ parts)` into the parameter; the parts touch no other places."""
        self._write(parts)
        self.version = None if self.parameter.is_inference() else self.parameter._version

    def restore(self, target: torch.Tensor) -> None:
        """Write the kept values into a tensor of the parameter's shape."""
        write_entries(target, self.indices, self.values)

    def differ(self) -> bool:
        """Tell whether the parameter holds other values now, anywhere."""
        flat = self.parameter.detach().reshape(-1)
        return not torch.equal(flat if self.indices is None else flat.index_select(0, self.indices), self.values)

    def are_overwritten(self) -> bool:
        """Tell whether somebody else has changed the parameter in place since (as far as torch counts it)."""
        return self.version is not None and self.version != self.parameter._version

    def _write(self, parts: Sequence[Part]) -> None:
        parameter, dtype = self.parameter, sum_dtype(self.parameter.dtype)
        if not parts:
            return self.restore(parameter)
        if all(part.indices is None for part in parts) and parameter.is_contiguous():
            target = parameter.detach().view(-1)
            for piece, delta in delta_pieces(parts, target.numel(), dtype):
                rounded(self.values[piece], delta, out=target[piece])
            return None
        indices, delta = total_delta(parts, parameter.numel(), dtype)
        if delta.numel() == self.values.numel():
            return write_entries(parameter, self.indices, rounded(self.values, delta))
        assert indices is not None
        # Some merged adapter has strength zero; its entries keep their bits (-0.0 + 0.0 would not).
        places = indices.long()
        if self.indices is not None:
            places = torch.searchsorted(self.indices.long(), places)
        values = self.values.index_copy(0, places, rounded(self.values.index_select(0, places), delta))
        return write_entries(parameter, self.indices, values)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "version": None}  # a copy counts anew


class Changes(NamedTuple):
    """Counts and squared norms of the edit of one parameter."""

    entries: int
    swallowed: int
    delta_square: float
    weight_square: float


def changes(base: torch.Tensor, parts: Sequence[Part]) -> Changes:
    """Compare `W'` with the base model's values."""
    weight_square = float(base.double().square().sum())
    if not parts:
        return Changes(0, 0, 0.0, weight_square)
    indices, delta = total_delta(parts, base.numel(), sum_dtype(base.dtype))
    before = read_entries(base, indices)
    entries, swallowed, delta_square = counted(before, delta)
    return Changes(entries, swallowed, delta_square, weight_square)


def counted(before: torch.Tensor, delta: torch.Tensor) -> tuple[int, int, float]:
    """Entries of a Δ that are not zero, those of them that the weights' type swallows, and `‖Δ‖²`."""
    touched = delta != 0
    swallowed = int((touched & (rounded(before, delta) == before)).sum())
    return int(touched.sum()), swallowed, float(delta.double().square().sum())
