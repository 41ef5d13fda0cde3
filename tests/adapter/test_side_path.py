"""Strengths by row beside the weights: every row gets what merged weights give it, to rounding, in one pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gradiend_hub.adapter.side_path import SidePath
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.model import GradiendModel
from tests.adapter.support import bits, config_for, same_bits
from tests.models import build

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
STRENGTHS = [0.5, 0.0, -2.0, 1.0]
IDS = torch.arange(5, 29).view(4, 6)


def learned(base: nn.Module, seed: int = 1, *, bias: bool = False) -> Direction:
    """Factors of every linear weight, and dense, or sparse, vectors of their biases and of the norms."""
    generator = torch.Generator().manual_seed(seed)
    tied = id(base.get_input_embeddings().weight)
    parts = {}
    for place, (name, module) in enumerate(base.named_modules()):
        linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        for leaf, parameter in module.named_parameters(recurse=False):
            if (
                id(parameter) == tied
                or name.endswith("predictions.decoder")
                or not (linear or type(module).__name__.endswith("Norm"))
            ):
                continue
            shape = tuple(parameter.shape)
            if len(shape) == 1:
                sparse = place % 2 == 0
                size = 3 if sparse else shape[0]
                indices = torch.tensor([0, 2, 5], dtype=torch.int32) if sparse else None
                values = 0.1 * torch.randn(2, size, generator=generator)
                parts[f"{name}.{leaf}"] = ParameterDirection(
                    shape, values[0], values[1] if bias else None, None, indices
                )
                continue
            vectors = [
                Factors(
                    0.2 * torch.randn(shape[0], 2, generator=generator),
                    0.2 * torch.randn(2, shape[1], generator=generator),
                )
                for _ in range(2)
            ]
            parts[f"{name}.{leaf}"] = ParameterDirection(shape, vectors[0], vectors[1] if bias else None)
    return Direction(parts)


def runs(model: nn.Module) -> list[int]:
    """Batch sizes of the base model's runs from now on."""
    found: list[int] = []
    base = model.get_base_model()
    base.register_forward_pre_hook(lambda _, args, kwargs: found.append(len(kwargs["input_ids"])), with_kwargs=True)
    return found


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_every_row_gets_its_own_strength(architecture: str, bias: bool) -> None:
    base = build(architecture)
    direction = learned(base, bias=bias)
    model = GradiendModel.from_direction(base, direction, config_for(direction, strength_unit=0.8), strength=0.7)
    assert SidePath.fits(model.base_model, ["default"])
    before = bits(model)
    with torch.no_grad():
        batches = runs(model)
        found = model(input_ids=IDS, strengths=STRENGTHS).logits
        assert batches == [4]  # one pass for all
        plain = model(input_ids=IDS).logits
        for row, strength in enumerate(STRENGTHS):
            with model.strength_at(strength):
                alone = model(input_ids=IDS).logits[row]
            torch.testing.assert_close(found[row], alone, atol=2e-5, rtol=1e-4)
            assert strength == 0.7 or float((alone - plain[row]).abs().max()) > 1e-3
        with model.strength_at(0.0):
            assert torch.equal(found[1], model(input_ids=IDS).logits[1])  # the base model, to the bit
    assert same_bits(bits(model), before) and model.strengths == {"default": 0.7}


def test_several_directions_and_unmerged() -> None:
    base = build("bert")
    one, two = learned(base, 1), learned(base, 2, bias=True)
    model = GradiendModel.from_direction(base, one, config_for(one), strength=0.5, adapter_name="one")
    model.add_direction("two", two, config_for(two))
    model.set_strength({"two": -1.0})
    with torch.no_grad():
        for merged in (True, False):
            if not merged:
                model.unmerge_adapter()
            found = model(input_ids=IDS, strengths={"two": STRENGTHS}).logits
            for row, strength in enumerate(STRENGTHS):
                with model.strength_at({"one": 0.5, "two": strength}):
                    torch.testing.assert_close(found[row], model(input_ids=IDS).logits[row], atol=2e-5, rtol=1e-4)


def test_half_precision_is_nearer_to_the_exact_edit() -> None:
    """Small edits are not lost in the spacing of bf16 weights."""
    exact = build("llama")
    direction = learned(exact) * 0.01
    model = GradiendModel.from_direction(exact, direction, config_for(direction), strength=1.0)
    with torch.no_grad():
        wanted = model(input_ids=IDS).logits - model.unload()(input_ids=IDS).logits
    half = build("llama").to(torch.bfloat16)
    model = GradiendModel.from_direction(half, direction, config_for(direction), strength=1.0)
    with torch.no_grad():
        merged = model(input_ids=IDS).logits.float()
        side = model(input_ids=IDS, strengths=[1.0] * 4).logits.float()
        plain = model.unload()(input_ids=IDS).logits.float()
    assert side.dtype == torch.float32 and float((side - plain - wanted).norm()) <= 1.2 * float(
        (merged - plain - wanted).norm()
    )


def test_generation_with_beams_in_one_run() -> None:
    base = build("llama")
    direction = learned(base)
    model = GradiendModel.from_direction(base, direction, config_for(direction), strength=0.0)
    options: dict[str, Any] = {
        "max_new_tokens": 4,
        "do_sample": False,
        "num_beams": 2,
        "pad_token_id": 0,
        "min_new_tokens": 4,
    }
    batches = runs(model)
    found = model.generate(input_ids=IDS, strengths=STRENGTHS, **options)
    assert set(batches) <= {4, 8} and len(batches) <= 5
    for row, strength in enumerate(STRENGTHS):
        with model.strength_at(strength):
            assert torch.equal(model.generate(input_ids=IDS[row : row + 1], **options)[0], found[row])


def test_layers_without_a_side_path_run_by_groups() -> None:
    base = build("bert")
    direction = learned(base)
    size = base.get_input_embeddings().weight.shape
    embeddings = ParameterDirection(tuple(size), 0.1 * torch.randn(size.numel()))
    direction = Direction({**direction.parameters, "bert.embeddings.word_embeddings.weight": embeddings})
    model = GradiendModel.from_direction(base, direction, config_for(direction), strength=0.0)
    assert not SidePath.fits(model.base_model, ["default"])
    batches = runs(model)
    with torch.no_grad():
        found = model(input_ids=IDS, strengths=[1.0, 1.0, 0.0, 1.0]).logits
        assert sorted(batches) == [1, 3]
        with model.strength_at(1.0):
            torch.testing.assert_close(found[0], model(input_ids=IDS).logits[0], atol=1e-6, rtol=1e-5)


def test_rows_that_a_layer_joins_run_by_groups() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.inner = nn.Linear(6, 6, bias=False)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.inner(input_ids.flatten(0, 1)).view(input_ids.shape)

    base = Joined()
    direction = Direction({"inner.weight": ParameterDirection((6, 6), Factors(torch.randn(6, 1), torch.randn(1, 6)))})
    model = GradiendModel.from_direction(base, direction, config_for(direction), strength=0.0)
    x = torch.randn(4, 5, 6)
    found = model(input_ids=x, strengths=STRENGTHS)
    for row, strength in enumerate(STRENGTHS):
        with model.strength_at(strength):
            torch.testing.assert_close(found[row], model(input_ids=x)[row], atol=1e-6, rtol=1e-5)
