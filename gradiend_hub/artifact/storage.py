"""The three safetensors files of a direction: their keys, and reading them as a stranger's.

Names, types and sizes are compared with the configuration from the headers alone; values are checked before anybody
uses them. Nothing here knows what the vectors are good for.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from gradiend_hub.errors import ArtifactError, first_line
from gradiend_hub.folders import new_file_mode
from gradiend_hub.printable import printable

from .fields import stored_size
from .files import BASE_FILE, ENCODER_FILE, WEIGHTS_FILE, own_file, require_file
from .fingerprint import SAMPLES, Fingerprint

SIDECAR = "rewrite_"
"""First part of the name of the module that carries one parameter's direction; free of the prefix `gradiend_`."""

KEY_PREFIX = "base_model.model."
ENCODER_KEY, ENCODER_BIAS_KEY, FINGERPRINT_KEY = "encoder.", "encoder_bias", "fingerprint."
DTYPE_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I64": 8}
MOST_METADATA = 2**16
"""Bytes of a header beside the tensors' own."""
Expected = tuple[str, int | None]
"""Type code and number of elements of a stored vector; any number if `None`."""


class StoredForm(Protocol):
    """A configuration's account of the stored tensors; see `GradiendConfig`."""

    parameters: dict[str, dict[str, Any]] | None
    has_bias: bool
    dtype: str


class Vectors(NamedTuple):
    """Stored vectors of one parameter, flat: entries, or the factors of a matrix one after the other (`Form`)."""

    decoder: torch.Tensor
    decoder_bias: torch.Tensor | None
    encoder: torch.Tensor | None
    indices: torch.Tensor | None


def index_dtype(numel: int) -> torch.dtype:
    """Type of the flat indices into a tensor of `numel` elements."""
    return torch.int32 if numel <= 2**31 - 1 else torch.int64


def sidecar_name(parameter: str) -> str:
    """Module path of a parameter's side-car: `a.b.weight` → `a.b.rewrite_weight`."""
    owner, _, leaf = parameter.rpartition(".")
    return f"{owner}.{SIDECAR}{leaf}" if owner else f"{SIDECAR}{leaf}"


def vector_key(parameter: str, kind: str) -> str:
    """Key of a parameter's "weight", "bias" or "indices" in `adapter_model.safetensors`."""
    return f"{KEY_PREFIX}{sidecar_name(parameter)}.gradiend_{kind}"


# ------------------------------------------------------------------------------------------------------------- writing


