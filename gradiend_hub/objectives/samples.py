"""Samples and batches of them: an example is an input with labelled positions, a label has a loss."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position that is not read."""


@dataclass(frozen=True)
class Sample:
    """One input of a model: the label `labels[i]` is predicted at `positions[i]`.

    Attributes:
        inputs: The model's arguments for this row alone, e.g. token ids as a tuple, or an image as a tensor or
            as the bytes of its file. Samples that
            read the same logits share this very object.
        positions: Positions that are read, [S]; an objective without positions has (0,).
        labels: Output at each of them, [S].
        cost: Work of a forward pass, e.g. the number of tokens: what batches are balanced by.
    """

    inputs: Mapping[str, Any]
    positions: tuple[int, ...]
    labels: tuple[int, ...]
    cost: int

    def reads_as(self, other: Sample) -> bool:
        """Return whether both read the same logits, so that one forward pass serves them."""
        return self.positions == other.positions and (
            self.inputs is other.inputs or same_inputs(self.inputs, other.inputs)
        )

    def content(self) -> bytes:
        """Return everything that a gradient of the sample depends on, as bytes."""
        parts = [json.dumps([self.positions, self.labels]).encode()]
        for name, value in self.inputs.items():
            if isinstance(value, Tensor):
                value = value.cpu().contiguous().numpy().tobytes()
            parts += [name.encode(), value if isinstance(value, bytes) else json.dumps(value).encode()]
        return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def same_inputs(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Return whether two samples have the same inputs."""
    if first.keys() != second.keys():
        return False
    pairs = [(first[name], second[name]) for name in first]
    return all(torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b for a, b in pairs)


@dataclass(frozen=True)
class Example:
    """The factual and the alternative output of one row. Equal inputs share one forward pass."""

    factual: Sample
    alternative: Sample

    @property
    def cost(self) -> int:
        """Work of a forward pass of the larger sample."""
        return max(self.factual.cost, self.alternative.cost)


@dataclass(frozen=True)
class Batch:
    """Collated samples.

    Attributes:
        inputs: Arguments of the model by name, each [B, …].
        positions: Positions that are read, [B, S].
        labels: Output at each of them, [B, S]; `IGNORED` where a row has fewer.
        samples: What the rows were made of.
    """

    inputs: dict[str, Tensor]
    positions: Tensor
    labels: Tensor
    samples: tuple[Sample, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Batch:
        """Move the tensors to a device."""
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        return Batch(inputs, self.positions.to(device), self.labels.to(device), self.samples)

    def select(self, rows: Sequence[int]) -> Batch:
        """Keep some rows, padded as before."""
        chosen = list(rows)
        inputs = {name: value[chosen] for name, value in self.inputs.items()}
        samples = tuple(self.samples[i] for i in chosen) if self.samples else ()
        return Batch(inputs, self.positions[chosen], self.labels[chosen], samples)


@dataclass(frozen=True)
class PairBatch:
    """Factual and alternative samples of the same rows; `shared` when both read the same logits."""

    factual: Batch
    alternative: Batch

    def __len__(self) -> int:
        return len(self.factual)

    @property
    def shared(self) -> bool:
        """Return whether one forward pass serves both."""
        return self.factual.inputs is self.alternative.inputs

    def _with(self, factual: Batch, alternative: Batch) -> PairBatch:
        if self.shared:
            alternative = Batch(factual.inputs, factual.positions, alternative.labels, alternative.samples)
        return PairBatch(factual, alternative)

    def to(self, device: torch.device) -> PairBatch:
        """Move the tensors to a device."""
        return self._with(self.factual.to(device), self.alternative.to(device))

    def select(self, rows: Sequence[int]) -> PairBatch:
        """Keep some rows, padded as before."""
        return self._with(self.factual.select(rows), self.alternative.select(rows))


@dataclass(frozen=True)
class Reading:
    """One input of a row, and the outputs of each class that are read there.

    Attributes:
        sample: The input; its own labels are not read.
        outputs: Ids of the outputs by class, each [K] for the first K positions.
    """

    sample: Sample
    outputs: list[list[tuple[int, ...]]]


@dataclass(frozen=True)
class QualityItem:
    """A sample on which an edit should change nothing.

    Attributes:
        unit: Number of the text (or image) that it is of: samples of one unit are easy or hard together.
        sample: Input with the labels that it really has.
    """

    unit: int
    sample: Sample


@dataclass(frozen=True)
class Answer:
    """Answer of a model to one input.

    Attributes:
        outputs: Likeliest outputs at the position that is asked for, with their probabilities.
        continuation: Text that a generating model goes on with; `None` for others.
    """

    outputs: list[tuple[str, float]]
    continuation: str | None = None


def output_nll(log_probs: Tensor, labels: Tensor) -> Tensor:
    """Return the negative log-likelihood of each row's output: the sum over its positions.

    The sum, not the mean: it is −log P(output), so that a class's gradient is that of its outputs' log-likelihood and does
    not depend on how finely a tokenizer happens to cut them.

    Args:
        log_probs: [B, S, V].
        labels: [B, S].

    Returns:
        [B].
    """
    nll = -log_probs.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return (nll * (labels != IGNORED)).sum(-1)
