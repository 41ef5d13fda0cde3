"""safetensors files by their tensors: where each lies, read and copied without the others."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gradiend_hub.errors import BaseModelError, first_line

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of weights that an edit can be added to."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its name, type code, shape, and the bytes of the file that it takes, from first to last."""

    name: str
    code: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def dtype(self) -> torch.dtype:
        """Its type.

        Raises:
            BaseModelError: If no edit can be added to it, because it is quantised.
        """
        if self.code not in DTYPES:
            raise BaseModelError(
                f"{self.name} is stored as {self.code}: it is quantised, and merging would round most of the direction "
                "away. Merge into the base model before it is quantised."
            )
        return DTYPES[self.code]


class TensorFile:
    """The tensors of one safetensors file, in the order in which they lie there.

    Args:
        path: The file.

    Raises:
        BaseModelError: If it is not a whole safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(str(path), framework="pt"):  # checks header, offsets and size
                pass
        except (SafetensorError, OSError) as error:
            raise BaseModelError(f"{path} is not a readable safetensors file: {error}. Download it again.") from error
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = file.read(size)
        self.begin = 8 + size
        self.tensors = listed_tensors(header)

    def values(self, tensor: StoredTensor) -> Tensor:
        """All values of a tensor, flat."""
        with self.path.open("rb") as file:  # buffered: the system reads 2 GB at a time at most
            file.seek(tensor.start)
            return read_values(file, math.prod(tensor.shape), tensor.dtype)

    def values_at(self, tensor: StoredTensor, positions: Tensor) -> Tensor:
        """Values at flat positions, `[k]`, read one by one."""
        size = tensor.dtype.itemsize
        with self.path.open("rb", buffering=0) as file:
            found = bytearray()
            for position in positions.tolist():
                file.seek(tensor.start + position * size)
                found += file.read(size)
        return torch.frombuffer(found, dtype=tensor.dtype) if found else torch.empty(0, dtype=tensor.dtype)


def listed_tensors(header: bytes) -> list[StoredTensor]:
    """The tensors that the header of a safetensors file lists, in the order in which they lie there.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is no such header.
    """
    fields: dict[str, Any] = json.loads(header)
    fields.pop("__metadata__", None)
    begin = 8 + len(header)
    found = [
        StoredTensor(name, spec["dtype"], tuple(spec["shape"]), *(begin + at for at in spec["data_offsets"]))
        for name, spec in fields.items()
    ]
    return sorted(found, key=lambda tensor: tensor.start)


def checkpoint_folder(name: str, revision: str | None, wanted: list[str], what: str, instead: str, **hub: Any) -> Path:
    """The folder of a checkpoint; from the Hub, with the files that match the patterns `wanted`.

    Args:
        name: Folder or repository id.
        revision: Commit, branch or tag of the repository.
        wanted: Patterns of the files to download.
        what: What the message calls it, e.g. "base model"; `instead` is its advice.
        **hub: Of `snapshot_download`.

    Raises:
        BaseModelError: It is neither a folder nor on the Hub.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, **hub))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise BaseModelError(
            f"The {what} {name!r} is neither a folder nor to be had from the Hub: {first_line(error)} {instead}"
        ) from error


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint."""
    if not (folder / INDEX).is_file():
        if not (folder / WEIGHTS).is_file():
            raise BaseModelError(
                f"{folder} has no {WEIGHTS} and no {INDEX}: only safetensors are read file by file. Save it "
                "with `save_pretrained` first (to merge: merge without streaming)."
            )
        return [folder / WEIGHTS]
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        paths = [folder / name for name in names if Path(name).name == name]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BaseModelError(f"{folder / INDEX} is damaged: {error!r}. Download it again.") from error
    if lost := [path.name for path in paths if not path.is_file()] or (
        ["its files"] if len(paths) < len(names) else []
    ):
        raise BaseModelError(f"{folder} lacks {lost[0]}, which {INDEX} names. Download it again.")
    return paths


def read_values(file: BinaryIO, count: int, dtype: torch.dtype) -> Tensor:
    """Read the next `count` numbers."""
    values = torch.empty(count, dtype=dtype)
    if count and file.readinto(_bytes(values)) != count * dtype.itemsize:  # type: ignore[attr-defined]
        raise BaseModelError(f"{file.name} became shorter while it was read. Download it again.")
    return values


def write_values(file: BinaryIO, values: Tensor) -> None:
    """Write numbers as they are in memory."""
    if values.numel():
        file.write(_bytes(values))


def _bytes(values: Tensor) -> memoryview:
    return values.view(-1).view(torch.uint8).numpy().data
