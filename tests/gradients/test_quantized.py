"""Gradients at quantised layers by their factors: those of a dense model with the weights that the layers compute with."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.errors import BaseModelError, ConfigError
from gradiend_hub.gradients import GradientReader, Scope, Tangent, directional_derivatives, select_parameters
from gradiend_hub.gradients.frozen import frozen
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


class KernelOrder(nn.Linear):
    """As bitsandbytes' 4 bits on some CPUs: inference reorders it, and a checkpoint undoes that but for the scales."""

    support_avx512bf16_for_cpu = True

    def __init__(self, rows: int, columns: int, block: int = 16) -> None:
        super().__init__(columns, rows, bias=False)
        codes = torch.randint(1, 16, (rows, columns), dtype=torch.uint8)
        self.weight: Any = nn.Parameter(codes, requires_grad=False)
        scales = torch.rand(rows * columns // block)
        self.weight.quant_state = SimpleNamespace(absmax=scales, nested=False, packing_format_for_cpu=False)

    def _save_to_state_dict(self, *args: Any) -> None:
        if self.weight.quant_state.packing_format_for_cpu:
            self.weight.data, self.weight.quant_state.packing_format_for_cpu = self.weight.data.T.contiguous(), False
        super()._save_to_state_dict(*args)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As a linear layer."""
        state = self.weight.quant_state
        if self.support_avx512bf16_for_cpu and not x.requires_grad and not state.packing_format_for_cpu:
            self.weight.data, state.packing_format_for_cpu = self.weight.data.T.contiguous(), True
            state.absmax = state.absmax.view(self.out_features, -1).T.contiguous().bfloat16()
        reordered = state.packing_format_for_cpu
        codes, scales = (self.weight.data.T, state.absmax.T) if reordered else (self.weight.data, state.absmax)
        blocks = scales.float().reshape(self.out_features, -1)
        weight = (codes.float() - 8) * blocks.repeat_interleave(self.in_features // blocks.shape[1], 1)
        return nn.functional.linear(x.detach() if reordered else x, weight)


def kernel_order(nested: bool | None) -> nn.Module:
    """A layer of 4 bits: the class above, or that of bitsandbytes, whose scales may be quantised themselves."""
    if nested is None:
        return KernelOrder(64, 128)
    if find_spec("bitsandbytes") is None:
        pytest.skip("pip install bitsandbytes")
    from bitsandbytes.nn import Linear4bit

    layer = Linear4bit(128, 64, bias=False, quant_type="nf4", compress_statistics=nested)
    layer.load_state_dict(nn.Linear(128, 64, bias=False).state_dict())
    return layer.to("cpu")


@pytest.mark.parametrize("nested", [None, False, True], ids=["by hand", "bitsandbytes", "bitsandbytes, nested"])
def test_weights_that_inference_has_reordered(nested: bool | None) -> None:
    """Gradients are of the weights that inference computes with, and reading them leaves these as they are."""
    torch.manual_seed(0)
    layer: Any = kernel_order(nested)
    model, x = nn.Sequential(layer).eval(), torch.randn(3, 128)

    def weight() -> torch.Tensor:
        with frozen(model):
            return model(torch.eye(128).requires_grad_()).detach().T

    stored = weight()
    before = model(x)  # reorders, and rounds scales to bf16
    for _ in range(2):
        assert float((weight() - stored).abs().max()) <= 2**-8 * float(stored.abs().max())
        with frozen(model):
            row = x[:1].clone().requires_grad_()
            model(row)[0, 5].backward()
            torch.testing.assert_close(row.grad, weight()[5:6])
        assert torch.equal(model(x), before)
    torch.testing.assert_close(before, x @ weight().T, atol=2e-2, rtol=2e-2)  # of a kernel in bf16
