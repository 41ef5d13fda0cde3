"""Is this the base model that the direction was learned on?

A direction carries a few values of every tensor that it touches. Comparing them with the model at hand tells the same
model from a rounded copy, a fine-tuned relative and a stranger, without downloading or hashing anything.
"""

from __future__ import annotations

import functools
import math
import statistics
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

import torch

from gradiend_hub.errors import BaseModelMismatchError

from .files import BASE_FILE

SAMPLES = 64
"""Values that are kept of each tensor."""

RELATED_DISTANCE = 0.5
"""Largest median distance of a relative: independent models are √2 apart, a fine-tune a few percent."""

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class BaseModelRelation(str, Enum):
    """Relation of a model to the one that a direction was learned on."""

    SAME = "same"
    ROUNDED = "same up to rounding"
    RELATED = "related"
    DIFFERENT = "different"


@dataclass(frozen=True)
class BaseMatch:
    """Outcome of a comparison.

    Attributes:
        relation: The verdict.
        distance: Median over the tensors of `‖a - b‖ / spread(a)` of their samples; 0 is equal, √2 unrelated.
        worst: Name and distance of the tensor that differs most.
        tensors: Number of tensors that were compared.
    """

    relation: BaseModelRelation
    distance: float
    worst: tuple[str, float]
    tensors: int

    def evidence(self) -> str:
        """One sentence with the figures behind the verdict."""
        name, distance = self.worst
        return (
            f"The sampled values of {self.tensors} tensors differ by {self.distance:.3g} of their spread (median); "
            f"most in {name}, by {distance:.3g}."
        )


@functools.lru_cache(maxsize=256)
def sample_positions(numel: int) -> torch.Tensor:
    """Flat positions that are sampled of a tensor with `numel` elements: sorted int64, the same on every machine."""
    if numel <= SAMPLES:
        return torch.arange(numel)
    steps = torch.arange(SAMPLES, dtype=torch.float64) * 0.6180339887498949
    positions: torch.Tensor = torch.unique((steps.frac() * numel).long().clamp_(max=numel - 1))
    return positions


def sample(tensor: torch.Tensor) -> torch.Tensor:
    """The sampled values of a tensor, fp32 on the CPU (exact for fp32, fp16 and bf16 tensors)."""
    positions = sample_positions(tensor.numel()).to(tensor.device)
    data = tensor.detach()
    flat = data.view(-1) if data.is_contiguous() else data.reshape(-1)
    return flat.index_select(0, positions).float().cpu()


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """Sampled values of the base model's tensors.

    Attributes:
        samples: Parameter name to its sampled values, fp32 `[≤ 64]`.
        dtype: Type of the base model's values when they were sampled, e.g. `"bfloat16"`.
    """

    samples: Mapping[str, torch.Tensor]
    dtype: str = "float32"

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Fingerprint:
        """Take the fingerprint of named tensors, usually `{name: parameter}` of the base model."""
        dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
        return cls(
            {name: sample(tensor) for name, tensor in tensors.items()}, dtypes.pop() if len(dtypes) == 1 else "float32"
        )

    def renamed(self, names: Mapping[str, str]) -> Fingerprint:
        """The same samples under other parameter names."""
        return Fingerprint({names.get(name, name): values for name, values in self.samples.items()}, self.dtype)

    def only(self, names: Iterable[str]) -> Fingerprint:
        """The samples of some parameters."""
        return Fingerprint({name: self.samples[name] for name in names if name in self.samples}, self.dtype)

    def _equals(self, samples: Mapping[str, torch.Tensor]) -> bool:
        """Tell whether the samples of a model are these, all of them; the usual case, settled in one comparison."""
        if samples.keys() != self.samples.keys() or not samples:
            return not self.samples
        stored = [self.samples[name] for name in samples]
        if any(mine.shape != theirs.shape for mine, theirs in zip(stored, samples.values(), strict=True)):
            return False
        return torch.equal(torch.cat(stored), torch.cat(list(samples.values())))

    def compare(self, tensors: Mapping[str, torch.Tensor]) -> BaseMatch:
        """Compare the stored samples with the tensors of a model.

        A tensor that the model lacks, or whose number of samples differs, counts as entirely different.
        """
        samples = {name: sample(tensors[name]) for name in self.samples if name in tensors}
        if self._equals(samples):
            return BaseMatch(BaseModelRelation.SAME, 0.0, (next(iter(samples), "no tensor"), 0.0), len(samples))
        distances: dict[str, float] = {}
        rounded = True
        dtype = DTYPES.get(self.dtype, torch.float32)
        for name, stored in self.samples.items():
            tensor, found = tensors.get(name), samples.get(name)
            if tensor is None or found is None or found.shape != stored.shape:
                distances[name], rounded = math.inf, False
                continue
            distances[name] = _distance(stored, found)
            rounded = rounded and _equal_after_rounding(stored, dtype, found, tensor.dtype)
        worst = max(distances.items(), key=lambda item: item[1], default=("no tensor", 0.0))
        # A constant vector (a norm that was never trained) is equal in unrelated models, so it has no vote.
        votes = [distance for name, distance in distances.items() if not _is_constant(self.samples[name])]
        median = statistics.median(votes or distances.values() or [0.0])
        relation = BaseModelRelation.DIFFERENT
        if rounded:
            relation = BaseModelRelation.ROUNDED
        elif worst[1] < math.inf and median <= RELATED_DISTANCE:
            relation = BaseModelRelation.RELATED
        return BaseMatch(relation, median, worst, len(distances))


