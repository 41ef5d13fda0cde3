"""Random directions, and an independent statement of what applying one means."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers.integrations.peft import MIN_PEFT_VERSION

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.fields import matrix_shape
from gradiend_hub.artifact.fingerprint import Fingerprint
from gradiend_hub.artifact.low_rank import Factors, Form
from gradiend_hub.model import GradiendModel

CLASSES = ["3SG", "3PL"]

OWN_LOADER_WORKS = Version(transformers.__version__) >= Version("5.20") and Version(peft.__version__) >= Version(
    MIN_PEFT_VERSION
)
"""Whether transformers' own `model.load_adapter` reads what PEFT saves: 5.24 refuses every PEFT that is out (and says so),
and releases before 5.20 do not find the values of most models' adapters."""

NEEDS_OWN_LOADER = pytest.mark.skipif(not OWN_LOADER_WORKS, reason="this transformers' load_adapter wants another PEFT")


def random_direction(
    model: nn.Module,
    storage: str = "mixed",
    *,
    seed: int = 0,
    scale: float = 0.05,
    share: float = 0.1,
    bias: bool = True,
) -> Direction:
    """A direction over every parameter: `storage` is "dense", "sparse", "low rank", or "mixed" (they alternate).

    Low-rank matrices have rank 2, or less; three dimensions are a stack of matrices. Vectors are dense instead.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = {}
    for position, (name, parameter) in enumerate(model.named_parameters()):
        form = storage if storage != "mixed" else ("dense", "sparse", "low rank")[position % 3]
        if form == "low rank" and parameter.ndim > 1:
            parameters[name] = random_factors(parameter.shape, generator, scale, bias)
            continue
        sparse = form == "sparse"
        size = max(1, int(share * parameter.numel())) if sparse else parameter.numel()
        indices = torch.randperm(parameter.numel(), generator=generator)[:size].sort().values.int() if sparse else None

        def values(size: int = size) -> torch.Tensor:
            return scale * torch.randn(size, generator=generator)

        parameters[name] = ParameterDirection(
            tuple(parameter.shape), values(), values() if bias else None, values(), indices
        )
    return Direction(parameters, encoder_bias=0.25, fingerprint=Fingerprint.of(dict(model.named_parameters())))


def random_factors(
    shape: torch.Size, generator: torch.Generator, scale: float, bias: bool, rank: int = 2
) -> ParameterDirection:
    """A low-rank part, whose factors are multiples of a power of two: products with such numbers are exact."""
    stacked = len(shape) == 3
    form = Form(matrix_shape(shape, stacked), min(rank, *matrix_shape(shape, stacked)[-2:]))
    step = 2.0 ** round(math.log2(scale) / 2) / 8

    def factors() -> Factors:
        size = sum(map(math.prod, form.shapes))
        return form.factors(step * torch.randint(-8, 9, (size,), generator=generator))

    return ParameterDirection(tuple(shape), factors(), factors() if bias else None, factors())


def dense_edit(part: ParameterDirection, c_w: float, c_b: float) -> torch.Tensor:
    """`c_w·w_d + c_b·b_d` of a low-rank part: a product of matrices, flat."""
    vectors = [(part.decoder, c_w)] + [(part.decoder_bias, c_b)] * (part.decoder_bias is not None)
    return (torch.cat([v.b * c for v, c in vectors], -1) @ torch.cat([v.a for v, _ in vectors], -2)).flatten()


def config_for(direction: Direction, base: nn.Module | None = None, **fields: Any) -> GradiendConfig:
    """A configuration of a direction; fields as of `GradiendConfig`."""
    if isinstance(base, nn.Module):
        fields.setdefault(
            "auto_mapping", {"base_model_class": type(base).__name__, "parent_library": type(base).__module__}
        )
    return GradiendConfig(
        **{"feature_classes": CLASSES, "parameters": direction.spec(), "has_bias": direction.has_bias, **fields}
    )


def save(folder: Path, direction: Direction, base: nn.Module | None = None, **fields: Any) -> Path:
    """Write an artifact and return its folder."""
    config = config_for(direction, base, **fields)
    config.save_pretrained(str(folder))
    direction.save(folder, dtype=config.dtype)
    return folder


def edited(base: nn.Module, edits: Sequence[tuple[Direction, float, float]]) -> nn.Module:
    """A copy of the base model with `W' = round(W + Σ (c_w·w_d + c_b·b_d))`, summed in fp32 and rounded once."""
    model = copy.deepcopy(base)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            total, touched = torch.zeros(parameter.numel()), torch.zeros(parameter.numel(), dtype=torch.bool)
            for direction, c_w, c_b in edits:
                part = direction.parameters.get(name)
                if part is None or (c_w == 0 and c_b == 0):
                    continue
                if isinstance(part.decoder, Factors):
                    values = dense_edit(part, c_w, c_b)
                else:
                    values = part.decoder * c_w
                    if part.decoder_bias is not None:
                        values = values + part.decoder_bias * c_b
                where = slice(None) if part.indices is None else part.indices.long()
                total[where] += values
                touched[where] = True
            old = parameter.flatten()
            new = (old.float() + total).to(parameter.dtype)
            parameter.copy_(torch.where(touched, new, old).view(parameter.shape))
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
    return model


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all weights of the base model, by name."""
    if isinstance(model, GradiendModel):
        model = model.get_base_model()
    state = model.state_dict()
    return {name: tensor.clone() for name, tensor in state.items() if "rewrite_" not in name}


def same_bits(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> bool:
    """Whether two state dictionaries are equal to the last bit, the sign of zeros included."""
    if found.keys() != expected.keys():
        return False

    def raw(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.contiguous().view(-1).view(torch.uint8)

    return all(torch.equal(raw(found[name]), raw(expected[name])) for name in expected)
