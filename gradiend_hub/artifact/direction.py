"""`Direction`: what training results in. Named encoder and decoder vectors (dense, sparse, low-rank), and their arithmetic.

Nothing here knows PEFT, modules or training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

import torch

from gradiend_hub.errors import ArtifactError, ConfigError
from gradiend_hub.notebook import lines, table

from .files import BASE_FILE, ENCODER_FILE, WEIGHTS_FILE
from .fingerprint import Fingerprint
from .largest import largest
from .low_rank import Factors, is_rank
from .parameter import Importance, ParameterDirection, Values, matched_names
from .storage import (
    ENCODER_BIAS_KEY,
    ENCODER_KEY,
    FINGERPRINT_KEY,
    StoredForm,
    StoredVectors,
    vector_key,
    write,
)

__all__ = ["Direction", "EnergyKept", "Factors", "ParameterDirection"]

_SHOWN = 8
"""Parameters that a notebook shows."""


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

    def __repr__(self) -> str:  # that of a dataclass is pages of numbers
        return f"Direction({len(self.parameters):,} parameters)"

    def _repr_html_(self) -> str:
        """Show parameters and forms; of a direction that is read from its file, the first ones only are read."""
        names = list(self.parameters)
        shown = ((name, self.parameters[name]) for name in names[:_SHOWN])
        rows = [(name, [" × ".join(map(str, part.shape)), part.form]) for name, part in shown]
        more = [f"… and {len(names) - _SHOWN:,} more"] if len(names) > _SHOWN else []
        caption = f"Direction of {len(names):,} parameters"
        return table(caption, ["parameter", "shape", "stored"], rows) + lines(more)

    def spec(self) -> dict[str, dict[str, Any]]:
        """The value of `GradiendConfig.parameters` that describes this direction."""
        return {name: part.spec() for name, part in self.parameters.items()}

    def delta(self, c_w: float = 1.0, c_b: float = 1.0) -> dict[str, Values]:
        """`Δ = c_w·w_d + c_b·b_d` by parameter name: fp32 `[k]` of the stored entries, or factors."""
        return {name: part.delta(c_w, c_b) for name, part in self.parameters.items()}

    def norm(self, c_w: float = 1.0, c_b: float = 1.0) -> float:
        """Euclidean norm of `Δ = c_w·w_d + c_b·b_d` over all parameters."""
        return math.sqrt(math.fsum(part.inner(part, c_w, c_b) for part in self.parameters.values()))

    def inner(self, other: Direction, c_w: float = 1.0, c_b: float = 1.0) -> float:
        """Inner product of two edits `Δ = c_w·w_d + c_b·b_d`, over the parameters that both touch, summed in fp64.

        Nothing is made dense, and one parameter at a time is read of directions that are streamed.

        Args:
            other: A direction of the same base model; its names may lack the backbone's prefix, or have it.
            c_w: Coefficient of both decoders' weights.
            c_b: Coefficient of both decoders' biases.

        Raises:
            ConfigError: If a parameter has another shape, or its name fits several.
        """
        pairs = matched_names(other.parameters, self.parameters)
        parts = ((self.parameters[mine], other.parameters[theirs], mine) for theirs, mine in pairs.items())
        return math.fsum(one.inner(_same_shape(name, one, two), c_w, c_b) for one, two, name in parts)

    def align(self, other: Direction) -> Direction:
        """The other direction under this one's parameter names, in this one's order; what it touches besides comes last.

        Raises:
            ConfigError: If a parameter has another shape, or its name fits several.
        """
        found = other.renamed(matched_names(other.parameters, self.parameters))
        parts, mine = found.parameters, self.parameters
        common = {name: _same_shape(name, mine[name], parts[name]) for name in mine if name in parts}
        return replace(found, parameters={**common, **parts})

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
        return replace(self, parameters={name: part.scaled(factor) for name, part in self.parameters.items()})

    __rmul__ = __mul__

    def __add__(self, other: Direction) -> Direction:
        """Sum of two decoders; sparse parts stay sparse, and low-rank ones low-rank. The sum has no encoder."""
        mine, theirs, parts = self.parameters, other.parameters, {}
        for name in dict.fromkeys([*mine, *theirs]):
            if name in mine and name in theirs:
                parts[name] = mine[name].plus(name, theirs[name])
            else:
                parts[name] = replace((mine if name in mine else theirs)[name], encoder=None)
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
        chosen = largest({name: partial(part.importance, name, by) for name, part in self.parameters.items()}, keep)
        parts = {name: self.parameters[name].select(positions) for name, positions in chosen.items()}
        fingerprint = self.fingerprint.only(parts) if self.fingerprint is not None else None
        return replace(self, parameters=parts, fingerprint=fingerprint)

    def to_rank(self, rank: int) -> Direction:
        """The nearest direction whose matrices are of this rank: decoder, its bias and the encoder each by its own factors.

        Low-rank parts whose rank is no larger, vectors, and matrices that would be no shorter stay as they are. One
        parameter at a time is made dense. `energy_kept` says what is lost.

        Raises:
            ConfigError: If the rank is above the smaller side of every matrix, or below 1.
        """
        sides = [
            min(part.matrix(rank if isinstance(rank, int) else 1)[-2:])
            for part in self.parameters.values()
            if len(part.shape) > 1
        ]
        if not is_rank(rank, max(sides, default=0)):
            expected = (
                f"1…{max(sides)}, the smaller side of the largest matrix" if sides else "a direction with a matrix"
            )
            raise ConfigError(f"to_rank: expected {expected}, found {rank!r}.")
        return replace(self, parameters={name: part.to_rank(rank) for name, part in self.parameters.items()})

    def energy_kept(self, cut: Direction, c_w: float = 1.0, c_b: float = 1.0) -> EnergyKept:
        """Share of `‖Δ‖²` that is left in `cut`, which `to_rank` or `to_sparse` made of this direction."""
        squares = {name: part.inner(part, c_w, c_b) for name, part in self.parameters.items()}
        kept = cut.renamed(matched_names(cut.parameters, self.parameters)).parameters
        rest = {name: part.inner(part, c_w, c_b) for name, part in kept.items() if name in squares}
        total = math.fsum(squares.values())
        by_parameter = {name: rest.get(name, 0.0) / square if square else 1.0 for name, square in squares.items()}
        return EnergyKept(math.fsum(rest.values()) / total if total else 1.0, by_parameter)

    # ------------------------------------------------------------------------------------------------------ files

    def save(self, folder: str | Path, *, dtype: str = "float32") -> None:
        """Write decoder, encoder and the base model's samples to a file each, each whole or not at all.

        Args:
            folder: Where to write; created if missing.
            dtype: Type of the stored values, as `GradiendConfig.dtype`.
        """
        folder, value_type = Path(folder), getattr(torch, dtype)
        folder.mkdir(parents=True, exist_ok=True)
        weights: dict[str, torch.Tensor] = {}
        encoder: dict[str, torch.Tensor] = {}
        for name, part in self.parameters.items():
            decoder, bias, coder = part.flat()
            weights[vector_key(name, "weight")] = decoder.to(value_type)
            if self.has_bias:
                weights[vector_key(name, "bias")] = (torch.zeros_like(decoder) if bias is None else bias).to(value_type)
            if part.indices is not None:
                weights[vector_key(name, "indices")] = part.indices
            if coder is not None and self.has_encoder:
                encoder[ENCODER_KEY + name] = coder.to(value_type)
        if self.has_encoder:
            encoder[ENCODER_BIAS_KEY] = torch.tensor([self.encoder_bias], dtype=torch.float64)
        samples, sampled = {}, {}
        if self.fingerprint is not None:
            samples = {FINGERPRINT_KEY + name: values for name, values in self.fingerprint.samples.items()}
            sampled = {"base_dtype": self.fingerprint.dtype}  # alone: several entries get a random order
        write(weights, folder / WEIGHTS_FILE, {"format": "pt"})
        for name, tensors, metadata in ((ENCODER_FILE, encoder, {}), (BASE_FILE, samples, sampled)):
            if tensors:
                write(tensors, folder / name, metadata)
            else:
                (folder / name).unlink(missing_ok=True)

    def push_to_hub(self, repo_id: str, config: StoredForm, **options: Any) -> Any:
        """Publish the direction in one commit, with its configuration and a card.

        Args:
            repo_id: `namespace/name`, or `name` for the user's own namespace.
            config: Its `GradiendConfig`; the list of stored tensors is taken from the direction.
            **options: Of `gradiend_hub.hub.publish.publish_folder`. What is in memory alone has no report, so
                `allow_unmeasured=True` is among them.

        Raises:
            HubPushError: nothing was committed; the message names the folder where the artifact is kept.
        """
        return resolve_name("gradiend_hub.hub.in_memory:push_direction")(self, repo_id, config, **options)

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
        return cls(StoredParameters(config.parameters, vectors), vectors.encoder_bias, vectors.fingerprint)

    @classmethod
    def from_checkpoints(
        cls,
        base: str | Path,
        tuned: str | Path,
        *,
        density: float | None = None,
        rank: int | None = None,
        exclude: Sequence[str] = (),
        base_revision: str | None = None,
        tuned_revision: str | None = None,
        **hub: Any,
    ) -> Direction:
        """Read what a fine-tune has changed, `θ' − θ`, as a direction without an encoder; one tensor at a time is in memory.

        With `target="diff"`, `decoder_sign=1` and `strength_unit=1.0` in its configuration, strength 1 on the base is the
        tuned model (to the rounding of fp32; of a bf16 or fp16 checkpoint, nearly always its bits), 0.5 half of the way,
        and −1 as far in the other direction. Parameters that are equal in both are left out. Without `density` or `rank`,
        all that differs is kept: by its entries where these are fewer than half, else whole.

        Args:
            base: Folder or Hub id of the base model; only safetensors are read.
            tuned: Folder or Hub id of the fine-tuned (or merged, or edited) model.
            density: Share of the entries of what differs to keep, the largest ones over all parameters.
            rank: Rank to cut every matrix to. A merged LoRA of this rank or less is kept whole.
            exclude: fnmatch patterns of tensor names to leave out, e.g. a new head.
            base_revision: Commit, branch or tag of the base.
            tuned_revision: The same of the tuned model.
            **hub: Of `snapshot_download`, e.g. `token`, `cache_dir` and `local_files_only`.

        Raises:
            ConfigError: If both `density` and `rank` are given, one is out of range, or nothing differs.
            BaseModelError: If a checkpoint is not there, damaged, quantised, or not finite.
            BaseModelMismatchError: If a tensor is in one of both only, or its shape differs.
        """
        from .differences import read_difference

        revisions = base_revision, tuned_revision
        return read_difference(base, tuned, density=density, rank=rank, exclude=exclude, revisions=revisions, **hub)

    @classmethod
    def from_task_vector(cls, file: str | Path, *, density: float | None = None, rank: int | None = None) -> Direction:
        """Read a safetensors file of differences by parameter name, such as `gradiend-hub export` writes.

        As `from_checkpoints`, but that nothing in such a file tells which base model it belongs to.

        Raises:
            ConfigError: As `from_checkpoints`, or if there is no such file.
            BaseModelError: If it is damaged, quantised, or not finite.
        """
        from .differences import read_task_vector

        return read_task_vector(file, density=density, rank=rank)


class StoredParameters(Mapping[str, ParameterDirection]):
    """Parts of a stored direction by parameter name, read anew at every access."""

    def __init__(self, specs: Mapping[str, Mapping[str, Any]], vectors: StoredVectors) -> None:
        self._specs, self._vectors = specs, vectors

    def __getitem__(self, name: str) -> ParameterDirection:
        return ParameterDirection.stored(self._specs[name], *self._vectors(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)


class EnergyKept(NamedTuple):
    """Shares of `‖Δ‖²` that a shorter form keeps: of all, and by parameter (1 where there was nothing to keep)."""

    total: float
    by_parameter: dict[str, float]


def _same_shape(name: str, one: ParameterDirection, other: ParameterDirection) -> ParameterDirection:
    """The other one, if it is of the same shape."""
    if one.shape != other.shape:
        raise ConfigError(
            f"Cannot align directions: {name} is {list(one.shape)} in one, {list(other.shape)} in the other."
        )
    return other
