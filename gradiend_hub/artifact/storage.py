"""The two safetensors files of a direction: their keys, and reading them as a stranger's.

Names, types and sizes are compared with the configuration from the headers alone; values are checked before anybody
uses them. Nothing here knows what the vectors are good for.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from gradiend_hub.errors import ArtifactError, ArtifactNotFoundError

__all__ = ["StoredForm", "Vectors", "check_indices", "index_dtype", "peak", "read_encoder", "read_vectors", "write"]

SIDECAR = "rewrite_"
"""First part of the name of the module that carries one parameter's direction; free of the prefix `gradiend_`."""

KEY_PREFIX = "base_model.model."
ENCODER_KEY, ENCODER_BIAS_KEY, FINGERPRINT_KEY = "encoder.", "encoder_bias", "fingerprint."
DTYPE_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
DTYPES = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32, "I64": torch.int64,
    "F64": torch.float64,
}  # fmt: skip

SMALL = 1 << 16
"""Bytes (elements) below which tensors are read (checked) together with others, as each call costs more than its values."""


class StoredForm(Protocol):
    """What a configuration says about the stored tensors; see `GradiendConfig`."""

    parameters: dict[str, dict[str, Any]] | None
    has_bias: bool
    dtype: str


class Vectors(NamedTuple):
    """Stored vectors of one parameter's decoder."""

    weight: torch.Tensor
    bias: torch.Tensor | None
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
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------- reading


def read_vectors(path: Path, form: StoredForm) -> dict[str, Vectors]:
    """The decoder's vectors by parameter, fp32.

    Raises:
        ArtifactNotFoundError: If there is no such file.
        ArtifactError: If it is damaged, or does not hold what the configuration says.
    """
    if not path.is_file():
        raise ArtifactNotFoundError(f"There is no {path.name} in {path.parent}; is this the folder of a direction?")
    keys = {name: {kind: vector_key(name, kind) for kind in Vectors._fields} for name in form.parameters or {}}
    expected: dict[str, tuple[str, int | None]] = {}
    for name, spec in (form.parameters or {}).items():
        code = (DTYPE_CODES[form.dtype], _stored_size(spec))
        expected[keys[name]["weight"]] = code
        if form.has_bias:
            expected[keys[name]["bias"]] = code
        if spec["entries"] is not None:
            integers = "I32" if index_dtype(math.prod(spec["shape"])) == torch.int32 else "I64"
            expected[keys[name]["indices"]] = (integers, spec["entries"])
    with _opened(path) as file:
        _compare_keys(path, set(file.keys()), set(expected))
        tensors = _read(path, file, expected, expected)
    return {
        name: Vectors(tensors[of["weight"]], tensors.get(of["bias"]), tensors.get(of["indices"]))
        for name, of in keys.items()
    }


class Encoder(NamedTuple):
    """Content of `gradiend_encoder.safetensors`, by parameter."""

    vectors: dict[str, torch.Tensor]
    bias: float
    samples: dict[str, torch.Tensor]
    base_dtype: str


def read_encoder(path: Path, form: StoredForm, with_vectors: bool) -> Encoder:
    """Encoder vectors (fp32), encoder bias and the base model's samples; empty if there is no such file.

    Raises:
        ArtifactError: If it is damaged, or does not hold what the configuration says.
    """
    if not path.is_file():
        return Encoder({}, 0.0, {}, "float32")
    parameters = form.parameters or {}
    with _opened(path) as file:
        found = set(file.keys())
        expected: dict[str, tuple[str, int | None]] = {
            key: ("F32", None) for name in parameters if (key := FINGERPRINT_KEY + name) in found
        }
        wanted = set(expected)
        if any(key.startswith(ENCODER_KEY) for key in found):
            code = DTYPE_CODES[form.dtype]
            vectors = {ENCODER_KEY + name: (code, _stored_size(spec)) for name, spec in parameters.items()}
            expected |= {**vectors, ENCODER_BIAS_KEY: ("F64", 1)}
            wanted |= {ENCODER_BIAS_KEY, *(vectors if with_vectors else ())}
        _compare_keys(path, found, set(expected))
        tensors = _read(path, file, expected, wanted)
        metadata = file.metadata() or {}
    bias = tensors.pop(ENCODER_BIAS_KEY, None)

    def by_parameter(prefix: str) -> dict[str, torch.Tensor]:
        return {name: tensors[prefix + name] for name in parameters if prefix + name in tensors}

    base_dtype = metadata.get("base_dtype", "float32")
    return Encoder(
        by_parameter(ENCODER_KEY), 0.0 if bias is None else float(bias), by_parameter(FINGERPRINT_KEY), base_dtype
    )


