"""Vectors of several directions over the parameters of one model: aligned by name and shape, one parameter at a time.

Sparse vectors stay sparse and low-rank ones low-rank in every sum of products. Only ranks and largest entries need the
values of a low-rank vector, which are made for one parameter at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from scipy import sparse

from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.parameter import matched_names
from gradiend_hub.errors import ConfigError

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Places: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Shape: TypeAlias = tuple[int, ...]
Of = Literal["decoder", "encoder"]

BLOCK = 1 << 18
"""Elements of dense vectors that are widened to fp64 at a time."""


@dataclass(frozen=True)
class Frame:
    """The parameters that a set of directions touches, under one name each, with their places in the vector of all.

    Attributes:
        shapes: name to shape.
        starts: name to the place of its first element.
    """

    shapes: Mapping[str, Shape]
    starts: Mapping[str, int]

    @classmethod
    def of(cls, named: Sequence[Mapping[str, Shape]]) -> Frame:
        """The union of several directions' parameters.

        Args:
            named: name to shape for each direction; a name may lack the backbone's prefix, or have it.

        Raises:
            ConfigError: A parameter has different shapes, or its name fits several.
        """
        shapes: dict[str, Shape] = {}
        for one in named:
            known = matched_names(one, shapes)
            for own, sizes in one.items():
                name, shape = known.get(own, own), tuple(sizes)
                if shapes.setdefault(name, shape) != shape:
                    raise ConfigError(
                        f"Cannot align directions: {name} is {list(shapes[name])} in one, {list(shape)} in another."
                    )
        starts, total = {}, 0
        for name, shape in shapes.items():
            starts[name], total = total, total + math.prod(shape)
        return cls(shapes, starts)

    @property
    def numel(self) -> int:
        """Elements of all parameters."""
        return sum(map(math.prod, self.shapes.values()))

    def names(self, own: Mapping[str, Any]) -> dict[str, str]:
        """Name here to name in a direction, for the direction's parameters that are known here."""
        return {name: theirs for theirs, name in matched_names(own, self.shapes).items()}


class Vectors:
    """One vector of each of some directions, in a common frame.

    Args:
        frame: that of the set.
        directions: directions, which may be streamed from their files.
        factors: factor of each vector, e.g. the sign that orients it; default: 1.
        of: which of their vectors: decoder or encoder weights.
        with_bias: factor of the decoder's bias vector, which is added then; `None` leaves it out.
    """

    def __init__(
        self,
        frame: Frame,
        directions: Sequence[Direction],
        factors: Sequence[float] | None = None,
        of: Of = "decoder",
        with_bias: Sequence[float] | None = None,
    ) -> None:
        self.frame, self.of = frame, of
        self._directions, self._biases = list(directions), with_bias
        self._factors = [1.0] * len(directions) if factors is None else list(factors)
        self._names = [frame.names(direction.parameters) for direction in directions]

    def __len__(self) -> int:
        return len(self._directions)

    def part(self, number: int, name: str) -> ParameterDirection | None:
        """The part of a vector that belongs to one parameter, as the decoder of a part; `None` if it has none."""
        own = self._names[number].get(name)
        if own is None:
            return None
        part, factor = self._directions[number].parameters[own], self._factors[number]
        if self._biases is not None:
            return ParameterDirection(part.shape, part.delta(factor, self._biases[number]), indices=part.indices)
        values = part.decoder if self.of == "decoder" else part.encoder
        assert values is not None, "asked for an encoder that is not there"
        return ParameterDirection(part.shape, values if factor == 1 else values * factor, indices=part.indices)

    def parts(self, name: str) -> list[ParameterDirection | None]:
        """The parts of all vectors that belong to one parameter."""
        return [self.part(number, name) for number in range(len(self))]

    def single(self, number: int) -> Vectors:
        """One of the vectors."""
        biases = None if self._biases is None else [self._biases[number]]
        return Vectors(self.frame, [self._directions[number]], [self._factors[number]], self.of, biases)

    def touched(self, number: int) -> frozenset[str]:
        """Names of the parameters that a vector has values for."""
        return frozenset(self._names[number])


# ---------------------------------------------------------------------------------------------------- sums of products


def products(left: Vectors, right: Vectors | None = None, names: Sequence[str] | None = None) -> Array:
    """Inner products of vectors of one frame, summed in fp64: [len(left), len(right)].

    Args:
        right: default: the left ones.
        names: parameters to sum over; default: all.
    """
    total = np.zeros((len(left), len(left if right is None else right)))
    for name in left.frame.shapes if names is None else names:
        mine = left.parts(name)
        total += _products(mine, mine if right is None else right.parts(name))
    return total


def _products(left: Sequence[ParameterDirection | None], right: Sequence[ParameterDirection | None]) -> Array:
    """Inner products of parts of one parameter."""
    found = np.zeros((len(left), len(right)))
    theirs = _by_form(right)
    for form, mine in _by_form(left).items():
        for other_form, others in theirs.items():
            if form == other_form == "sparse":
                one = _csr([*mine.values()])
                other = one if left is right else _csr([*others.values()])
                found[np.ix_([*mine], [*others])] = (one @ other.T).toarray()
            elif form == other_form == "dense":
                found[np.ix_([*mine], [*others])] = _dense_products([*mine.values()], [*others.values()])
            else:
                for i, part in mine.items():
                    found[i, [*others]] = [part.inner(other) for other in others.values()]
    return found


