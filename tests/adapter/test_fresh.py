"""Fresh adapters on every architecture: they start as the base model, learn as the weights would, and come back."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from gradiend_hub.adapter import gradiend_layers
from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from tests.adapter.support import bits, edited, same_bits
from tests.models import ARCHITECTURES, build, inputs, output

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def loss_of(model: nn.Module, architecture: str) -> torch.Tensor:
    """A number that depends on every output."""
    result = model(**inputs(architecture, torch.float32))
    if not isinstance(result, torch.Tensor):
        result = result["logits"] if "logits" in result else result["last_hidden_state"]
    weights = torch.linspace(-1, 1, result.numel()).view(result.shape)
    loss: torch.Tensor = (weights * result).sum()
    return loss


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fresh_adapter(architecture: str, tmp_path: Path) -> None:
    """Every parameter in scope: gradients of w_d are c_w times those that plain autograd gives for the weights."""
    base = build(architecture, torch.float32)
    before, plain = bits(base), output(base, architecture)
    model = get_peft_model(copy.deepcopy(base), GradiendConfig(scope="*", strength=0.5))
    torch.testing.assert_close(output(model, architecture), plain, rtol=0, atol=1e-7)
    layers = list(gradiend_layers(model))
    weights = {id(parameter) for name, parameter in model.named_parameters() if "rewrite_" not in name}
    assert {id(layer.base_parameter) for layer in layers} == weights
    generator = torch.Generator().manual_seed(0)
    values = {layer.site.name: 0.05 * torch.randn(layer.shape.numel(), generator=generator) for layer in layers}
    with torch.no_grad():
        for layer in layers:
            layer.gradiend_weight["default"].copy_(values[layer.site.name])

    shapes = {layer.site.name: tuple(layer.shape) for layer in layers}
    direction = Direction({name: ParameterDirection(shapes[name], vector) for name, vector in values.items()})
    reference = edited(base, [(direction, 0.5, 0.5)]).requires_grad_(True)
    loss_of(reference, architecture).backward()
    loss_of(model, architecture).backward()
    for layer in layers:
        found, expected = layer.gradiend_weight["default"].grad, reference.get_parameter(layer.site.name).grad
        assert (found is None) == (expected is None), layer.site.name
        if found is not None:
            torch.testing.assert_close(found.view(layer.shape), 0.5 * expected, rtol=1e-3, atol=1e-5)
    assert same_bits(bits(model.get_base_model()), before)

    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    again.merge_adapter()
    assert same_bits(bits(again.get_base_model()), bits(reference))
    again.unmerge_adapter()
    assert same_bits(bits(again.unload()), before)
