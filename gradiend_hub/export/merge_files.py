"""Merging a direction into the files of a base model: no model is built, and one tensor at a time is in memory.

Every safetensors file is copied tensor by tensor, and what the direction touches is edited on the way: the same sums as
those of a model in memory, rounded to the type that the file has, so that the bits are those of a merge at `dtype="auto"`.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from gradiend_hub.adapter.arithmetic import Changes, Part, counted, delta_pieces, rounded, sum_dtype
from gradiend_hub.adapter.receipt import EditReceipt, receipt_from
from gradiend_hub.adapter.sites import SiteMap, resolve_names
from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.artifact.fingerprint import require_same_base, sample_positions
from gradiend_hub.artifact.low_rank import Form
from gradiend_hub.artifact.tensor_files import (
    StoredTensor,
    TensorFile,
    checkpoint_files,
    checkpoint_folder,
    read_values,
    write_values,
)
from gradiend_hub.base_model import skeleton
from gradiend_hub.errors import BaseModelError, ConfigError, EditError, GradiendError

from .base_fit import spellings

COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
"""Files of the base that go along: configuration and tokenizer."""
STATE = ".merge.json"
CHUNK = 1 << 24
"""Bytes that are copied at a time."""


@dataclass(frozen=True)
class _Job:
    """One merge: what is edited, and where."""

    direction: Direction
    coefficients: tuple[float, float]
    stored: Mapping[str, str]
    """Name of a tensor in the files → parameter of the direction."""

    def part(self, tensor: StoredTensor) -> Part:
        """The share of a tensor; raises what a merge in memory would raise."""
        name = self.stored[tensor.name]
        part, (c_w, c_b) = self.direction.parameters[name], self.coefficients
        of_weight, of_bias = part.peaks(name)
        largest = abs(c_w) * of_weight + abs(c_b) * of_bias
        if not largest <= torch.finfo(tensor.dtype).max / 2:
            raise EditError(
                f"At this strength the direction would change {name} by up to {largest:.3g}, beyond the numbers of its "
                "type. Use a smaller strength."
            )
        decoder, bias, _ = part.flat()
        return Part(decoder, bias, part.indices, c_w, c_b, Form.of(part.spec()))


def merge_files(
    direction: Direction,
    config: GradiendConfig,
    out: Path,
    *,
    strength: float,
    base: str | Path | None = None,
    allow_related: bool = False,
    allow_unverified_base: bool = False,
    **hub: Any,
) -> EditReceipt:
    """Write the rewritten model into a folder, file by file; a merge that was interrupted goes on where it stopped.

    Args:
        direction: The direction; streamed, one parameter at a time is read.
        config: Its configuration.
        out: Folder to write to. It appears when it is whole; until then its files are beside it, in `.NAME.merging`.
        strength: Strength to merge at.
        base: Folder or repository of the base model; by default the one that the direction names, at its commit.
        allow_related: Accept a fine-tuned relative of the base model, with a warning.
        allow_unverified_base: Accept a direction that has no sampled weights of its base model.
        **hub: Of `snapshot_download`, e.g. `token` and `cache_dir`.

    Returns:
        What changed.

    Raises:
        ConfigError: If the strength is 0 or not finite.
        BaseModelError: If the base has no safetensors files, or keeps a touched parameter under another name or in another
            shape or type than the model in memory (merge without streaming then).
        BaseModelMismatchError: If its values are those of another model.
        EditError: If the edit is beyond the numbers of a parameter's type, or changes nothing.
    """
    if strength == 0 or not math.isfinite(strength):
        raise ConfigError(f"Strength {strength:g} is no edit to merge. Give another one.")
    folder, model = _downloaded(config, base, hub), skeleton(config, base, **hub)
    files = [TensorFile(path) for path in checkpoint_files(folder)]
    job = _Job(direction, config.coefficients(strength), _places(direction, model, files))
    # a tensor of so few values is its own sample
    found = {
        job.stored[t.name]: file.values_at(t, sample_positions(math.prod(t.shape)))
        for file in files
        for t in file.tensors
        if t.name in job.stored
    }
    allowed = {"allow_related": allow_related, "allow_unverified": allow_unverified_base}
    require_same_base(direction.fingerprint, found, type(model).__name__, **allowed)
    partial = out.absolute().with_name(f".{out.name}.merging")
    done = _resumed(partial, _identity(job, files))
    try:
        for file in files:
            if file.path.name not in done.files:
                done.files[file.path.name] = _merge_file(file, partial / file.path.name, job)
                done.save(partial)
        changes = {name: Changes(*values) for by_name in done.files.values() for name, values in by_name.items()}
        if not any(change.entries > change.swallowed for change in changes.values()):
            raise EditError(
                "The edit changes no weight: it is smaller than the spacing of the base model's numbers. Use a larger "
                "strength."
            )
    except GradiendError:  # which would come again; whatever else stops a merge may be over when it is repeated
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _finish(folder, partial, out)
    return receipt_from(changes)


# ------------------------------------------------------------------------------------------------------------- the base


def _downloaded(config: GradiendConfig, base: str | Path | None, hub: Mapping[str, Any]) -> Path:
    """The folder of the base model; from the Hub, its safetensors files, configuration and tokenizer."""
    path = str(base) if base is not None else config.base_model_name_or_path or ""
    revision = config.revision if path == config.base_model_name_or_path else None
    wanted = [*COPIED, "model*.safetensors"]
    return checkpoint_folder(path, revision, wanted, "base model", "Name it with --base, or `base`.", **hub)


def _places(direction: Direction, model: nn.Module, files: Sequence[TensorFile]) -> dict[str, str]:
    """Name of a tensor in the files → parameter of the direction. What is tied may be there under several names.

    Raises:
        BaseModelError: If a parameter is not there as the model in memory has it.
    """
    sites = SiteMap(model)
    tensors = {tensor.name: tensor for file in files for tensor in file.tensors}
    places: dict[str, str] = {}
    names = resolve_names(model, direction.parameters, sites.parameters)
    for stored, spelled in spellings(model, sites, names).items():
        here = [name for name in spelled if name in tensors]
        shape = direction.parameters[stored].shape
        if not here or any(tensors[name].shape != shape for name in here):
            state = f"has another shape there, {list(tensors[here[0]].shape)}" if here else "is not there"
            raise BaseModelError(
                f"{stored} {state} in {files[0].path.parent}: transformers changes names or joins tensors when it loads "
                "this checkpoint. Merge without streaming."
            )
        places |= dict.fromkeys(here, stored)
    return places


# ------------------------------------------------------------------------------------------------------------ the files


def _merge_file(file: TensorFile, target: Path, job: _Job) -> dict[str, Changes]:
    """Write one file of the rewritten model: the same header, and the same tensors but for the touched ones."""
    changes = {}
    partial = target.with_name(f"{target.name}.part")
    with file.path.open("rb", buffering=0) as source, partial.open("wb") as written:
        _copy(source, written, file.begin)
        for tensor in file.tensors:
            if tensor.name in job.stored:
                changes[job.stored[tensor.name]] = _edit(tensor, job.part(tensor), source, written)
            else:
                _copy(source, written, tensor.stop - tensor.start)
    partial.replace(target)
    return changes


def _edit(tensor: StoredTensor, part: Part, source: BinaryIO, written: BinaryIO) -> Changes:
    """Copy a tensor with its edit, piece by piece."""
    numel, dtype = math.prod(tensor.shape), tensor.dtype
    entries = swallowed = 0
    delta_square = weight_square = 0.0
    for place, indices, delta in _pieces(part, numel, sum_dtype(dtype)):
        values = read_values(source, place.stop - place.start, dtype)
        before = values if indices is None else values[indices]
        found = counted(before, delta)
        entries, swallowed, delta_square = entries + found[0], swallowed + found[1], delta_square + found[2]
        weight_square += float(values.double().square().sum())
        edited = rounded(before, delta)
        write_values(written, edited if indices is None else values.index_copy_(0, indices, edited))
    return Changes(entries, swallowed, delta_square, weight_square)


def _pieces(part: Part, numel: int, dtype: torch.dtype) -> Iterator[tuple[slice, torch.Tensor | None, torch.Tensor]]:
    """Places in a tensor, one after the other; and the edit there, at some positions of the place (`None`: at all)."""
    if part.indices is None:
        yield from ((place, None, delta) for place, delta in delta_pieces([part], numel, dtype))
        return
    delta, step = part.delta(dtype), CHUNK // 8
    for start in range(0, numel, step):
        stop = min(start + step, numel)
        first, last = torch.searchsorted(part.indices, torch.tensor([start, stop], dtype=part.indices.dtype)).tolist()
        yield slice(start, stop), part.indices[first:last].long() - start, delta[first:last]


def _copy(source: BinaryIO, written: BinaryIO, size: int) -> None:
    while size:
        data = source.read(min(size, CHUNK))
        if not data:
            raise BaseModelError(f"{source.name} became shorter while it was read. Download it again.")
        written.write(data)
        size -= len(data)


# ------------------------------------------------------------------------------------------------------------- resuming


@dataclass
class _Done:
    """The files that are finished: their changes by parameter; and digest of what they were made of."""

    identity: str
    files: dict[str, dict[str, Changes]]

    def save(self, partial: Path) -> None:
        temporary = partial / f"{STATE}.part"
        temporary.write_text(json.dumps({"identity": self.identity, "files": self.files}), encoding="utf-8")
        temporary.replace(partial / STATE)


def _identity(job: _Job, files: Sequence[TensorFile]) -> str:
    """Digest of the direction, the strength, and the files of the base by name, size and time."""
    digest = hashlib.sha256(repr(job.coefficients).encode())
    for name, part in job.direction.parameters.items():
        for tensor in (*part.flat()[:2], part.indices):
            digest.update(repr((name, None if tensor is None else tensor.shape)).encode())
            if tensor is not None:
                digest.update(tensor.contiguous().numpy().data)
    for file in files:
        stat = file.path.stat()
        digest.update(repr((str(file.path.absolute()), stat.st_size, stat.st_mtime_ns)).encode())
    return digest.hexdigest()


def _resumed(partial: Path, identity: str) -> _Done:
    """Find what an interrupted merge of the same has left; an empty folder if there is none."""
    try:
        state = json.loads((partial / STATE).read_text(encoding="utf-8"))
        if state["identity"] == identity:
            files = {
                n: {p: Changes(*v) for p, v in c.items()} for n, c in state["files"].items() if (partial / n).is_file()
            }
            return _Done(identity, files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return _Done(identity, {})


def _finish(folder: Path, partial: Path, out: Path) -> None:
    """Add what goes along, and put the folder in its place; files of the same name are replaced there."""
    for pattern in COPIED:
        for path in folder.glob(pattern):
            if path.is_file() and not path.name.startswith("."):
                shutil.copyfile(path, partial / path.name)
    (partial / STATE).unlink(missing_ok=True)
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    if not out.exists():
        partial.rename(out)
        return
    for path in partial.iterdir():
        path.replace(out / path.name)
    partial.rmdir()
