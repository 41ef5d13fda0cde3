"""`ParameterDirection`: the part of a direction that belongs to one parameter, and its arithmetic by stored form."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from gradiend_hub.errors import ArtifactError, ConfigError

from .fields import matrix_shape
from .low_rank import Factors, Form
from .storage import check_indices, index_dtype, peak

BLOCK = 1 << 20
"""Elements that are widened to fp64 at a time."""

Values = Tensor | Factors
"""A vector over a parameter: its entries `[k]`, or factors."""
Importance = Literal["decoder", "encoder", "decoder_bias", "decoder_sum"]


def matched_names(own: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, str]:
    """Map parameter names of one direction to those of another, for what is in both.

    One of the names may lack the prefix of the backbone: `layer.0.weight` is `bert.layer.0.weight`.

    Raises:
        ConfigError: A name fits several, or several fit one.
    """
    if own.keys() <= known.keys():
        return {name: name for name in own}
    ends: dict[str, list[str]] = {}  # a name and all of its ends to the known names that have them
    for name in known:
        parts = name.split(".")
        for i in range(len(parts)):
            ends.setdefault(".".join(parts[i:]), []).append(name)
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in own:
        parts = name.split(".")
        fitting = [name] if name in known else ends.get(name, [])
        fitting = fitting or [end for i in range(1, len(parts)) if (end := ".".join(parts[i:])) in known]
        if len(fitting) > 1 or not taken.isdisjoint(fitting):
            raise ConfigError(
                f"Cannot align directions: {name} of one may be {' or '.join(fitting[:3])} of another. Give all the names "
                "of one model, with `Direction.renamed`."
            )
        if fitting:
            found[name] = fitting[0]
            taken.add(fitting[0])
    return found


def combine(weight: Tensor, bias: Tensor | None, c_w: float, c_b: float) -> Tensor:
    """`c_w·w_d + c_b·b_d`, elementwise, each step rounded once so that every device gives the same bits."""
    scaled = weight * c_w
    return scaled if bias is None else scaled + bias * c_b


def sum_sparse(parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Sum of sparse vectors `(indices, values)`: sorted union of the indices, and the summed values."""
    indices, values = zip(*parts, strict=True)
    union, inverse = torch.unique(torch.cat([i.long() for i in indices]), return_inverse=True)
    total = torch.zeros(len(union), dtype=values[0].dtype, device=values[0].device)
    start = 0
    for value in values:  # one vector after the other, so that the order of the sum is fixed
        total.index_add_(0, inverse[start : start + len(value)], value)
        start += len(value)
    return union, total


