"""Gradient checkpointing and device hooks inside the reader: the same numbers, less memory, no dropout."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from torch import nn

from gradiend_hub.errors import ConfigError
from gradiend_hub.gradients import GradientReader, Scope, read_pair, select_parameters
from gradiend_hub.gradients.memory import activation_bytes
from gradiend_hub.objectives import PairBatch
from tests.gradients.test_pairs import examples
from tests.models import build
from tests.objectives.support import objective

CHECKPOINTED = ("bert", "modernbert", "gpt2", "llama", "gemma2", "opt", "gpt_neox")


def batch(architecture: str) -> PairBatch:
    return objective(architecture).collate_pairs(examples())


def whole(model: nn.Module) -> Scope:
    return Scope.dense(select_parameters(model))


def with_dropout(architecture: str) -> nn.Module:
    """A model whose dropout would show: all rates of its configuration and modules are one half."""
    model = build(architecture)
    for module in model.modules():
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.5)
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    return model


def enable(model: nn.Module, options: dict[str, bool] | None = None) -> None:
    """Under its name of today, or that of older releases."""
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)(options)


def forwards(model: nn.Module) -> list[str]:
    """Counts calls of the first block's feed-forward matrices."""
    calls: list[str] = []
    endings = (".0.mlp", ".0.fc1", ".0.intermediate")
    name = next(n for n, _ in model.named_modules() if n.endswith(endings))
    model.get_submodule(name).register_forward_pre_hook(lambda *_: calls.append(name))
    return calls


@pytest.mark.parametrize("architecture", CHECKPOINTED)
@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
def test_layers_are_recomputed_and_nothing_changes(architecture: str, reentrant: bool) -> None:
    how, rows = objective(architecture), batch(architecture)
    plain = build(architecture)
    with GradientReader(plain, whole(plain)) as reader:
        expected = read_pair(reader, how, rows)
        full = activation_bytes(reader, how, rows)
    model = with_dropout(architecture).train()
    enable(model, {"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    functions = {
        m: m._gradient_checkpointing_func for m in model.modules() if getattr(m, "gradient_checkpointing", False)
    }
    calls = forwards(model)
    with GradientReader(model, whole(model)) as reader:
        found = read_pair(reader, how, rows)
        assert len(calls) == 3  # once forward, once again for each of the two gradients
        assert activation_bytes(reader, how, rows) < 0.6 * full
    for a, b in zip(found, expected, strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-5
    assert all(module.training for module in model.modules())
    assert all(m._gradient_checkpointing_func is f for m, f in functions.items())


def test_layers_that_cannot_be_recomputed_are_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    model = build("bert")
    model.bert.gradient_checkpointing = (
        True  # as models do whose loop over layers asks for it, not the layers themselves
    )
    with caplog.at_level(logging.WARNING), GradientReader(model, whole(model)):
        assert not any(module.training for module in model.modules())
    assert "BertForMaskedLM checkpoints gradients in a way that needs dropout" in caplog.text


def test_nothing_is_cached_for_generation() -> None:
    model = build("llama")
    seen: list[Any] = []
    model.model.layers[0].register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs.get("past_key_values")), with_kwargs=True
    )
    with GradientReader(model, whole(model)) as reader:
        read_pair(reader, objective("llama"), batch("llama"))
    assert seen == [None]
    assert model.config.use_cache is True


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_device_map(checkpointing: bool) -> None:
    """Hooks that move inputs from layer to layer, as `device_map` sets them, leave every number as it is."""
    plain, model = build("llama"), build("llama")
    with GradientReader(plain, whole(plain)) as reader:
        expected = read_pair(reader, objective("llama"), batch("llama"))
    devices = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "cpu"}
    devices |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    model = dispatch_model(model, devices, main_device="cpu", force_hooks=True)
    assert hasattr(model.model.layers[1], "_hf_hook")
    if checkpointing:
        enable(model)
    with GradientReader(model, whole(model)) as reader:
        found = read_pair(reader, objective("llama"), batch("llama"))
    for a, b in zip(found, expected, strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-6


def test_gradients_of_offloaded_parameters_are_refused() -> None:
    model = build("llama")
    scope = whole(model)
    cpu_offload(model, execution_device=torch.device("cpu"))
    offloaded = Scope.dense({n: model.get_parameter(n) for n in scope.parameters})
    with (
        pytest.raises(ConfigError, match=r"18 parameters in scope are offloaded.*model\.layers\.0"),
        GradientReader(model, offloaded),
    ):
        pass
