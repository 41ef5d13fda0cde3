"""`Direction`: what training results in. Named encoder and decoder vectors, sparse or dense, and their arithmetic.

Nothing here knows PEFT, modules or training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from gradiend_hub.errors import ArtifactError, ConfigError

from .files import ENCODER_FILE, WEIGHTS_FILE
from .fingerprint import Fingerprint
from .storage import (
    ENCODER_BIAS_KEY,
    ENCODER_KEY,
    FINGERPRINT_KEY,
    StoredForm,
    StoredVectors,
    check_indices,
    index_dtype,
    peak,
    vector_key,
    write,
)

__all__ = ["Direction", "ParameterDirection"]

BLOCK = 1 << 20
"""Elements that are widened to fp64 at a time."""

Importance = Literal["decoder", "encoder", "decoder_bias", "decoder_sum"]


def combine(weight: torch.Tensor, bias: torch.Tensor | None, c_w: float, c_b: float) -> torch.Tensor:
    """`c_w·w_d + c_b·b_d`, elementwise, each step rounded once so that every device gives the same bits."""
    scaled = weight * c_w
    return scaled if bias is None else scaled + bias * c_b


def sum_sparse(parts: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
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
    """The part of a direction that belongs to one parameter.

    Attributes:
        shape: Shape of the parameter.
        decoder: Decoder weights `w_d`, fp32 `[k]`.
        decoder_bias: Decoder biases `b_d`, fp32 `[k]`, or `None` for zeros.
        encoder: Encoder weights `w_e`, fp32 `[k]`, or `None` if they were not kept.
        indices: Flat positions of the k entries, sorted and unique, int32 (int64 beyond 2³¹−1 elements) `[k]`; `None`
            if the parameter is dense and k is its number of elements.
    """

    shape: tuple[int, ...]
    decoder: torch.Tensor
    decoder_bias: torch.Tensor | None = None
    encoder: torch.Tensor | None = None
    indices: torch.Tensor | None = None

    @property
    def numel(self) -> int:
        """Elements of the parameter."""
        return math.prod(self.shape)

    @property
    def entries(self) -> int:
        """Stored entries k."""
        return self.decoder.numel()

    def spec(self) -> dict[str, Any]:
        """Shape and number of entries, as `GradiendConfig.parameters` records them."""
        return {"shape": list(self.shape), "entries": None if self.indices is None else self.entries}

    def delta(self, c_w: float, c_b: float) -> torch.Tensor:
        """`c_w·w_d + c_b·b_d` of the stored entries, fp32 `[k]`."""
        return combine(self.decoder, self.decoder_bias, c_w, c_b)

    def dense(self, values: torch.Tensor) -> torch.Tensor:
        """Values `[k]` of the stored entries as a tensor of the parameter's shape, zero elsewhere."""
        if self.indices is None:
            return values.view(self.shape)
        flat = torch.zeros(self.numel, dtype=values.dtype, device=values.device)
        return flat.index_copy_(0, self.indices.long(), values).view(self.shape)

    def peaks(self, name: str) -> tuple[float, float]:
        """Check the vectors, and measure the largest `|w_d|` and `|b_d|`.

        Raises:
            ArtifactError: Naming the parameter and what is wrong with it: sizes, types, values that are not finite, or
                indices that are not sorted, unique and in range.
        """
        size = self.numel if self.indices is None else self.indices.numel()
        found = []
        for kind, values in (("decoder", self.decoder), ("decoder_bias", self.decoder_bias), ("encoder", self.encoder)):
            if values is not None and (values.dtype != torch.float32 or values.shape != (size,)):
                raise ArtifactError(
                    f"{kind} of {name}: expected float32 [{size}], found {values.dtype} {list(values.shape)}."
                )
            found.append(0.0 if values is None else peak(values))
            if not math.isfinite(found[-1]):
                raise ArtifactError(f"{kind} of {name} holds NaN or infinite values; the direction is unusable.")
        if self.indices is not None:
            check_indices(name, self.indices, self.numel)
        return found[0], found[1]

    def inner(self, other: ParameterDirection, c_w: float = 1.0, c_b: float = 1.0) -> float:
        """Inner product of two edits `c_w·w_d + c_b·b_d` of one parameter, summed in fp64; nothing is made dense."""
        mine, theirs = self.delta(c_w, c_b), other.delta(c_w, c_b)
        if self.indices is not None and other.indices is not None:
            places = torch.searchsorted(self.indices, other.indices).clamp_max(max(len(mine) - 1, 0))
            common = self.indices[places] == other.indices if len(mine) else places.bool()
            mine, theirs = mine[places[common]], theirs[common]
        elif self.indices is not None:
            theirs = theirs[self.indices.long()]
        elif other.indices is not None:
            mine = mine[other.indices.long()]
        pieces = zip(mine.split(BLOCK), theirs.split(BLOCK), strict=True)
        return math.fsum(float(torch.dot(a.double(), b.double())) for a, b in pieces)

    def _select(self, positions: torch.Tensor) -> ParameterDirection:
        """Keep the entries at sorted positions (of the k stored ones)."""
        indices = positions if self.indices is None else self.indices.long()[positions]
        return replace(
            self,
            decoder=self.decoder[positions],
            decoder_bias=None if self.decoder_bias is None else self.decoder_bias[positions],
            encoder=None if self.encoder is None else self.encoder[positions],
            indices=indices.to(index_dtype(self.numel)),
        )