def identifies(fingerprint: Fingerprint | None) -> bool:
    """Tell whether samples say anything of a model: they are there, and not all constant as in models that differ."""
    return fingerprint is not None and not all(_is_constant(values) for values in fingerprint.samples.values())


def require_same_base(
    fingerprint: Fingerprint | None,
    tensors: Mapping[str, torch.Tensor],
    model: str,
    *,
    allow_related: bool = False,
    allow_unverified: bool = False,
) -> None:
    """Refuse tensors of another model than that of the fingerprint, and of a fine-tuned relative unless it is allowed.

    Args:
        fingerprint: That of the base model, under the names of `tensors`; `None` if the direction has none.
        tensors: The original values of the model at hand; those that it has no samples of are not compared.
        model: How messages call it.
        allow_related: Accept a relative, with a warning.
        allow_unverified: Accept tensors that the fingerprint says nothing of: it has no samples of them, or none that
            differ from model to model.

    Raises:
        BaseModelMismatchError: With the evidence.
    """
    known = Fingerprint({}) if fingerprint is None else fingerprint.only(tensors)
    if not allow_unverified and not identifies(known):
        raise BaseModelMismatchError(
            f"Nothing in the direction tells whether this {model} is its base model: it has no sampled weights of it "
            f"({BASE_FILE} is missing or says nothing). On another model its edit is noise. Get the direction with that "
            "file; or, if you know that this is the base, pass allow_unverified_base=True "
            "(gradiend-hub: --allow-unverified-base)."
        )
    match = known.compare(tensors)
    if match.relation is BaseModelRelation.DIFFERENT:
        raise BaseModelMismatchError(
            f"This {model} is not the base model of the direction. {match.evidence()} "
            "Load the base model that the direction names."
        )
    if match.relation is BaseModelRelation.RELATED:
        if not allow_related:
            raise BaseModelMismatchError(
                f"This {model} is a relative (such as a fine-tune) of the direction's base model. {match.evidence()} "
                "To apply the direction all the same: GradiendModel.from_pretrained(…, allow_related=True) "
                "(gradiend-hub: --allow-related)."
            )
        warnings.warn(f"The direction is applied to a relative of its base model. {match.evidence()}", stacklevel=5)


def _is_constant(values: torch.Tensor) -> bool:
    return values.numel() < 2 or float(values.std()) <= 1e-6 * float(values.abs().max())


def _distance(stored: torch.Tensor, found: torch.Tensor) -> float:
    """`‖stored - found‖` in units of the spread of `stored` around its mean (of its norm if it is constant)."""
    stored, found = stored.double(), found.double()
    difference = float((stored - found).norm())
    scale = stored if _is_constant(stored) else stored - stored.mean()
    distance = difference / max(float(scale.norm()), 1e-12)
    return distance if math.isfinite(distance) else math.inf


def _equal_after_rounding(
    stored: torch.Tensor, stored_dtype: torch.dtype, found: torch.Tensor, found_dtype: torch.dtype
) -> bool:
    """Tell whether one side is the other one, rounded to a coarser type."""
    if not found_dtype.is_floating_point:
        return False
    down = torch.equal(stored.to(found_dtype).float(), found)
    up = torch.equal(found.to(stored_dtype).float(), stored)
    return down or up