def _by_form(parts: Sequence[ParameterDirection | None]) -> dict[str, dict[int, ParameterDirection]]:
    """The parts that are there with their numbers, by stored form."""
    found: dict[str, dict[int, ParameterDirection]] = {}
    for number, part in enumerate(parts):
        if part is not None:
            plain = isinstance(part.decoder, torch.Tensor)
            form = "other" if not plain else "dense" if part.indices is None else "sparse"
            found.setdefault(form, {})[number] = part
    return found


def _csr(rows: Sequence[ParameterDirection]) -> Any:
    """Sparse parts of one parameter as the rows of a matrix, fp64."""
    lengths = [0, *(part.decoder.numel() for part in rows)]
    indices = np.concatenate([part.indices.numpy() for part in rows if part.indices is not None])
    values = np.concatenate([_numbers(part) for part in rows]).astype(np.float64)
    return sparse.csr_matrix((values, indices, np.cumsum(lengths)), shape=(len(rows), rows[0].numel))


def _dense_products(left: Sequence[ParameterDirection], right: Sequence[ParameterDirection]) -> Array:
    def block(parts: Sequence[ParameterDirection], start: int) -> torch.Tensor:
        return torch.stack([part.values[start : start + BLOCK] for part in parts]).double()

    total = torch.zeros(len(left), len(right), dtype=torch.float64)
    same = len(left) == len(right) and all(one is other for one, other in zip(left, right, strict=True))
    for start in range(0, left[0].numel, BLOCK):
        mine = block(left, start)
        total += mine @ (mine if same else block(right, start)).T
    found: Array = total.numpy()
    return found


# ------------------------------------------------------------------------------------------------------ single entries


def values_of(part: ParameterDirection) -> tuple[Places | None, np.ndarray[Any, Any]]:
    """Flat places (`None` for all) and values of a part; a low-rank one's are computed."""
    return None if part.indices is None else part.indices.long().numpy(), _numbers(part)


def _numbers(part: ParameterDirection) -> np.ndarray[Any, Any]:
    """Values of a part as numpy has them, which knows no bfloat16."""
    values = part.values.detach().cpu()
    return np.asarray((values.float() if values.dtype == torch.bfloat16 else values).numpy())


@dataclass(frozen=True)
class Entries:
    """Some entries of a vector: sorted places in the frame [k], and values [k]."""

    places: Places
    values: Array

    def within(self, frame: Frame, names: Sequence[str]) -> Entries:
        """Those that belong to some parameters."""
        kept = np.zeros(len(self.places), dtype=bool)
        for name in names:
            start = frame.starts[name]
            low, high = np.searchsorted(self.places, [start, start + math.prod(frame.shapes[name])])
            kept[low:high] = True
        return Entries(self.places[kept], self.values[kept])


def largest(vectors: Vectors, number: int, count: int | float) -> Entries:
    """The largest entries of a vector by absolute value; of equal ones the first. Zeros are never among them.

    Args:
        count: how many; a fraction is a share of the stored entries, rounded up.

    Raises:
        ConfigError: The count is neither a whole number of at least 1 nor a share in (0, 1).
    """
    if isinstance(count, bool) or not (
        (isinstance(count, int) and count >= 1) or (isinstance(count, float) and 0 < count < 1)
    ):
        raise ConfigError(f"top_k must be a whole number of at least 1, or a share in (0, 1); found {count!r}.")
    names = [name for name in vectors.frame.shapes if name in vectors.touched(number)]
    # of a share, no more than that share of all coordinates, so that no vector of all of them is ever held
    keep = (
        count if isinstance(count, int) else math.ceil(count * sum(math.prod(vectors.frame.shapes[n]) for n in names))
    )
    kept = Entries(np.zeros(0, dtype=np.int64), np.zeros(0))
    pool, waiting, stored = [kept], 0, 0
    for name in names:
        part = vectors.part(number, name)
        assert part is not None
        indices, values = values_of(part)
        stored += len(values)
        places = _cut(values, keep)
        found = places if indices is None else indices[places]
        pool.append(Entries(found + vectors.frame.starts[name], values[places].astype(np.float64)))
        waiting += len(places)
        if waiting > 4 * keep:
            pool, waiting = [_merged(pool, keep)], keep
    return _merged(pool, count if isinstance(count, int) else math.ceil(count * stored))


def _merged(pool: Sequence[Entries], keep: int) -> Entries:
    places, values = np.concatenate([e.places for e in pool]), np.concatenate([e.values for e in pool])
    order = np.argsort(places, kind="stable")
    places, values = places[order], values[order]
    chosen = _cut(values, keep)
    return Entries(places[chosen], values[chosen])


def _cut(values: np.ndarray[Any, Any], keep: int) -> Places:
    """Sorted positions of the `keep` largest non-zero absolute values; of equal ones the first."""
    sizes = np.abs(values)
    if keep >= len(sizes):
        return np.flatnonzero(sizes)
    least = np.partition(sizes, len(sizes) - keep)[len(sizes) - keep]
    if least == 0:
        return np.flatnonzero(sizes)
    above = sizes > least
    ties = np.flatnonzero(sizes == least)[: keep - int(above.sum())]
    above[ties] = True
    return np.flatnonzero(above)