@dataclass(frozen=True, eq=False)
class Direction:
    """A learned feature direction: encoder `h = tanh(⟨w_e, s⟩ + b_e)` and decoder `t̂ = w_d·h + b_d` by parameter.

    Attributes:
        parameters: Parameter name of the base model to its part of the direction.
        encoder_bias: `b_e`.
        fingerprint: Sampled values of the base model that it was learned on.
    """

    parameters: Mapping[str, ParameterDirection]
    encoder_bias: float = 0.0
    fingerprint: Fingerprint | None = field(default=None, repr=False)

    @property
    def numel(self) -> int:
        """Elements of all touched parameters."""
        return sum(part.numel for part in self.parameters.values())

    @property
    def entries(self) -> int:
        """Stored entries of all touched parameters."""
        return sum(part.entries for part in self.parameters.values())

    @property
    def has_encoder(self) -> bool:
        """Tell whether encoder weights are at hand for every parameter."""
        return all(part.encoder is not None for part in self.parameters.values())

    @property
    def has_bias(self) -> bool:
        """Tell whether any parameter has a decoder bias."""
        return any(part.decoder_bias is not None for part in self.parameters.values())

    def spec(self) -> dict[str, dict[str, Any]]:
        """The value of `GradiendConfig.parameters` that describes this direction."""
        return {name: part.spec() for name, part in self.parameters.items()}

    def delta(self, c_w: float = 1.0, c_b: float = 1.0) -> dict[str, torch.Tensor]:
        """`Δ = c_w·w_d + c_b·b_d` of the stored entries: parameter name to fp32 `[k]`."""
        return {name: part.delta(c_w, c_b) for name, part in self.parameters.items()}

    def norm(self, c_w: float = 1.0, c_b: float = 1.0) -> float:
        """Euclidean norm of `Δ = c_w·w_d + c_b·b_d` over all parameters."""
        return math.sqrt(math.fsum(part.inner(part, c_w, c_b) for part in self.parameters.values()))

    def inner(self, other: Direction, c_w: float = 1.0, c_b: float = 1.0) -> float:
        """Inner product of two edits `Δ = c_w·w_d + c_b·b_d`, over the parameters that both touch, summed in fp64.

        Sparse vectors stay sparse, and one parameter at a time is read of directions that are streamed.

        Args:
            other: A direction of the same base model; its names may lack the backbone's prefix, or have it.
            c_w: Coefficient of both decoders' weights.
            c_b: Coefficient of both decoders' biases.

        Raises:
            ConfigError: If a parameter has another shape, or its name fits several.
        """
        pairs = self._pairs(other)
        parts = ((self.parameters[mine], other.parameters[theirs], mine) for theirs, mine in pairs.items())
        return math.fsum(one.inner(_same_shape(name, one, two), c_w, c_b) for one, two, name in parts)

    def align(self, other: Direction) -> Direction:
        """The other direction under this one's parameter names, in this one's order; what it touches besides comes last.

        Raises:
            ConfigError: If a parameter has another shape, or its name fits several.
        """
        names = self._pairs(other)
        found = {mine: _same_shape(mine, self.parameters[mine], other.parameters[name]) for name, mine in names.items()}
        common = {name: found[name] for name in self.parameters if name in found}
        rest = {name: part for name, part in other.parameters.items() if name not in names}
        fingerprint = None if other.fingerprint is None else other.fingerprint.renamed(names)
        return replace(other, parameters=common | rest, fingerprint=fingerprint)

    def _pairs(self, other: Direction) -> dict[str, str]:
        """Name in the other direction → name here, for the parameters of both."""
        pairs = {}
        for name in other.parameters:
            fitting = [name] if name in self.parameters else []
            fitting = fitting or [n for n in self.parameters if n.endswith(f".{name}") or name.endswith(f".{n}")]
            if len(fitting) > 1:
                raise ConfigError(
                    f"Cannot align directions: {name} of one may be {' or '.join(fitting[:3])} of the other. Give both the "
                    "names of one model, with `renamed`."
                )
            if fitting:
                pairs[name] = fitting[0]
        return pairs

    def peaks(self) -> dict[str, tuple[float, float]]:
        """Check everything as `check` does, and return the largest `|w_d|` and `|b_d|` by parameter."""
        if not math.isfinite(self.encoder_bias):
            raise ArtifactError(f"The encoder bias is {self.encoder_bias}; the direction is unusable.")
        return {name: part.peaks(name) for name, part in self.parameters.items()}

    def check(self) -> Direction:
        """Check sizes, types, finite values and indices, and return the direction itself.

        Raises:
            ArtifactError: Naming the parameter and what is wrong with it.
        """
        self.peaks()
        return self

    def renamed(self, names: Mapping[str, str]) -> Direction:
        """The same direction under other parameter names; names that are not in the mapping stay."""
        fingerprint = self.fingerprint.renamed(names) if self.fingerprint is not None else None
        return replace(
            self,
            parameters={names.get(name, name): part for name, part in self.parameters.items()},
            fingerprint=fingerprint,
        )

    def __mul__(self, factor: float) -> Direction:
        """Scale the decoder; what is read (the encoder) stays."""
        parts = {
            name: replace(
                part,
                decoder=part.decoder * factor,
                decoder_bias=None if part.decoder_bias is None else part.decoder_bias * factor,
            )
            for name, part in self.parameters.items()
        }
        return replace(self, parameters=parts)

    __rmul__ = __mul__

    def __add__(self, other: Direction) -> Direction:
        """Sum of two decoders, entry by entry; sparse parts stay sparse. The sum has no encoder."""
        names = dict.fromkeys([*self.parameters, *other.parameters])
        parts = {}
        for name in names:
            mine, theirs = self.parameters.get(name), other.parameters.get(name)
            if mine is None or theirs is None:
                only = mine or theirs
                assert only is not None
                parts[name] = replace(only, encoder=None)
            else:
                parts[name] = _add(name, mine, theirs)
        return Direction(parts, fingerprint=self.fingerprint if self.fingerprint is not None else other.fingerprint)

    def to_sparse(
        self, density: float | None = None, *, entries: int | None = None, by: Importance = "decoder"
    ) -> Direction:
        """Keep the most important entries over all parameters; parameters that keep none are dropped.

        Args:
            density: Share of `numel` to keep, in (0, 1].
            entries: Number of entries to keep, instead of `density`.
            by: Importance of an entry: `|w_d|`, `|w_e|`, `|b_d|` or `|w_d + b_d|`.

        Raises:
            ConfigError: If not exactly one of `density` and `entries` is given, or `by` needs values that are missing.
        """
        if (density is None) == (entries is None):
            raise ConfigError("to_sparse needs either `density` or `entries`.")
        if density is not None and not 0 < density <= 1:
            raise ConfigError(f"density must be in (0, 1], found {density}.")
        keep = max(1, round(density * self.numel)) if density is not None else int(entries or 0)
        if keep < 1:
            raise ConfigError(f"entries must be at least 1, found {entries}.")
        scores = [_importance(name, part, by) for name, part in self.parameters.items()]
        joined = torch.cat(scores)
        kept = torch.zeros(joined.numel(), dtype=torch.bool)
        kept[torch.topk(joined, min(keep, joined.numel()), sorted=False).indices] = True
        parts = {}
        masks = torch.split(kept, [score.numel() for score in scores])
        for (name, part), mask in zip(self.parameters.items(), masks, strict=True):
            positions = mask.nonzero().squeeze(1)
            if positions.numel():
                parts[name] = part._select(positions)
        fingerprint = self.fingerprint.only(parts) if self.fingerprint is not None else None
        return replace(self, parameters=parts, fingerprint=fingerprint)

    # ------------------------------------------------------------------------------------------------------ files

    def save(self, folder: str | Path, *, dtype: str = "float32") -> None:
        """Write `adapter_model.safetensors` and `gradiend_encoder.safetensors`, each whole or not at all.

        Args:
            folder: Where to write; created if missing.
            dtype: Type of the stored values, as `GradiendConfig.dtype`.
        """
        folder, value_type = Path(folder), getattr(torch, dtype)
        folder.mkdir(parents=True, exist_ok=True)
        weights: dict[str, torch.Tensor] = {}
        encoder: dict[str, torch.Tensor] = {}
        for name, part in self.parameters.items():
            weights[vector_key(name, "weight")] = part.decoder.to(value_type)
            if self.has_bias:
                bias = part.decoder_bias if part.decoder_bias is not None else torch.zeros_like(part.decoder)
                weights[vector_key(name, "bias")] = bias.to(value_type)
            if part.indices is not None:
                weights[vector_key(name, "indices")] = part.indices
            if part.encoder is not None and self.has_encoder:
                encoder[ENCODER_KEY + name] = part.encoder.to(value_type)
        if self.has_encoder:
            encoder[ENCODER_BIAS_KEY] = torch.tensor([self.encoder_bias], dtype=torch.float64)
        metadata = {}
        if self.fingerprint is not None:
            encoder |= {FINGERPRINT_KEY + name: values for name, values in self.fingerprint.samples.items()}
            metadata["base_dtype"] = self.fingerprint.dtype  # alone: several entries get a random order
        write(weights, folder / WEIGHTS_FILE, {"format": "pt"})
        if encoder:
            write(encoder, folder / ENCODER_FILE, metadata)
        else:
            (folder / ENCODER_FILE).unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: str | Path, config: StoredForm, *, encoder: bool = True, check: bool = True) -> Direction:
        """Read and validate a saved direction.

        Args:
            folder: Folder of the artifact.
            config: Its `GradiendConfig`; names, sizes and types must agree with it.
            encoder: Whether to read the encoder vectors, too. The fingerprint is always read.
            check: Whether to look at the values; leave it out only where `peaks` or `check` is called next.

        Returns:
            The direction, in fp32 on the CPU.

        Raises:
            ArtifactNotFoundError: If there is no `adapter_model.safetensors`.
            ArtifactError: If a file is damaged, or does not hold what the configuration says.
        """
        streamed = cls.stream(folder, config, encoder=encoder)
        direction = replace(streamed, parameters=dict(streamed.parameters))
        return direction.check() if check else direction

    @classmethod
    def stream(cls, folder: str | Path, config: StoredForm, *, encoder: bool = True) -> Direction:
        """Open a saved direction whose vectors are read when a parameter is asked for, and not kept.

        Names, types and sizes are compared at once; values are not looked at (`check` does, one parameter at a time).
        Arguments and errors are those of `load`.
        """
        if config.parameters is None:
            raise ArtifactError(f"{folder}: adapter_config.json lists no `parameters`; this is no saved direction.")
        vectors = StoredVectors(Path(folder), config, encoder=encoder)
        fingerprint = Fingerprint(vectors.samples, vectors.base_dtype) if vectors.samples else None
        return cls(StoredParameters(config.parameters, vectors), vectors.encoder_bias, fingerprint)


