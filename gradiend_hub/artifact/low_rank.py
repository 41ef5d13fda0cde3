"""Low-rank vectors: a matrix (or a stack of them) that is kept as the factors of Δ = b·a, as a LoRA is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .fields import matrix_shape

BLOCK = {"cpu": 1 << 17}
"""Elements of a product that are formed at a time, by device: on a CPU, what stays in the cache."""
LARGE_BLOCK = 1 << 24


def is_rank(rank: object, most: int) -> bool:
    """Return whether something is a whole number from 1 to `most`."""
    return isinstance(rank, Integral) and not isinstance(rank, bool) and 1 <= int(rank) <= most


class Form(NamedTuple):
    """Shape of low-rank factors, and their order in a file: all of b, then all of a, flat.

    Attributes:
        matrix: The parameter as a matrix `(o, i)` (a convolution's kernels are one row an output channel), or as a stack
            of `(E, o, i)`, each of which has factors of its own.
        rank: Columns r of b, rows of a.
    """

    matrix: tuple[int, ...]
    rank: int

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Form | None:
        """The form of a parameter in `GradiendConfig.parameters`; `None` if it is not low-rank."""
        rank = spec.get("rank")
        return None if rank is None else cls(matrix_shape(spec["shape"], bool(spec.get("stacked"))), rank)

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of b and a."""
        *stack, rows, columns = self.matrix
        return (*stack, rows, self.rank), (*stack, self.rank, columns)

    def factors(self, flat: Tensor) -> Factors:
        """The factors in a flat vector `[size]`, as views."""
        of_b, of_a = self.shapes
        return Factors(flat[: math.prod(of_b)].view(of_b), flat[math.prod(of_b) :].view(of_a))


@dataclass(frozen=True, eq=False)
class Factors:
    """A matrix Δ = b·a by its factors, or a stack of matrices.

    Attributes:
        b: fp32 `[o, r]`, or `[E, o, r]`.
        a: fp32 `[r, i]`, or `[E, r, i]`.
    """

    b: Tensor
    a: Tensor

    @property
    def rank(self) -> int:
        """Columns r of b."""
        return self.b.shape[-1]

    @property
    def form(self) -> Form:
        """Its form."""
        return Form((*self.b.shape[:-1], self.a.shape[-1]), self.rank)

    def numel(self) -> int:
        """Numbers of both factors."""
        return self.b.numel() + self.a.numel()

    def flat(self, rank: int | None = None) -> Tensor:
        """Both factors as one vector, as `Form` lays them out; filled up with zeros to a larger rank."""
        more, b, a = 0 if rank is None else rank - self.rank, self.b, self.a
        if more:
            b, a = torch.nn.functional.pad(b, (0, more)), torch.nn.functional.pad(a, (0, 0, 0, more))
        return torch.cat([b.reshape(-1), a.reshape(-1)])

    def to(self, *args: Any) -> Factors:
        """Both factors on another device, or in another type."""
        return Factors(self.b.to(*args), self.a.to(*args))

    def __mul__(self, factor: float) -> Factors:
        return Factors(self.b * factor, self.a)

    __rmul__ = __mul__

    @classmethod
    def joined(cls, parts: Sequence[Factors]) -> Factors:
        """The sum of matrices of one shape: its rank is the sum of theirs. Fresh tensors, whose bits are always the same."""
        return cls(torch.cat([part.b for part in parts], -1), torch.cat([part.a for part in parts], -2))

    def dense(self) -> Tensor:
        """b·a, `[o, i]` or `[E, o, i]`. The order of its sums is the device's, so bits may differ between machines."""
        if torch.compiler.is_compiling() or (
            torch.is_grad_enabled() and (self.b.requires_grad or self.a.requires_grad)
        ):
            return self.b @ self.a
        out = self.b.new_empty(self.form.matrix)
        flat = out.view(-1)
        for place in self.blocks():
            self.block(place, out=flat[place.flat].view(-1, self.a.shape[-1]))
        return out

    def blocks(self) -> Iterator[Block]:
        """The pieces in which a product is formed, always the same, so that whoever forms it gets the same bits."""
        *stack, rows, columns = self.form.matrix
        step = max(1, BLOCK.get(self.b.device.type, LARGE_BLOCK) // columns)
        for number in range(math.prod(stack)):
            for start in range(0, rows, step):
                stop = min(start + step, rows)
                first = number * rows * columns
                yield Block(number, slice(start, stop), slice(first + start * columns, first + stop * columns))

    def block(self, place: Block, out: Tensor | None = None) -> Tensor:
        """Some rows of a matrix, `[rows, i]`."""
        b, a = (x if x.ndim == 2 else x[place.number] for x in (self.b, self.a))
        return torch.mm(b[place.rows], a, out=out)

    def at(self, indices: Tensor) -> Tensor:
        """Values at flat positions, `[k]`."""
        *_, rows, columns = self.form.matrix
        b, a = self.b.reshape(-1, self.rank), self.a.transpose(-1, -2).reshape(-1, self.rank)
        found = []
        for some in indices.long().split(LARGE_BLOCK // max(self.rank, 1)):
            row, column = some // columns, some % columns
            found.append((b[row] * a[row // rows * columns + column]).sum(-1))
        return torch.cat(found)

    def inner(self, other: Factors | Tensor) -> float:
        """Inner product with a matrix of the same shape, by factors or dense, summed in fp64."""
        if isinstance(other, Factors):
            if self.b.ndim != other.b.ndim:
                return self.inner(other.dense())
            mine, theirs = self.to(torch.float64), other.to(torch.float64)
            left, right = mine.b.transpose(-1, -2) @ theirs.b, mine.a @ theirs.a.transpose(-1, -2)
            return float((left * right).sum())
        flat, total = other.reshape(-1), 0.0
        for place in self.blocks():
            b, a = (x if x.ndim == 2 else x[place.number] for x in (self.b, self.a))
            rows = flat[place.flat].view(-1, a.shape[-1]).double()
            total += float(((b[place.rows].double().T @ rows) * a.double()).sum())
        return total

    def bound(self) -> float:
        """The most that an entry of b·a can be, in absolute value; NaN or infinite if a factor is."""
        if not self.rank:
            return 0.0
        # not `norm(dim=-2)`, which goes down one column after the other and takes 15 times as long
        columns = self.a.square().sum(-2).amax(-1).sqrt()
        return float((self.b.norm(dim=-1).amax(-1) * columns).max())

    def to_rank(self, rank: int) -> Factors:
        """The nearest matrix of at most this rank (singular values, largest first); itself if its rank is no larger."""
        if self.rank <= rank:
            return self
        outer, left = torch.linalg.qr(self.b.double())
        inner, right = torch.linalg.qr(self.a.double().transpose(-1, -2))
        u, s, v = torch.linalg.svd(left @ right.transpose(-1, -2), full_matrices=False)
        root = s[..., :rank].sqrt()
        b = outer @ (u[..., :rank] * root[..., None, :])
        a = (root[..., None] * v[..., :rank, :]) @ inner.transpose(-1, -2)
        return Factors(b, a).to(torch.float32)

    def short(self) -> Factors:
        """The same matrix, of no larger rank than its smaller side, which a sum of factors may exceed."""
        return self.to_rank(min(self.form.matrix[-2:]))

    @classmethod
    def nearest(cls, matrix: Tensor, rank: int) -> Factors:
        """The nearest matrix of this rank to a dense one `[o, i]` or `[E, o, i]`.

        The singular vectors of the smaller side are those of its Gram matrix, in fp64, where squaring the singular values
        loses nothing that fp32 could hold; the SVD of a vocabulary's matrix would take a hundred times as long.
        """
        if matrix.shape[-2] < matrix.shape[-1]:
            turned = cls.nearest(matrix.transpose(-1, -2), rank)
            return cls(turned.a.transpose(-1, -2).contiguous(), turned.b.transpose(-1, -2).contiguous())
        pieces = matrix.split(max(1, LARGE_BLOCK // matrix.shape[-1]), dim=-2)
        gram = sum(map(_gram, pieces[1:]), _gram(pieces[0]))
        squares, vectors = torch.linalg.eigh(gram)
        root = squares[..., -rank:].flip(-1).clamp(min=0).sqrt().sqrt()  # both factors get the same share of the values
        vectors = vectors[..., -rank:].flip(-1)
        onto = torch.where(root[..., None, :] > 0, vectors / root[..., None, :], 0.0)
        b = torch.cat([(piece.double() @ onto).float() for piece in pieces], -2)
        return cls(b, (vectors * root[..., None, :]).transpose(-1, -2).float().contiguous())


class Block(NamedTuple):
    """A piece of a product: number of the matrix in its stack, its rows, and their place in the flat parameter."""

    number: int
    rows: slice
    flat: slice


def _gram(matrix: Tensor) -> Tensor:
    wide = matrix.double()
    return wide.transpose(-1, -2) @ wide