def write(tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a file beside its place and move it there, so that no reader ever sees half of it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    plain, seen = {}, set()
    for key, value in tensors.items():
        value = value.detach().cpu().contiguous()
        plain[key] = value.clone() if value.data_ptr() in seen else value  # the format stores no shared memory
        seen.add(value.data_ptr())
    try:
        save_file(plain, temporary, metadata)
        temporary.chmod(new_file_mode())  # safetensors lets nobody else read it
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------- reading


class StoredVectors:
    """The vectors in a direction's files, read one parameter at a time, fp32.

    Opening it compares all names, types and sizes with the configuration, from the headers alone.

    Args:
        folder: Folder of the artifact.
        form: Its configuration.
        encoder: Whether to read encoder vectors, too.

    Attributes:
        encoder_bias: 0 if there is no encoder.
        fingerprint: The base model's samples; `None` if there are none.

    Raises:
        ArtifactNotFoundError: If there is no `adapter_model.safetensors`.
        ArtifactError: If a file is damaged, or does not hold what the configuration says.
    """

    def __init__(self, folder: Path, form: StoredForm, *, encoder: bool = True) -> None:
        path = require_file(folder, WEIGHTS_FILE)
        expected = _decoder_form(form)
        self._decoder = _opened(path, expected)
        with _readable(path):
            _compare_headers(path, self._decoder, expected)
            self._keys = frozenset(self._decoder.keys())
        read = _read_encoder(own_file(folder, ENCODER_FILE), form)
        base = own_file(folder, BASE_FILE)
        self.encoder_bias = read.bias
        self.fingerprint = read.fingerprint if base is None else read_fingerprint(base, form)
        self._encoder = read.file if encoder and read.has_vectors else None
        self._path = path

    def __call__(self, parameter: str) -> Vectors:
        """Read the vectors of one parameter."""
        keys = {kind: vector_key(parameter, kind) for kind in ("weight", "bias", "indices")}
        with _readable(self._path):
            found = {kind: _tensor(self._decoder, key) for kind, key in keys.items() if key in self._keys}
            encoder = None if self._encoder is None else _tensor(self._encoder, ENCODER_KEY + parameter)
        return Vectors(found["weight"], found.get("bias"), encoder, found.get("indices"))


class _Encoder(NamedTuple):
    """Content of `gradiend_encoder.safetensors` but for its vectors, and the open file that has them."""

    bias: float = 0.0
    fingerprint: Fingerprint | None = None
    has_vectors: bool = False
    file: Any = None


def _read_encoder(path: Path | None, form: StoredForm) -> _Encoder:
    """Read the encoder's bias, and the base model's samples where version 0.1 stored them; empty without a file.

    Raises:
        ArtifactError: If it is damaged, or does not hold what the configuration says.
    """
    if path is None:
        return _Encoder()
    parameters = form.parameters or {}
    vectors = {ENCODER_KEY + name: (DTYPE_CODES[form.dtype], stored_size(spec)) for name, spec in parameters.items()}
    every: dict[str, Expected] = {**vectors, ENCODER_BIAS_KEY: ("F64", 1)}
    file = _opened(path, every | _samples_form(form))
    with _readable(path):
        has_vectors = any(key.startswith(ENCODER_KEY) for key in file.keys())  # noqa: SIM118 - no dictionary
        fingerprint = _fingerprint(path, file, form, every if has_vectors else {})
        bias = float(file.get_tensor(ENCODER_BIAS_KEY)) if has_vectors else 0.0
        return _Encoder(bias, fingerprint, has_vectors, file)


def read_fingerprint(path: Path, form: StoredForm) -> Fingerprint | None:
    """Read the base model's samples from the file that holds them: `gradiend_base.safetensors`, or the encoder's.

    Raises:
        ArtifactError: If it is damaged, or does not hold what the configuration says.
    """
    if path.name != BASE_FILE:
        return _read_encoder(path, form).fingerprint
    file = _opened(path, _samples_form(form))
    with _readable(path):
        return _fingerprint(path, file, form, {})


def _samples_form(form: StoredForm) -> dict[str, Expected]:
    """Keys of the base model's samples, with their type and their largest number; each may be missing."""
    return dict.fromkeys((FINGERPRINT_KEY + name for name in form.parameters or {}), ("F32", SAMPLES))


def _fingerprint(path: Path, file: Any, form: StoredForm, beside: dict[str, Expected]) -> Fingerprint | None:
    """The samples in an open file, which may hold nothing but them and what is expected beside them."""
    found = set(file.keys())
    keys = {name: key for name in form.parameters or {} if (key := FINGERPRINT_KEY + name) in found}
    _compare_headers(path, file, dict.fromkeys(keys.values(), ("F32", None)) | beside)
    samples = {name: _tensor(file, key) for name, key in keys.items()}
    dtype = printable((file.metadata() or {}).get("base_dtype", "float32"), 40)
    return Fingerprint(samples, dtype) if samples else None


def _decoder_form(form: StoredForm) -> dict[str, Expected]:
    """Keys of `adapter_model.safetensors`, with their types and sizes."""
    expected: dict[str, Expected] = {}
    for name, spec in (form.parameters or {}).items():
        values = (DTYPE_CODES[form.dtype], stored_size(spec))
        expected[vector_key(name, "weight")] = values
        if form.has_bias:
            expected[vector_key(name, "bias")] = values
        if spec["entries"] is not None:
            integers = "I32" if index_dtype(math.prod(spec["shape"])) == torch.int32 else "I64"
            expected[vector_key(name, "indices")] = (integers, spec["entries"])
    return expected


def _opened(path: Path, most: Mapping[str, Expected]) -> Any:
    """Open a file that may hold these tensors, and is no larger than they are: nothing of it was looked at before."""
    data = sum(max(4, BYTES[code]) * (size or 0) for code, size in most.values())  # another type is told of below
    header = MOST_METADATA + sum(6 * len(key) + 200 for key in most)  # JSON may write a letter as \uXXXX
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    for what, found, limit in (("a header of", length, header), ("a size of", path.stat().st_size, header + data)):
        if found > limit:
            raise ArtifactError(
                f"{path} has {what} {found:,} bytes, and its configuration accounts for at most {limit:,}; it is damaged, "
                "or does not belong to this direction."
            )
    with _readable(path):
        return safe_open(str(path), framework="pt")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise ArtifactError(f"{path} is not a readable safetensors file: {error}. Download it again.") from error
    except (OSError, RuntimeError, MemoryError) as error:  # of a file that does not fit into the address space
        size = path.stat().st_size
        raise ArtifactError(f"{path}, of {size:,} bytes, cannot be mapped into memory: {first_line(error)}") from error


def _compare_headers(path: Path, file: Any, expected: Mapping[str, Expected]) -> None:
    found = set(file.keys())
    for problem, keys in (("lacks", expected.keys() - found), ("holds unexpected", found - expected.keys())):
        if keys:
            raise ArtifactError(
                f"{path} {problem} {len(keys)} tensors, e.g. {min(keys)[:120]!r}; it does not match its configuration."
            )
    for key, (code, size) in expected.items():
        header = file.get_slice(key)
        dtype, shape = header.get_dtype(), header.get_shape()
        if dtype != code or len(shape) != 1 or (size is not None and shape != [size]):
            raise ArtifactError(
                f"{path}: expected {key[:120]!r} to be {code} [{'n' if size is None else size}], found {dtype} {shape}."
            )


def _tensor(file: Any, key: str) -> torch.Tensor:
    values: torch.Tensor = file.get_tensor(key)
    return values.float() if values.is_floating_point() else values


# ------------------------------------------------------------------------------------------------------------ checking


def peak(values: torch.Tensor) -> float:
    """Largest absolute value; NaN or infinity if there is one. Ten times faster than `isfinite().all()`."""
    if not values.numel():
        return 0.0
    low, high = (float(bound) for bound in torch.aminmax(values.detach()))
    return math.nan if math.isnan(low) or math.isnan(high) else max(-low, high)


def check_indices(name: str, indices: torch.Tensor, numel: int) -> None:
    """Check flat indices: 1-d, of the right type, sorted, unique and within the parameter.

    Args:
        name: Name of the parameter.
        indices: The indices.
        numel: Number of elements of the parameter.

    Raises:
        ArtifactError: If they are unusable.
    """
    if indices.dtype != index_dtype(numel) or indices.ndim != 1:
        raise ArtifactError(
            f"Indices of {name}: expected {index_dtype(numel)} [k], found {indices.dtype} {list(indices.shape)}."
        )
    if indices.numel() and not (
        bool((indices[1:] > indices[:-1]).all()) and int(indices[0]) >= 0 and int(indices[-1]) < numel
    ):
        raise ArtifactError(
            f"Indices of {name} must be sorted, unique and within 0…{numel - 1}; the file is damaged or hostile."
        )