class StoredParameters(Mapping[str, ParameterDirection]):
    """Parts of a stored direction by parameter name, read anew at every access."""

    def __init__(self, specs: Mapping[str, Mapping[str, Any]], vectors: StoredVectors) -> None:
        self._specs, self._vectors = specs, vectors

    def __getitem__(self, name: str) -> ParameterDirection:
        return ParameterDirection(tuple(self._specs[name]["shape"]), **self._vectors(name)._asdict())

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)


def _same_shape(name: str, one: ParameterDirection, other: ParameterDirection) -> ParameterDirection:
    """The other one, if it is of the same shape."""
    if one.shape != other.shape:
        raise ConfigError(
            f"Cannot align directions: {name} is {list(one.shape)} in one, {list(other.shape)} in the other."
        )
    return other


def _add(name: str, mine: ParameterDirection, theirs: ParameterDirection) -> ParameterDirection:
    if mine.shape != theirs.shape:
        raise ConfigError(
            f"Cannot add directions: {name} is {list(mine.shape)} in one, {list(theirs.shape)} in the other."
        )
    with_bias = mine.decoder_bias is not None or theirs.decoder_bias is not None

    def biases(part: ParameterDirection) -> torch.Tensor:
        return part.decoder_bias if part.decoder_bias is not None else torch.zeros_like(part.decoder)

    if mine.indices is not None and theirs.indices is not None:
        pair = (mine.indices, theirs.indices)
        union, decoder = sum_sparse(zip(pair, (mine.decoder, theirs.decoder), strict=True))
        bias = sum_sparse(zip(pair, (biases(mine), biases(theirs)), strict=True))[1] if with_bias else None
        return ParameterDirection(mine.shape, decoder, bias, None, union.to(index_dtype(mine.numel)))
    dense = (mine.dense(mine.decoder) + theirs.dense(theirs.decoder)).flatten()
    dense_bias = (mine.dense(biases(mine)) + theirs.dense(biases(theirs))).flatten() if with_bias else None
    return ParameterDirection(mine.shape, dense, dense_bias)


def _importance(name: str, part: ParameterDirection, by: Importance) -> torch.Tensor:
    if by == "decoder_sum":
        return part.delta(1.0, 1.0).abs()
    values = {"decoder": part.decoder, "encoder": part.encoder, "decoder_bias": part.decoder_bias}.get(by)
    if values is None:
        raise ConfigError(f"to_sparse(by={by!r}): {name} has no such values.")
    return values.abs()
