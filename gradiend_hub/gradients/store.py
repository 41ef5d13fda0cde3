"""Gradients on disk: the base model is frozen, so the gradients of a group of rows are computed once.

Later epochs, seeds, learning rates and solvers read the same pairs from a local folder. It knows what it was written for,
and is never used for anything else. Nothing in it is executed: numbers and JSON only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig

from gradiend_hub.errors import ConfigError, TrainingError
from gradiend_hub.objectives import Example, Objective
from gradiend_hub.scope import Scope

from .faults import SkippedRows
from .memory import format_bytes
from .pairs import GradientReader

FORMAT = 4
"""Layout of the files; another one is refused."""

KEY_FILE = "key.json"

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STORE_DTYPES = tuple(_TYPES)
"""Names of the types that gradients can be stored in."""

_HEADER_BYTES = 512
"""Most bytes of a group's file beside its values."""


@dataclass(frozen=True)
class StoreKey:
    """Identity of the gradients in a store. Every field must agree before one of them is read.

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
        """Describe the gradients of groups of rows.

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
    """Name the fields in which a stored key differs from the expected one, for a message; empty if there are none."""
    said = found if isinstance(found, dict) else {}
    return "; ".join(
        f"{field} is {said.get(field)!r}, expected {value!r}"
        for field, value in expected.items()
        if said.get(field) != value
    )


def base_digest(model: nn.Module) -> str:
    """Digest of every value that a base model holds, and of its configuration."""
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
    """Pairs g_a and g_f − g_a of groups of rows, [n] each, in one safetensors file a group.

    These two and not g_f: with one of a half-precision base or store, the difference of two rounded gradients would lose
    what tells the classes apart. In float32 the default pair is read as it was computed, bit for bit.

    A file appears under its name only when all of it has reached the disk, so a killed run goes on where it was.

    Args:
        folder: where the files are, or will be; created if missing.
        key: what they must hold.

    Raises:
        TrainingError: the folder holds the gradients of something else (naming the fields that differ).
        ConfigError: the disk has no room for what is missing.
    """

    def __init__(self, folder: str | Path, key: StoreKey) -> None:
        self.folder, self.key = Path(folder), key
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / KEY_FILE
        if path.exists():
            self._check(path)
        self._require_room()
        if not path.exists():
            self._replace(path, lambda new: new.write_text(json.dumps(asdict(key), indent=1), encoding="utf-8"))

    @staticmethod
    def required_bytes(groups: int, size: int, dtype: str = "float32") -> int:
        """Most bytes on disk for `groups` pairs of `size` coordinates, without the key of about 1 kB."""
        return groups * (2 * size * _TYPES[dtype].itemsize + _HEADER_BYTES)

    def _require_room(self) -> None:
        required = self.required_bytes(len(self.missing), self.key.size, self.key.dtype)
        free = shutil.disk_usage(self.folder).free
        if required > free:
            raise ConfigError(
                f"A gradient store of {self.key.groups} groups × {self.key.size:,} coordinates in {self.key.dtype} needs "
                f"{format_bytes(required)}, and {self.folder} has {format_bytes(free)} left. Lower the density, store "
                "bfloat16, or train without a store."
            )

    def _check(self, path: Path) -> None:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise TrainingError(f"{path} cannot be read ({error}). Remove {self.folder} to compute it anew.") from error
        if listed := differences(found, asdict(self.key)):
            raise TrainingError(
                f"The gradient store {self.folder} was written for something else: {listed}. Use another folder, or remove "
                "this one to compute it anew."
            )

    def _file(self, group: int) -> Path:
        return self.folder / f"group-{group:06}.safetensors"

    @staticmethod
    def _replace(path: Path, write: Callable[[Path], object]) -> None:
        """Write a file under another name, and rename it when it is whole and safe."""
        temporary = path.with_name(f".{path.name}")
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)

    @property
    def missing(self) -> list[int]:
        """Groups that are not written yet."""
        return [group for group in range(self.key.groups) if not self.has(group)]

    def has(self, group: int) -> bool:
        """Return whether a group is written."""
        return self._file(group).is_file()

    def write(self, group: int, alternative: Tensor | None, diff: Tensor | None) -> None:
        """Store g_a and g_f − g_a of a group, each [n]; None for both when no row of it is usable."""
        tensors: dict[str, Tensor] = {}
        if alternative is not None and diff is not None:
            for name, vector in (("alternative", alternative), ("diff", diff)):
                scale = self._scale(vector)
                values = vector.detach() / scale if scale != 1 else vector.detach()
                tensors[name] = values.to("cpu", _TYPES[self.key.dtype]).contiguous()
                tensors[f"{name}_scale"] = torch.tensor(scale)
        self._replace(self._file(group), lambda new: save_file(tensors, new))

    def _scale(self, vector: Tensor) -> float:
        """Return the unit of stored values: float16 ends at 6e-8, where gradients begin, so it takes the largest value."""
        return (float(vector.abs().max()) or 1.0) if self.key.dtype == "float16" else 1.0

    def read(
        self, group: int, *, source: str = "alternative", target: str = "diff", device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor] | None:
        """Source and target gradient of a group, as `read_pair`: each [n], fp32; None if no row of it is usable.

        Raises:
            TrainingError: the group is not written yet, or its file is damaged.
        """
        if not self.has(group):
            raise TrainingError(
                f"Group {group} of the gradient store {self.folder} is not written yet; call fill() first."
            )
        try:
            tensors = load_file(self._file(group))
            if not tensors:
                return None
            vectors = {name: self._vector(tensors, name).to(device) for name in {source, target}}
        except (SafetensorError, KeyError) as error:
            raise TrainingError(
                f"{self._file(group)} is damaged ({error}). Remove it, and it is computed anew."
            ) from error
        return vectors[source], vectors[target]

    def _vector(self, tensors: Mapping[str, Tensor], name: str) -> Tensor:
        if name == "factual":
            return self._vector(tensors, "alternative") + self._vector(tensors, "diff")
        # a copy, as sums over memory that starts anywhere in a file are rounded in another order
        scale, values = float(tensors[f"{name}_scale"]), tensors[name].to(torch.float32, copy=True)
        if values.shape != (self.key.size,):
            raise KeyError(f"{name}: expected {self.key.size} values, found {list(values.shape)}")
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
