"""Gradients at quantised layers by their factors: those of a dense model with the weights that the layers compute with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.errors import BaseModelError, ConfigError
from gradiend_hub.gradients import GradientReader, Scope, Tangent, directional_derivatives, select_parameters
from tests.adapter.test_quantized import KINDS, QuantLinear, quantize
from tests.gradients.test_directional import LENGTHS, SLOTS, by_backward
from tests.gradients.test_factors import autograd, loss_of, summed
from tests.models import build
from tests.objectives.support import objective, samples


@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_autograd_of_the_dequantised_model(kind: Any) -> None:
    packed, dense = quantize(build("bert"), kind)
    scope, plain = (Scope.dense(select_parameters(model)) for model in (packed, dense))
    assert {n: p.shape for n, p in scope.parameters.items()} == {n: p.shape for n, p in plain.parameters.items()}
    expected = autograd(plain, loss_of(dense, "bert")())
    reader, found = summed(packed, scope, loss_of(packed, "bert"))
    assert not reader.matrices_of_their_own and found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()) + 1e-7, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["low rank", "dense"])
def test_encodings_are_products_with_those_gradients(kind: Any, form: str) -> None:
    packed, dense = quantize(build("bert"), kind)
    generator, tangents, wanted = torch.Generator().manual_seed(5), dict[str, Tangent](), dict[str, torch.Tensor]()
    for name, parameter in select_parameters(packed).items():
        w: Any = torch.randn(parameter.shape, generator=generator)
        if form == "low rank" and parameter.ndim > 1:
            w = Factors.nearest(w, 2)
        tangents[name], wanted[name] = w, w if isinstance(w, torch.Tensor) else w.dense()
    rows = samples(LENGTHS, SLOTS)
    values = directional_derivatives(packed, objective("bert"), rows, tangents, batch_size=3)
    expected = by_backward(dense, rows, wanted)
    assert float((values - expected).norm() / expected.norm()) < 1e-5


def test_whole_gradients_are_refused() -> None:
    packed, _ = quantize(build("bert"), QuantLinear)
    with pytest.raises(ConfigError, match=r"24 weights in scope are quantised.*rank=8.*choose a scope without"):
        GradientReader(packed, Scope.dense(select_parameters(packed)))
    norms = Scope.dense(select_parameters(packed, scope="type:LayerNorm"))
    with GradientReader(packed, norms) as reader:
        assert bool(reader.read(loss_of(packed, "bert")()).any())


class InferenceOnly(QuantLinear):
    """A kernel without a backward pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return super().forward(x)


def test_kernels_without_a_backward_pass_are_refused() -> None:
    packed, _ = quantize(build("bert"), InferenceOnly)
    scope = Scope.dense(select_parameters(packed))
    with pytest.raises(BaseModelError, match="InferenceOnly computes no gradient of its input"):
        summed(packed, scope, loss_of(packed, "bert"))
    assert all(isinstance(module, nn.Module) and not module._forward_hooks for module in packed.modules())
