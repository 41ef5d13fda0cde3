"""Similarity of two vectors: the papers' measures, and signed ones, on vectors of one frame.

The cosine is signed: −1 is the same feature the other way round. Overlap is that of the k largest entries,
|A ∩ B|/min(|A|, |B|); mass overlap is ½(‖a_S‖/‖a_A‖ + ‖b_S‖/‖b_B‖) with S = A ∩ B. Spearman's correlation ranks all elements
of the frame's parameters, those that a vector does not store as zeros. (arXiv 2602.23993 compares by these.) Vectors that
share no parameter have the value 0 by every measure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.storage import index_dtype

from .vectors import Array, Entries, Frame, Vectors, largest, products, values_of

Measure = Literal["cosine", "overlap", "mass_overlap", "spearman", "fisher_cosine"]
MEASURES: tuple[str, ...] = ("cosine", "overlap", "mass_overlap", "spearman", "fisher_cosine")


class Sides:
    """Two sets of vectors of one frame to be compared by several measures; what a measure needs is computed once.

    Args:
        left: vectors of the rows.
        right: vectors of the columns; default: those of the rows.
    """

    def __init__(self, left: Vectors, right: Vectors | None = None) -> None:
        self.left, self.right = left, right
        self._sets: dict[Any, tuple[list[Entries], list[Entries]]] = {}
        self._ranked: tuple[_Ranked, _Ranked] | None = None

    @property
    def frame(self) -> Frame:
        """The common frame."""
        return self.left.frame

    def cosine(self, names: Sequence[str] | None = None) -> Array:
        """Signed cosine, [rows, columns]; NaN where a vector has no entry in the parameters `names`."""
        inner = products(self.left, self.right, names)
        if self.right is None:
            squares = np.diag(inner), np.diag(inner)
        else:
            squares = _squares(self.left, names), _squares(self.right, names)
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Array = inner / np.sqrt(np.outer(*squares))
        return np.clip(found, -1.0, 1.0)

    def overlap(self, top_k: int | float, names: Sequence[str] | None = None) -> Array:
        """Share of the k largest entries that both have; NaN where a vector has none in the parameters `names`."""
        left, right = self._largest(top_k, names)
        sizes = np.minimum.outer([len(e.places) for e in left], [len(e.places) for e in right]).astype(float)
        common = _common(left, right, lambda entries: np.ones(len(entries.places)), lambda e: np.ones(len(e.places)))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(common / sizes)

    def mass_overlap(self, top_k: int | float, names: Sequence[str] | None = None) -> Array:
        """Mean share of the norm of the k largest entries that lies in the common ones; NaN where there is none."""
        left, right = self._largest(top_k, names)

        def square(entries: Entries) -> Array:
            return np.square(entries.values)

        def one(entries: Entries) -> Array:
            return np.ones(len(entries.places))

        norms = [np.array([np.sum(square(e)) for e in side]) for side in (left, right)]
        with np.errstate(invalid="ignore", divide="ignore"):
            mine = np.sqrt(_common(left, right, square, one) / norms[0][:, None])
            theirs = np.sqrt(_common(left, right, one, square) / norms[1][None, :])
        return np.asarray((mine + theirs) / 2)

    def spearman(self, names: Sequence[str] | None = None) -> Array:
        """Spearman's rank correlation over all elements of the parameters; NaN where a vector is constant there."""
        if names is None and self._ranked is None:
            self._ranked = self._ranks(None)
        left, right = self._ranks(names) if names is not None or self._ranked is None else self._ranked
        inner = products(left.vectors, None if self.right is None else right.vectors, names)
        total = sum(math.prod(self.frame.shapes[name]) for name in names or self.frame.shapes)
        # Σ(r_a − r̄)(r_b − r̄) from what differs from the rank of the zeros, as the centred ranks sum to 0
        inner = inner - total * np.outer(left.zero, right.zero)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.clip(inner / np.sqrt(np.outer(left.square, right.square)), -1.0, 1.0))

    def _largest(self, top_k: int | float, names: Sequence[str] | None) -> tuple[list[Entries], list[Entries]]:
        if top_k not in self._sets:
            left = [largest(self.left, i, top_k) for i in range(len(self.left))]
            right = left if self.right is None else [largest(self.right, j, top_k) for j in range(len(self.right))]
            self._sets[top_k] = left, right
        left, right = self._sets[top_k]
        if names is None:
            return left, right
        return [e.within(self.frame, names) for e in left], [e.within(self.frame, names) for e in right]

    def _ranks(self, names: Sequence[str] | None) -> tuple[_Ranked, _Ranked]:
        left = _Ranked(self.left, names)
        return left, left if self.right is None else _Ranked(self.right, names)


