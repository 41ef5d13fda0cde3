"""The difference of two checkpoints, `θ' − θ`, as a direction: no model is built, and one tensor at a time is in memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradiend_hub.errors import BaseModelError, BaseModelMismatchError, ConfigError

from .direction import Direction, ParameterDirection
from .fingerprint import Fingerprint, sample_positions
from .tensor_files import DTYPES, StoredTensor, TensorFile, checkpoint_files, checkpoint_folder

logger = logging.getLogger(__name__)

BUFFERS = ("BOOL", "I64")
"""Types of buffers (positions, causal masks) that older checkpoints have beside their weights."""


@dataclass(frozen=True)
class _Stored:
    """A tensor and the file that it lies in."""

    file: TensorFile
    tensor: StoredTensor

    def values(self) -> Tensor:
        return self.file.values(self.tensor)

    def sample(self) -> Tensor:
        return self.file.values_at(self.tensor, sample_positions(math.prod(self.tensor.shape)))

    def equals(self, other: _Stored) -> bool:
        """Tell whether both hold the same numbers in the same type; most that do not are told by their samples."""
        if (self.tensor.code, self.tensor.shape) != (other.tensor.code, other.tensor.shape):
            return False
        return torch.equal(self.sample(), other.sample()) and torch.equal(self.values(), other.values())


@dataclass(frozen=True)
class _Form:
    """The form that a difference is kept in; exactly one or none of both is given."""

    density: float | None
    rank: int | None

    def check(self, shapes: Sequence[tuple[int, ...]]) -> None:
        density, rank = self.density, self.rank
        if density is not None and rank is not None:
            raise ConfigError("Give `density` (few entries) or `rank` (factors), not both.")
        if density is not None and (isinstance(density, bool) or not 0 < density <= 1):
            raise ConfigError(f"density must be in (0, 1], found {density}.")
        most = max((min(shape[0], math.prod(shape[1:])) for shape in shapes if len(shape) > 1), default=0)
        if rank is not None and (isinstance(rank, bool) or not 1 <= rank <= most):
            raise ConfigError(f"rank: expected 1…{most}, the smaller side of the largest matrix, found {rank}.")


def read_difference(
    base: str | Path,
    tuned: str | Path,
    *,
    density: float | None,
    rank: int | None,
    exclude: Sequence[str],
    revisions: tuple[str | None, str | None],
    **hub: Any,
) -> Direction:
    """As `Direction.from_checkpoints`, which has the arguments and errors."""
    folders = (
        checkpoint_folder(
            str(name), revision, ["model*.safetensors*"], f"{what} checkpoint", f"Name it as `{what}`.", **hub
        )
        for what, name, revision in zip(("base", "tuned"), (base, tuned), revisions, strict=True)
    )
    stored, found = (_tensors(checkpoint_files(folder), exclude) for folder in folders)
    pairs = _pairs(stored, found)
    types = {tensors[name].tensor.code for pair in pairs for tensors, name in zip((stored, found), pair, strict=True)}
    if len(types) > 1:
        logger.warning(
            "The checkpoints are stored as %s: their difference holds what rounding to the shorter type has changed, too.",
            " and ".join(sorted(types)),
        )
    form = _Form(density, rank)
    form.check([stored[name].tensor.shape for name, _ in pairs])
    numel = sum(math.prod(stored[name].tensor.shape) for name, _ in pairs)
    deltas = ((name, stored[name].tensor.shape, _delta(name, stored[name], found[other])) for name, other in pairs)
    direction = _kept(deltas, form, numel)
    base_types = {stored[name].tensor.dtype for name in direction.parameters}
    dtype = str(base_types.pop()).removeprefix("torch.") if len(base_types) == 1 else "float32"
    samples = {name: stored[name].sample().float() for name in direction.parameters}
    return Direction(direction.parameters, fingerprint=Fingerprint(samples, dtype))


def read_task_vector(file: str | Path, *, density: float | None, rank: int | None) -> Direction:
    """As `Direction.from_task_vector`, which has the arguments and errors."""
    if not Path(file).is_file():
        raise ConfigError(f"{file} is no file. Give a safetensors file of differences by parameter name.")
    stored = _tensors([Path(file)], ())
    form, shapes = _Form(density, rank), {name: one.tensor.shape for name, one in stored.items()}
    form.check(list(shapes.values()))
    deltas = ((name, shapes[name], _finite(name, one.values().float())) for name, one in stored.items())
    return _kept(deltas, form, sum(math.prod(shape) for shape in shapes.values()))


# ------------------------------------------------------------------------------------------------------------- the files


def _tensors(paths: Sequence[Path], exclude: Sequence[str]) -> dict[str, _Stored]:
    """The tensors of all files by name, without buffers and what is excluded."""
    patterns = [exclude] if isinstance(exclude, str) else exclude
    found = {}
    for file in [TensorFile(path) for path in paths]:
        for tensor in file.tensors:
            if tensor.code in BUFFERS or any(fnmatchcase(tensor.name, pattern) for pattern in patterns):
                continue
            if tensor.code not in DTYPES:
                raise BaseModelError(
                    f"{tensor.name} in {file.path} is stored as {tensor.code}: it is quantised, and differences are those "
                    "of numbers. Give the checkpoints from before, or leave it out: exclude=[…], patterns of names."
                )
            found[tensor.name] = _Stored(file, tensor)
    return found


def _pairs(base: dict[str, _Stored], tuned: dict[str, _Stored]) -> list[tuple[str, str]]:
    """Names of the same parameter in both; one of them may lack the backbone's prefix.

    Raises:
        BaseModelMismatchError: A parameter is in one only, or has another shape there.
    """
    names = {name: name if name in tuned else _named_alike(name, tuned) for name in base}
    alone = {name: (base, "tuned") for name, other in names.items() if other is None}
    alone |= dict.fromkeys(tuned.keys() - set(names.values()), (tuned, "base"))
    for name, (tensors, lacking) in alone.items():
        if any(tensors[name].equals(one) for other, one in tensors.items() if other != name):
            continue  # tied to another one, and stored twice
        raise BaseModelMismatchError(
            f"The {lacking} checkpoint lacks {name} {list(tensors[name].tensor.shape)}, so there is no difference to read. "
            "Give two checkpoints of one architecture, or leave it out: exclude=[…], patterns of names."
        )
    pairs = [(name, other) for name, other in names.items() if other is not None]
    for name, other in pairs:
        shapes = base[name].tensor.shape, tuned[other].tensor.shape
        if shapes[0] != shapes[1]:
            raise BaseModelMismatchError(
                f"{name} is {list(shapes[0])} in the base and {list(shapes[1])} in the tuned checkpoint. A direction "
                "changes values, not shapes: resize the base first, or leave it out: exclude=[…], patterns of names."
            )
    return pairs


def _named_alike(name: str, others: dict[str, _Stored]) -> str | None:
    alike = [other for other in others if other.endswith(f".{name}") or name.endswith(f".{other}")]
    return alike[0] if len(alike) == 1 else None


# ------------------------------------------------------------------------------------------------------------ the values


def _delta(name: str, base: _Stored, tuned: _Stored) -> Tensor:
    """`θ' − θ` of a parameter: fp32, flat; the difference is taken in fp64 where one of both is stored so."""
    both = base.tensor.dtype, tuned.tensor.dtype
    wide = torch.float64 if torch.float64 in both else torch.float32
    return _finite(name, (tuned.values().to(wide) - base.values().to(wide)).float())


def _finite(name: str, delta: Tensor) -> Tensor:
    if not torch.isfinite(delta).all():
        raise BaseModelError(
            f"The difference of {name} holds NaN or infinite values; one of the checkpoints is damaged."
        )
    return delta


def _kept(deltas: Iterator[tuple[str, tuple[int, ...], Tensor]], form: _Form, numel: int) -> Direction:
    """Collect what differs, in the wanted form; of a sparse one, memory holds at most twice the entries that are kept."""
    kept, touched, square = Direction({}), 0, 0.0
    most = numel if form.density is None else max(1, round(form.density * numel))
    for name, shape, delta in deltas:
        entries = int(torch.count_nonzero(delta))
        if not entries:
            continue
        touched, square = touched + delta.numel(), square + float(delta.double().square().sum())
        part = ParameterDirection(shape, delta)
        if form.density is not None:
            part = part.select(part.importance(name, "decoder").topk(min(entries, most)).indices.sort().values)
        elif form.rank is not None:
            part = part.to_rank(form.rank)
        if part.rank is None and part.indices is None and 2 * entries < delta.numel():
            part = part.select(delta.nonzero().squeeze(1))  # an entry takes twice the place with its index
        kept = Direction({**kept.parameters, name: part})
        if form.density is not None and kept.entries > 2 * most:
            kept = kept.to_sparse(entries=most)
    if not touched:
        raise ConfigError("Nothing differs: expected a checkpoint that was changed, or a task vector other than zero.")
    if form.density is not None:
        kept = kept.to_sparse(entries=max(1, round(form.density * touched)))
    if form != _Form(None, None):
        logger.info("The direction holds %.1f%% of the squared difference.", 100 * kept.norm() ** 2 / square)
    return kept