def _stored_size(spec: dict[str, Any]) -> int:
    return int(math.prod(spec["shape"]) if spec["entries"] is None else spec["entries"])


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ArtifactError(f"{path} is not a readable safetensors file: {error}. Download it again.") from error


def _compare_keys(path: Path, found: set[str], expected: set[str]) -> None:
    for problem, keys in (("lacks", expected - found), ("holds unexpected", found - expected)):
        if keys:
            raise ArtifactError(
                f"{path} {problem} {len(keys)} tensors, e.g. {min(keys)[:120]!r}; it does not match its configuration."
            )


def _read(
    path: Path, file: Any, expected: Mapping[str, tuple[str, int | None]], wanted: Collection[str]
) -> dict[str, torch.Tensor]:
    """Compare all headers with what is expected, then read the wanted tensors; floats become fp32 (fp64 stays)."""
    tensors = {}
    for key, (code, size) in expected.items():
        header = file.get_slice(key)
        found, shape = header.get_dtype(), header.get_shape()
        if found != code or len(shape) != 1 or (size is not None and shape != [size]):
            raise ArtifactError(
                f"{path}: expected {key[:120]!r} to be {code} [{'n' if size is None else size}], found {found} {shape}."
            )
        if key in wanted:
            values = file.get_tensor(key)
            tensors[key] = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    return tensors


# ------------------------------------------------------------------------------------------------------------ checking


def peak(tensors: Sequence[torch.Tensor]) -> float:
    """Largest absolute value; NaN or infinity if there is one. Ten times faster than `isfinite().all()`."""
    detached = [tensor.detach() for tensor in tensors if tensor.numel()]
    small = [tensor for tensor in detached if tensor.numel() < SMALL]
    joined = [torch.cat(small)] if len(small) > 1 else small
    largest = 0.0
    for tensor in [*joined, *(tensor for tensor in detached if tensor.numel() >= SMALL)]:
        low, high = (float(bound) for bound in torch.aminmax(tensor))
        if math.isnan(low) or math.isnan(high):
            return math.nan
        largest = max(largest, -low, high)
    return largest


def check_indices(named: Mapping[str, tuple[torch.Tensor, int]]) -> None:
    """Check flat indices: 1-d, of the right type, sorted, unique and within the parameter.

    Args:
        named: Parameter name → (indices, number of elements of the parameter).

    Raises:
        ArtifactError: Naming the first parameter whose indices are unusable.
    """
    for name, (indices, numel) in named.items():
        if indices.dtype != index_dtype(numel) or indices.ndim != 1:
            raise ArtifactError(
                f"Indices of {name}: expected {index_dtype(numel)} [k], found {indices.dtype} {list(indices.shape)}."
            )
    filled = {name: pair for name, pair in named.items() if pair[0].numel()}
    if not filled or _all_in_order([indices for indices, _ in filled.values()], [size for _, size in filled.values()]):
        return
    for name, (indices, numel) in filled.items():
        if not _all_in_order([indices], [numel]):
            raise ArtifactError(
                f"Indices of {name} must be sorted, unique and within 0…{numel - 1}; the file is damaged or hostile."
            )


def _all_in_order(vectors: list[torch.Tensor], numels: list[int]) -> bool:
    """Whether each of the vectors is sorted, unique and within its parameter; looked at together, for speed."""
    joined = torch.cat(vectors) if len(vectors) > 1 else vectors[0]
    sizes = torch.tensor([vector.numel() for vector in vectors])
    ends = sizes.cumsum(0)
    ordered = joined[1:] > joined[:-1]
    ordered[ends[:-1] - 1] = True  # from one vector to the next
    first, last = joined[ends - sizes].cpu(), joined[ends - 1].cpu()
    return bool(ordered.all()) and bool((first >= 0).all()) and bool((last < torch.tensor(numels)).all())
