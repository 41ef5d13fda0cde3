"""`gradiend_references.safetensors`: what a direction is compared with, so that a comparison needs neither data nor base.

A few thousand entries each of directions of coin labels on the same rows (the null), and, where the decoder is no gradient,
of the plain class-mean gradient that says what an edit does to the feature. The figures measured between the whole vectors
stand in the report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from gradiend_hub.errors import ArtifactError, ConfigError

from .direction import Direction, ParameterDirection
from .fields import MAX_ELEMENTS, Shape
from .files import MOST_REFERENCES_BYTES, REFERENCES_FILE, own_file
from .storage import index_dtype, write
from .validation import read_as

MOST_CONTROLS = 64


@dataclass(frozen=True)
class _Head:
    """Metadata of the file about its tensors."""

    parameters: dict[str, Shape] = field(default_factory=dict)
    controls: int = 0
    has_gradient: bool = False
    gradient_scale: float | None = None
    schema_version: int = 1


@dataclass(frozen=True, eq=False)
class References:
    """Vectors that a direction is compared with; all are sparse, and oriented as decoders (`decoder_sign` is 1).

    Attributes:
        controls: directions learned from labels that were dealt out by coin, on the direction's own rows.
        gradient: ∇ of the mean log-odds of the first class over the second, its entries that matter most to the effect of
            the direction itself; `None` where `gradient_scale` says it, or where it is not known.
        gradient_scale: factor that makes `decoder_sign · w_d` this gradient, where the decoder is one.
    """

    controls: tuple[Direction, ...] = ()
    gradient: Direction | None = None
    gradient_scale: float | None = None

    def save(self, folder: Path) -> None:
        """Write the file, whole or not at all."""
        vectors = {f"control.{number}": control for number, control in enumerate(self.controls)}
        if self.gradient is not None:
            vectors["gradient"] = self.gradient
        shapes = {n: list(p.shape) for vector in vectors.values() for n, p in vector.parameters.items()}
        starts = _starts(shapes)
        head = asdict(_Head(shapes, len(self.controls), self.gradient is not None, self.gradient_scale))
        tensors: dict[str, torch.Tensor] = {}
        for key, vector in vectors.items():
            tensors |= dict(zip((f"{key}.indices", f"{key}.values"), _flat(vector, starts), strict=True))
        write(tensors, folder / REFERENCES_FILE, {"references": json.dumps(head)})

    @classmethod
    def find(cls, folder: Path) -> References | None:
        """Read the references in an artifact's folder; `None` for one that has none, as those of older versions.

        Raises:
            ArtifactError: The file is damaged, or not one of this library.
        """
        path = own_file(folder, REFERENCES_FILE)
        if path is None:
            return None
        try:
            if path.stat().st_size > MOST_REFERENCES_BYTES:
                raise ValueError(f"it is larger than {MOST_REFERENCES_BYTES} bytes")
            with safe_open(str(path), framework="pt") as file:
                head = read_as(_Head, json.loads((file.metadata() or {}).get("references", "{}")), "references")
                return cls._read(file, head)
        except (OSError, ValueError, RecursionError, SafetensorError, ConfigError) as error:
            reason = str(error).removesuffix(".")
            raise ArtifactError(f"{path} holds no references of this library: {reason}. Download it again.") from error

    @classmethod
    def _read(cls, file: Any, head: _Head) -> References:
        if not 0 <= head.controls <= MOST_CONTROLS or sum(map(math.prod, head.parameters.values())) > MAX_ELEMENTS:
            raise ValueError(f"{head.controls} controls of {len(head.parameters)} parameters are too many")
        keys = [*(f"control.{number}" for number in range(head.controls)), *(["gradient"] if head.has_gradient else [])]
        expected = {f"{key}.{kind}" for key in keys for kind in ("indices", "values")}
        if expected != {*file.keys()}:
            raise ValueError(f"expected the tensors {sorted(expected)}, found {sorted(file.keys())[:8]}")
        vectors = [_vector(key, file, head.parameters) for key in keys]
        return cls(tuple(vectors[: head.controls]), vectors[-1] if head.has_gradient else None, head.gradient_scale)


def _starts(shapes: Mapping[str, list[int]]) -> dict[str, int]:
    """The place of each parameter in the vector of all."""
    return dict(zip(shapes, accumulate(map(math.prod, shapes.values()), initial=0), strict=False))


def _flat(vector: Direction, starts: Mapping[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Places in the vector of all parameters, int64 [k], sorted, and values, fp32 [k]."""
    places, values = [], []
    for name in starts:
        if (part := vector.parameters.get(name)) is not None:
            assert part.indices is not None, "references are sparse"
            places.append(part.indices.long() + starts[name])
            values.append(part.values)
    return torch.cat(places or [torch.zeros(0, dtype=torch.int64)]), torch.cat(values or [torch.zeros(0)])


def _vector(key: str, file: Any, shapes: Mapping[str, list[int]]) -> Direction:
    """Read one vector, and divide it by parameter."""
    places, values = file.get_tensor(f"{key}.indices"), file.get_tensor(f"{key}.values")
    starts = _starts(shapes)
    total = sum(map(math.prod, shapes.values()))
    if (places.dtype, values.dtype) != (torch.int64, torch.float32) or places.ndim != 1 or values.shape != places.shape:
        raise ValueError(f"{key} is not int64 [k] and float32 [k]")
    if len(places) and not (int(places[0]) >= 0 and int(places[-1]) < total and bool((places[1:] > places[:-1]).all())):
        raise ValueError(f"the places of {key} are not sorted, unique and within 0…{total - 1}")
    if not bool(values.isfinite().all()):
        raise ValueError(f"{key} holds NaN or infinite values")
    parts = {}
    for name, shape in shapes.items():
        start, numel = starts[name], math.prod(shape)
        low, high = torch.searchsorted(places, torch.tensor([start, start + numel])).tolist()
        if high > low:
            indices = (places[low:high] - start).to(index_dtype(numel))
            parts[name] = ParameterDirection(tuple(shape), values[low:high].clone(), indices=indices)
    return Direction(parts)
