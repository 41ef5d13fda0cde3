"""Feature values of rows: what the encoder reads from the base model's gradients, without ever forming one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.data import read_rows
from gradiend_hub.errors import ArtifactError
from gradiend_hub.gradients import Entries, Tangent, directional_derivatives
from gradiend_hub.objectives import Example, Objective, examples_of


def preactivations(
    model: nn.Module,
    objective: Objective,
    examples: Sequence[Example],
    encoder: Mapping[str, Tangent],
    bias: float,
    *,
    source: str,
    batch_size: int = 64,
) -> Tensor:
    """Compute z_i = ⟨w_e, s_i⟩ + b_e of every example: [N], fp32; tanh(z) is its feature value. No gradient is formed.

    Args:
        model: the base model, unedited.
        encoder: w_e by parameter name: in the parameters' shapes, by factors, or sparse.
        source: which gradient s_i is, as in `GradiendConfig`.
    """

    def derivatives(which: str) -> Tensor:
        samples = [e.factual if which == "factual" else e.alternative for e in examples]
        return directional_derivatives(model, objective, samples, encoder, batch_size=batch_size)

    return bias + (derivatives("factual") - derivatives("alternative") if source == "diff" else derivatives(source))


def encoder_tensors(direction: Direction) -> tuple[dict[str, Tangent], float]:
    """Encoder vectors of a direction in the form that they are stored in, and the encoder bias.

    Raises:
        ArtifactError: the direction was published without its encoder.
    """
    if not direction.has_encoder:
        raise ArtifactError("This direction has no encoder (gradiend_encoder.safetensors), so it cannot encode.")
    return {name: _tangent(part) for name, part in direction.parameters.items()}, direction.encoder_bias


def _tangent(part: ParameterDirection) -> Tangent:
    values = part.encoder
    assert values is not None
    if isinstance(values, Factors):
        return values
    return values.view(part.shape) if part.indices is None else Entries(part.indices, values, part.shape)


def reading_sign(source: str) -> int:
    """Return the sign that makes an encoder answer for the output that stands in the input.

    The training label of a row is that of the output whose gradient is the source. With the source "alternative" that is
    the other one, so readers would get −1 where the first class's word stands; they get +1.
    """
    return -1 if source == "alternative" else 1


def encode_rows(
    model: nn.Module,
    objective: Objective,
    direction: Direction,
    config: GradiendConfig,
    rows: Iterable[Mapping[str, Any]],
    *,
    batch_size: int = 64,
) -> Tensor:
    """Read feature values h of rows from the base model's gradients: [N], fp32, in (−1, 1).

    A value is positive where the factual output, that of the input itself, is of the first class, whatever gradient the
    encoder reads. Rows of other classes are read, too.

    Args:
        model: The base model, unedited.
        objective: Of the base model.
        direction: With its encoder.
        config: Of the direction.
        rows: Records, as `objective.read` takes them.
        batch_size: Rows per forward pass.

    Raises:
        ArtifactError: The direction was published without its encoder.
        DataError: A row is unusable.
    """
    checked = read_rows(rows, None, read=objective.read, what="rows")
    examples = examples_of(objective, checked, what="rows")
    encoder, bias = encoder_tensors(direction)
    z = preactivations(model, objective, examples, encoder, bias, source=config.source, batch_size=batch_size)
    return reading_sign(config.source) * torch.tanh(z)