def similarity(sides: Sides, measure: str, top_k: int | float = 1000, names: Sequence[str] | None = None) -> Array:
    """One measure of all pairs: [rows, columns]. Vectors that share no parameter at all have the value 0.

    Args:
        measure: one of `MEASURES` but "fisher_cosine", which needs gradients as well.
        top_k: number (or share) of the largest entries, of overlap and mass overlap.
        names: parameters to compare; default: all.
    """
    if measure in ("overlap", "mass_overlap"):
        return np.asarray(getattr(sides, measure)(top_k, names))
    return np.asarray(getattr(sides, measure)(names))


def _squares(vectors: Vectors, names: Sequence[str] | None) -> Array:
    """Squared norm of each vector."""
    found = np.zeros(len(vectors))
    for name in vectors.frame.shapes if names is None else names:
        for number, part in enumerate(vectors.parts(name)):
            found[number] += 0.0 if part is None else part.inner(part)
    return found


def _common(left: Sequence[Entries], right: Sequence[Entries], mine: Any, theirs: Any) -> Array:
    """Σ over common places of mine(left entry)·theirs(right entry), [rows, columns]."""
    found = np.zeros((len(left), len(right)))
    for j, other in enumerate(right):
        weights = theirs(other)
        for i, one in enumerate(left):
            if not len(one.places) or not len(other.places):
                continue
            at = np.searchsorted(other.places, one.places)
            at[at == len(other.places)] = 0
            hit = other.places[at] == one.places
            found[i, j] = float(np.sum(mine(one)[hit] * weights[at[hit]]))
    return found


class _Ranked:
    """Vectors in which each value is replaced by its rank minus that of the zeros, so that they are as sparse as before.

    Ranks are taken over all elements of the parameters, equal values share their mean rank.

    Attributes:
        vectors: the ranks.
        zero: centred rank of the zeros, by vector.
        square: sum of the squared centred ranks, by vector.
    """

    def __init__(self, vectors: Vectors, names: Sequence[str] | None) -> None:
        chosen = list(vectors.frame.shapes) if names is None else list(names)
        total = sum(math.prod(vectors.frame.shapes[name]) for name in chosen)
        found = [_ranked(vectors, number, chosen, total) for number in range(len(vectors))]
        self.vectors = Vectors(vectors.frame, [direction for direction, _, _ in found])
        self.zero = np.array([zero for _, zero, _ in found])
        self.square = np.array([square for _, _, square in found])


def _ranked(vectors: Vectors, number: int, names: Sequence[str], total: int) -> tuple[Direction, float, float]:
    """Ranks of one vector minus the rank of its zeros, the centred rank of the zeros, and Σ(centred rank)²."""
    parts = {name: part for name in names if (part := vectors.part(number, name)) is not None}
    read = {name: values_of(part) for name, part in parts.items()}
    joined = np.concatenate([values for _, values in read.values()] or [np.zeros(0, dtype=np.float32)])
    unique, inverse, counts = np.unique(joined[joined != 0], return_inverse=True, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)[:-1]]) if len(unique) else np.zeros(0)
    zeros = total - int(counts.sum())
    before = before + np.where(unique > 0, zeros, 0)
    mean_rank, negative = (total + 1) / 2, int(counts[unique < 0].sum())
    zero = negative + (zeros + 1) / 2 - mean_rank if zeros else 0.0
    centred = before + (counts + 1) / 2 - mean_rank
    square = float(counts @ np.square(centred)) + zeros * zero**2
    ranks = np.zeros(len(joined))
    ranks[joined != 0] = centred[inverse.reshape(-1)] - zero
    made, start = {}, 0
    for name, (indices, values) in read.items():
        part, stop = parts[name], start + len(values)
        kept = None if indices is None else torch.from_numpy(indices).to(index_dtype(part.numel))
        made[name] = ParameterDirection(part.shape, torch.from_numpy(ranks[start:stop]), indices=kept)
        start = stop
    return Direction(made), zero, square
