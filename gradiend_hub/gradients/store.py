"""Gradients on disk: the base model is frozen, so what it says about a group of rows is computed once.

Later epochs, seeds, learning rates and solvers read the same pairs from a local folder. It knows what it was written for,
and is never used for anything else. Nothing in it is executed: numbers and JSON only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor, nn
from transformers import PreTrainedConfig

from gradiend_hub.errors import ConfigError, TrainingError
from gradiend_hub.objectives import Example, Objective
from gradiend_hub.scope import Scope

from .faults import SkippedRows
from .memory import format_bytes
from .pairs import GradientReader

FORMAT = 3
"""Layout of the files; another one is refused."""

KEY_FILE, GRADIENTS_FILE, INDEX_FILE = "key.json", "gradients.bin", "index.bin"

_TYPES = {"float32": (torch.float32, "<f4"), "bfloat16": (torch.bfloat16, "<i2"), "float16": (torch.float16, "<f2")}
STORE_DTYPES = tuple(_TYPES)
"""In which gradients can be kept."""

_WRITTEN, _EMPTY = 1.0, -1.0
_INDEX = np.dtype([("mark", "<f4"), ("crc", "<u4")])
"""What the index says of each vector. Any positive mark is a scale and means written; −1 a group without a usable row;
0 missing. The checksum is that of its bytes."""


@dataclass(frozen=True)
class StoreKey:
    """What a store holds the gradients of. Every field must agree before one of them is read.

    Attributes:
        base: digest of all weights, buffers and settings of the base model.
        objective: its name and longest input.
        rows: number and digest of the tokenised rows and slots, in the order of the groups.
        groups: number of groups.
        composition: digest of which rows are in which group.
        scope: summary and digest of the parameters.
        kept: digest of the kept coordinates.
        size: number n of coordinates.
        dtype: type of the stored values: "float32", "bfloat16" or "float16".
    """

    base: str
    objective: str
    rows: str
    groups: int
    composition: str
    scope: str
    kept: str
    size: int
    dtype: str = "float32"
    format: int = FORMAT

    @classmethod
    def of(
        cls,
        model: nn.Module,
        scope: Scope,
        objective: Objective,
        examples: Sequence[Example],
        groups: Sequence[Sequence[int]],
        *,
        dtype: str = "float32",
    ) -> StoreKey:
        """The key of the gradients of groups of rows.

        Args:
            model: the base model; all its parameters count, in scope or not.
            examples: tokenised rows.
            groups: indices of the rows of each group; one training vector is the gradient of one group's mean loss.
        """
        if dtype not in _TYPES:
            raise ConfigError(f"dtype of a gradient store must be one of {list(_TYPES)}, found {dtype!r}.")
        rows = [examples[i] for group in groups for i in group]
        samples = [sample for row in rows for sample in (row.factual, row.alternative)]
        shapes = [(name, list(parameter.shape)) for name, parameter in scope.parameters.items()]
        kept = (part for n, i in scope.kept.items() for part in (n, i.long().cpu().numpy().tobytes()))
        return cls(
            base=base_digest(model),
            objective=objective.key,
            rows=f"{len(rows)} rows {_digest(sample.content() for sample in samples)}",
            groups=len(groups),
            composition=_digest([json.dumps([list(group) for group in groups])]),
            scope=f"{scope.summary()} {_digest([json.dumps(shapes)])}",
            kept=_digest(kept) if scope.kept else "all",
            size=scope.size,
            dtype=dtype,
        )


def differences(found: object, expected: Mapping[str, object]) -> str:
    """What a stored key says otherwise than it should, for a message; empty if nothing."""
    said = found if isinstance(found, dict) else {}
    return "; ".join(
        f"{field} is {said.get(field)!r}, expected {value!r}"
        for field, value in expected.items()
        if said.get(field) != value
    )


def base_digest(model: nn.Module) -> str:
    """What the base model computes with: a digest of every value that it holds, and of its configuration."""
    digest = xxhash.xxh3_128()
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        if not tensor.is_meta:
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    config = getattr(model, "config", None)
    settings = config.to_dict() if isinstance(config, PreTrainedConfig) else {}
    for name in ("_name_or_path", "transformers_version"):  # where it is from changes nothing
        settings.pop(name, None)
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return str(digest.hexdigest())


def _digest(parts: Iterable[str | bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


class GradientStore:
    """Pairs g_a and g_f − g_a of groups of rows, [groups, 2, n], in a memory-mapped file.

    These two and not g_f: with one of a half-precision base or store, the difference of two rounded gradients would lose
    what tells the classes apart. In float32 the default pair is read as it was computed, bit for bit.

    A group counts as written only after its values have reached the disk, so a killed run goes on where it was.

    Args:
        folder: where the files are, or will be; created if missing.
        key: what they must hold.

    Raises:
        TrainingError: the folder holds the gradients of something else (naming the fields that differ), or is damaged.
        ConfigError: the disk has no room for what is missing.
    """

    def __init__(self, folder: str | Path, key: StoreKey) -> None:
        self.folder, self.key = Path(folder), key
        self._dtype, self._code = _TYPES[key.dtype]
        if (self.folder / KEY_FILE).exists():
            self._check()
        else:
            self._create()
        self._index = np.memmap(self.folder / INDEX_FILE, _INDEX, mode="r+", shape=(key.groups, 2))
        self._values = np.memmap(self.folder / GRADIENTS_FILE, self._code, mode="r", shape=(key.groups, 2, key.size))
        self._verified: set[tuple[int, int]] = set()

    @staticmethod
    def required_bytes(groups: int, size: int, dtype: str = "float32") -> int:
        """Bytes on disk for `groups` pairs of `size` coordinates, without the key of about 1 kB."""
        return groups * 2 * (size * _TYPES[dtype][0].itemsize + _INDEX.itemsize)

    def _sizes(self) -> dict[str, int]:
        index = self.key.groups * 2 * _INDEX.itemsize
        return {
            GRADIENTS_FILE: self.required_bytes(self.key.groups, self.key.size, self.key.dtype) - index,
            INDEX_FILE: index,
        }

    def _create(self) -> None:
        required = self.required_bytes(self.key.groups, self.key.size, self.key.dtype)
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if required > free:
            raise ConfigError(
                f"A gradient store of {self.key.groups} groups × {self.key.size:,} coordinates in {self.key.dtype} needs "
                f"{format_bytes(required)}, and {self.folder} has {format_bytes(free)} left. Lower the density, store "
                "bfloat16, or train without a store."
            )
        for name, size in self._sizes().items():
            with (self.folder / name).open("wb") as file:
                file.truncate(size)
        temporary = self.folder / f".{KEY_FILE}"
        temporary.write_text(json.dumps(asdict(self.key), indent=1), encoding="utf-8")
        temporary.replace(self.folder / KEY_FILE)  # last: a folder with a key has all its files

    def _check(self) -> None:
        path = self.folder / KEY_FILE
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise TrainingError(f"{path} cannot be read ({error}). Remove {self.folder} to compute it anew.") from error
        if listed := differences(found, asdict(self.key)):
            raise TrainingError(
                f"The gradient store {self.folder} was written for something else: {listed}. Use another folder, or remove "
                "this one to compute it anew."
            )
        for name, size in self._sizes().items():
            file = self.folder / name
            if not file.is_file() or file.stat().st_size != size:
                actual = f"{file.stat().st_size:,} bytes" if file.is_file() else "no file"
                raise TrainingError(
                    f"{file} is damaged: expected {size:,} bytes, found {actual}. Remove {self.folder} to compute it anew."
                )

    @property
    def missing(self) -> list[int]:
        """Groups that are not written yet."""
        return [group for group in range(self.key.groups) if not self.has(group)]

    def has(self, group: int) -> bool:
        """Whether a group is written."""
        return bool(self._index["mark"][group].all())

    def write(self, group: int, alternative: Tensor | None, diff: Tensor | None) -> None:
        """Store g_a and g_f − g_a of a group, each [n]; None for both when no row of it is usable."""
        marks = [(_EMPTY, 0), (_EMPTY, 0)]
        if alternative is not None and diff is not None:
            marks = []
            with (self.folder / GRADIENTS_FILE).open("r+b") as file:
                file.seek(self._values[0].nbytes * group)
                for vector in (alternative, diff):
                    scale = self._scale(vector)
                    values = (vector.detach() / scale if scale != 1 else vector.detach()).to("cpu", self._dtype)
                    bits = values.view(torch.int16) if self._dtype == torch.bfloat16 else values
                    data = bits.contiguous().numpy().data
                    file.write(data)
                    marks.append((scale, zlib.crc32(data)))
                file.flush()
                os.fsync(file.fileno())
        self._index[group] = np.array(marks, _INDEX)
        self._index.flush()
        self._verified -= {(group, 0), (group, 1)}

    def _scale(self, vector: Tensor) -> float:
        """float16 ends at 6e-8, where gradients begin: vectors are stored relative to their largest value."""
        return (float(vector.abs().max()) or _WRITTEN) if self._dtype == torch.float16 else _WRITTEN

    def read(
        self, group: int, *, source: str = "alternative", target: str = "diff", device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor] | None:
        """Source and target gradient of a group, as `read_pair`: each [n], fp32; None if no row of it is usable.

        Raises:
            TrainingError: the group is not written yet, or its values are not those that were written.
        """
        if not self.has(group):
            raise TrainingError(
                f"Group {group} of the gradient store {self.folder} is not written yet; call fill() first."
            )
        if self._index["mark"][group, 0] == _EMPTY:
            return None
        made = {name: self._vector(group, name, device) for name in {source, target}}
        return made[source], made[target]

    def _vector(self, group: int, name: str, device: torch.device | str) -> Tensor:
        if name == "factual":
            return self._vector(group, "alternative", device) + self._vector(group, "diff", device)
        side = 0 if name == "alternative" else 1
        block = np.array(self._values[group, side])
        mark = self._index[group, side]
        if (group, side) not in self._verified and zlib.crc32(block.data) != mark["crc"]:
            raise TrainingError(
                f"{self.folder / GRADIENTS_FILE} is damaged: the {'diff' if side else 'alternative'} gradient of group "
                f"{group} is not what was written. Remove {self.folder} to compute it anew."
            )
        self._verified.add((group, side))
        stored, scale = torch.from_numpy(block), float(mark["mark"])
        values = (stored.view(torch.bfloat16) if self._dtype == torch.bfloat16 else stored).to(device).float()
        return values if scale == 1 else values.mul_(scale)

    def fill(
        self,
        reader: GradientReader,
        objective: Objective,
        examples: Sequence[Example],
        groups: Sequence[Sequence[int]],
        *,
        skipped: SkippedRows | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        """Compute and write what is missing. `examples` and `groups` are those of the key.

        Args:
            reader: an open reader of the base model with the scope of the key.
            skipped: keeps count of rows without a finite gradient; by default over these examples.
            progress: called with each group that has been written.
        """
        skipped = skipped or SkippedRows(len(examples))
        for group in self.missing:
            batch = objective.collate_pairs([examples[i] for i in groups[group]]).to(reader.device)
            pair = skipped.read_pair(reader, objective, batch)
            self.write(group, *(pair or (None, None)))
            if progress is not None:
                progress(group)