@dataclass(frozen=True, eq=False)
class ParameterDirection:
    """The part of a direction that belongs to one parameter, in one of three forms.

    * Dense: vectors `[k]` of all k elements, in the parameter's order.
    * Sparse: vectors `[k]` of the elements at `indices`.
    * Low rank: `Factors` of the parameter as a matrix, or as a stack of matrices. Ranks of decoder, bias and encoder may
      differ; a file has one for all three, and fills the others up with zeros.

    Attributes:
        shape: Shape of the parameter.
        decoder: Decoder weights `w_d`, fp32.
        decoder_bias: Decoder biases `b_d`, fp32, or `None` for zeros.
        encoder: Encoder weights `w_e`, fp32, or `None` if they were not kept.
        indices: Flat positions of the k entries, sorted and unique, int32 (int64 beyond 2³¹−1 elements) `[k]`; `None`
            if the parameter is not sparse.
    """

    shape: tuple[int, ...]
    decoder: Values
    decoder_bias: Values | None = None
    encoder: Values | None = None
    indices: Tensor | None = None

    @property
    def numel(self) -> int:
        """Elements of the parameter."""
        return math.prod(self.shape)

    @property
    def entries(self) -> int:
        """Stored numbers of the decoder's weight: entries k, or those of both factors."""
        return self.decoder.numel()

    @property
    def form(self) -> str:
        """Stored form in words: the rank, "all", or the number of entries."""
        if isinstance(self.decoder, Factors):
            return f"rank {self.rank}"
        return "all" if self.indices is None else f"{self.entries:,} of {self.numel:,}"

    @property
    def values(self) -> Tensor:
        """Decoder weights of the stored entries, fp32 `[k]`; of all elements, formed now, if it is low-rank."""
        return self.dense(self.decoder).flatten() if isinstance(self.decoder, Factors) else self.decoder

    @property
    def rank(self) -> int | None:
        """Rank that a file has room for: the largest of its vectors'; `None` if it is not low-rank."""
        ranks = [values.rank for values in self._vectors().values() if isinstance(values, Factors)]
        return max(ranks, default=None)

    def _vectors(self) -> dict[str, Values]:
        """Its vectors by name, without those that it lacks."""
        named = {"decoder": self.decoder, "decoder_bias": self.decoder_bias, "encoder": self.encoder}
        return {name: values for name, values in named.items() if values is not None}

    def _with(self, vectors: dict[str, Values], **fields: Any) -> ParameterDirection:
        return replace(self, **{**dict.fromkeys(("decoder_bias", "encoder")), **vectors, **fields})

    def spec(self) -> dict[str, Any]:
        """Shape and stored form, as `GradiendConfig.parameters` records them."""
        form: dict[str, Any] = {"shape": list(self.shape), "entries": None if self.indices is None else self.entries}
        if self.rank is not None:
            form["rank"] = self.rank
        if isinstance(self.decoder, Factors) and self.decoder.b.ndim == 3:
            form["stacked"] = True
        return form

    @classmethod
    def stored(
        cls,
        spec: Mapping[str, Any],
        decoder: Tensor,
        decoder_bias: Tensor | None,
        encoder: Tensor | None,
        indices: Tensor | None,
    ) -> ParameterDirection:
        """The part that a file holds as flat vectors, in the form of its `spec`."""
        form, shape = Form.of(spec), tuple(spec["shape"])
        if form is None:
            return cls(shape, decoder, decoder_bias, encoder, indices)
        bias, coder = (None if flat is None else form.factors(flat) for flat in (decoder_bias, encoder))
        return cls(shape, form.factors(decoder), bias, coder)

    def flat(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Decoder, bias and encoder as a file holds them: flat vectors of one length."""
        rank = self.rank
        vectors = {n: v.flat(rank) if isinstance(v, Factors) else v for n, v in self._vectors().items()}
        return vectors["decoder"], vectors.get("decoder_bias"), vectors.get("encoder")

    def delta(self, c_w: float, c_b: float) -> Values:
        """`c_w·w_d + c_b·b_d`: fp32 `[k]` of the stored entries, or factors, whose rank is the sum of both ranks."""
        if isinstance(self.decoder, Factors):
            parts = [(self.decoder, c_w), (self.decoder_bias, c_b)]
            return Factors.joined([values * c for values, c in parts if isinstance(values, Factors)])
        assert not isinstance(self.decoder_bias, Factors)
        return combine(self.decoder, self.decoder_bias, c_w, c_b)

    def dense(self, values: Values) -> Tensor:
        """Stored values (one of its vectors, or what `delta` returns) as a tensor of the parameter's shape."""
        if isinstance(values, Factors):
            return values.dense().view(self.shape)
        if self.indices is None:
            return values.view(self.shape)
        flat = torch.zeros(self.numel, dtype=values.dtype, device=values.device)
        return flat.index_copy_(0, self.indices.long(), values).view(self.shape)

    def peaks(self, name: str) -> tuple[float, float]:
        """Check the vectors, and measure the largest `|w_d|` and `|b_d|` (of factors: the most that they can be).

        Raises:
            ArtifactError: Naming the parameter and what is wrong with it: sizes, types, values that are not finite, or
                indices that are not sorted, unique and in range.
        """
        found = {}
        for kind, values in self._vectors().items():
            self._check_sizes(f"{kind} of {name}", values)
            found[kind] = values.bound() if isinstance(values, Factors) else peak(values)
            if not math.isfinite(found[kind]):
                raise ArtifactError(f"{kind} of {name} holds NaN or infinite values; the direction is unusable.")
        if self.indices is not None:
            check_indices(name, self.indices, self.numel)
        return found["decoder"], found.get("decoder_bias", 0.0)

    def _check_sizes(self, what: str, values: Values) -> None:
        if isinstance(values, Factors) != isinstance(self.decoder, Factors):
            raise ArtifactError(f"{what}: expected the form of the decoder, low rank or not, for all of its vectors.")
        if isinstance(values, Factors):
            shape, (of_b, of_a) = values.form.matrix, values.form.shapes
            fits = self.indices is None and len(self.shape) >= len(shape)
            fits = fits and shape == matrix_shape(self.shape, len(shape) == 3) and 1 <= values.rank <= min(shape[-2:])
            if not fits or (values.b.shape, values.a.shape) != (of_b, of_a):
                found = f"{list(values.b.shape)} and {list(values.a.shape)}"
                if len(self.shape) < 2:
                    raise ArtifactError(
                        f"{what}: expected the values of a vector {list(self.shape)}, found factors {found}. Only matrices "
                        "have factors; give `b @ a` as it is, flat."
                    )
                raise ArtifactError(
                    f"{what}: expected factors of a matrix {list(self.shape)}, of a rank from 1 to its smaller side; found "
                    f"{found}."
                )
            if {values.b.dtype, values.a.dtype} != {torch.float32}:
                raise ArtifactError(f"{what}: expected float32 factors, found {values.b.dtype} and {values.a.dtype}.")
            return
        size = self.numel if self.indices is None else self.indices.numel()
        if values.dtype != torch.float32 or values.shape != (size,):
            raise ArtifactError(f"{what}: expected float32 [{size}], found {values.dtype} {list(values.shape)}.")

    def inner(self, other: ParameterDirection, c_w: float = 1.0, c_b: float = 1.0) -> float:
        """Inner product of two edits `c_w·w_d + c_b·b_d` of one parameter, summed in fp64; nothing is made dense."""
        mine, theirs = self.delta(c_w, c_b), other.delta(c_w, c_b)
        if isinstance(mine, Factors) or isinstance(theirs, Factors):
            return _inner_low_rank(mine, self.indices, theirs, other.indices)
        if self.indices is not None and other.indices is not None:
            places = torch.searchsorted(self.indices, other.indices).clamp_max(max(len(mine) - 1, 0))
            common = self.indices[places] == other.indices if len(mine) else places.bool()
            mine, theirs = mine[places[common]], theirs[common]
        elif self.indices is not None:
            theirs = theirs[self.indices.long()]
        elif other.indices is not None:
            mine = mine[other.indices.long()]
        return _dot(mine, theirs)

    def select(self, positions: Tensor) -> ParameterDirection:
        """Keep the entries at sorted positions (of the k stored ones; of all elements, if it is low-rank)."""
        indices = positions if self.indices is None else self.indices.long()[positions]
        kept: dict[str, Values] = {
            name: values.at(positions) if isinstance(values, Factors) else values[positions]
            for name, values in self._vectors().items()
        }
        return self._with(kept, indices=indices.to(index_dtype(self.numel)))

    def importance(self, name: str, by: Importance) -> Tensor:
        """Absolute values of what `select` chooses from, `[k]`."""
        values = self.delta(1.0, 1.0) if by == "decoder_sum" else self._vectors().get(by)
        if values is None:
            raise ConfigError(f"to_sparse(by={by!r}): {name} has no such values.")
        return (self.dense(values).flatten() if isinstance(values, Factors) else values).abs()

    def scaled(self, factor: float) -> ParameterDirection:
        """The decoder times a factor."""
        vectors = self._vectors()
        return self._with({n: values if n == "encoder" else values * factor for n, values in vectors.items()})

    def matrix(self, rank: int) -> tuple[int, ...]:
        """The matrix, or stack of matrices, that factors of this rank would be of; as it is, if it is low-rank already.

        Three dimensions are a stack (of experts) where factors of its matrices are shorter than these, and a
        one-dimensional convolution otherwise.
        """
        if isinstance(self.decoder, Factors):
            return self.decoder.form.matrix
        rows, columns = self.shape[-2:]
        return matrix_shape(self.shape, len(self.shape) == 3 and rank * (rows + columns) < rows * columns)

    def to_rank(self, rank: int) -> ParameterDirection:
        """The nearest low-rank form; itself where that would be no shorter, and of a vector."""
        if len(self.shape) < 2:
            return self
        matrix = self.matrix(rank)
        if not isinstance(self.decoder, Factors) and rank * sum(matrix[-2:]) >= math.prod(matrix[-2:]):
            return self

        def cut(values: Values) -> Values:
            if isinstance(values, Factors):
                return values.to_rank(rank)
            return Factors.nearest(self.dense(values).reshape(matrix), rank)

        return self._with({name: cut(values) for name, values in self._vectors().items()}, indices=None)

    def plus(self, name: str, other: ParameterDirection) -> ParameterDirection:
        """Sum of two decoders: sparse stays sparse, low rank low-rank unless dense is shorter. It has no encoder."""
        if self.shape != other.shape:
            raise ConfigError(
                f"Cannot add directions: {name} is {list(self.shape)} in one, {list(other.shape)} in the other."
            )
        pairs = {"decoder": (self.decoder, other.decoder), "decoder_bias": (self.decoder_bias, other.decoder_bias)}
        if all(part.indices is not None for part in (self, other)):
            return self._sparse_sum(other)
        given = {k: [v for v in pair if v is not None] for k, pair in pairs.items() if any(v is not None for v in pair)}
        sums = {kind: _sum_of_factors(values) for kind, values in given.items()}
        if all(values is not None for values in sums.values()):
            return ParameterDirection(self.shape, **sums)  # type: ignore[arg-type]
        whole = {}
        for kind, (mine, theirs) in pairs.items():
            if kind in given:
                dense = [part.dense(v).flatten() for part, v in ((self, mine), (other, theirs)) if v is not None]
                whole[kind] = dense[0] + dense[1] if len(dense) == 2 else dense[0]
        return ParameterDirection(self.shape, **whole)

    def _sparse_sum(self, other: ParameterDirection) -> ParameterDirection:
        parts = [(part, part.indices) for part in (self, other)]

        def total(kind: str) -> tuple[Tensor, Tensor]:
            vectors = [(i, part._vectors().get(kind, torch.zeros_like(part.decoder))) for part, i in parts]  # type: ignore[arg-type]
            return sum_sparse(vectors)  # type: ignore[arg-type]

        union, decoder = total("decoder")
        with_bias = self.decoder_bias is not None or other.decoder_bias is not None
        bias = total("decoder_bias")[1] if with_bias else None
        return ParameterDirection(self.shape, decoder, bias, None, union.to(index_dtype(self.numel)))


def _dot(mine: Tensor, theirs: Tensor) -> float:
    pieces = zip(mine.split(BLOCK), theirs.split(BLOCK), strict=True)
    return math.fsum(float(torch.dot(a.double(), b.double())) for a, b in pieces)


def _inner_low_rank(mine: Values, at_mine: Tensor | None, theirs: Values, at_theirs: Tensor | None) -> float:
    """Inner product of factors and whatever the other one is."""
    if not isinstance(mine, Factors):
        mine, theirs, at_theirs = theirs, mine, at_mine
    assert isinstance(mine, Factors)
    if at_theirs is not None and isinstance(theirs, Tensor):
        return _dot(mine.at(at_theirs), theirs)
    return mine.inner(theirs)


def _sum_of_factors(values: list[Values]) -> Factors | None:
    """The sum of low-rank vectors by its factors; `None` if one is not low-rank, or a dense sum is shorter."""
    factors = [one for one in values if isinstance(one, Factors)]
    if len(factors) < len(values) or len({one.form.matrix for one in factors}) > 1:
        return None
    joined = Factors.joined(factors) if len(factors) > 1 else factors[0]
    rows, columns = joined.form.matrix[-2:]
    return joined if joined.rank * (rows + columns) < rows * columns or len(factors) == 1 else None
