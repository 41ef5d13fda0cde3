"""The base model while gradients are read: no dropout, no cache, no parameter that requires a gradient."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

logger = logging.getLogger(__name__)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside, no dropout is active, nothing is cached for generation, and no parameter requires or has a gradient.

    4-bit layers of bitsandbytes compute with a graph (`in_storage_order`). Layers with gradient checkpointing enabled are
    recomputed as in training. Afterwards the model is as it was.
    """
    modes = {module: module.training for module in model.modules()}
    required = {p: p.requires_grad for p in model.parameters()}
    gradients = {p: p.grad for p in required}
    config: Any = getattr(model, "config", None)
    use_cache = getattr(config, "use_cache", None)
    if use_cache:
        config.use_cache = False
    model.eval()
    checkpointing = checkpoint_without_dropout(model)
    for parameter in required:
        parameter.requires_grad_(False)
        parameter.grad = None  # what a user had accumulated there is neither read nor lost
    try:
        with in_storage_order(model):
            yield
    finally:
        layer: Any
        for layer, function in checkpointing.items():
            layer._gradient_checkpointing_func = function
        for parameter, was in required.items():
            parameter.requires_grad_(was)
            parameter.grad = gradients[parameter]
        for module, mode in modes.items():
            module.training = mode
        if use_cache:
            config.use_cache = use_cache


@contextmanager
def in_storage_order(model: nn.Module) -> Iterator[None]:
    """Inside, the 4-bit layers of bitsandbytes (0.50) compute with their weights as they are stored.

    In inference on CPUs of some kind, they reorder them at the first forward pass for a kernel that knows no gradients,
    and round the scales of their blocks to bf16. Their own way back, which a checkpoint takes, leaves scales that are not
    quantised themselves in the kernel's order, so these are put right here. Afterwards all is as it was, to the bit.
    """
    layers: list[Any] = [module for module in model.modules() if getattr(module, "support_avx512bf16_for_cpu", False)]
    reordered: list[tuple[Any, Tensor, dict[str, Any]]] = []
    try:
        for layer in layers:
            layer.support_avx512bf16_for_cpu = False
            state: Any = getattr(layer.weight, "quant_state", None)
            if getattr(state, "packing_format_for_cpu", False):
                reordered.append((layer.weight, layer.weight.data, vars(state).copy()))
                scales = state.absmax.T.flatten().float()  # [columns / block, rows] → by rows
                layer.state_dict()  # undoes the reordering
                state.absmax, state.nested = scales, False
        yield
    finally:
        for weight, packed, fields in reordered:
            weight.data = packed
            vars(weight.quant_state).clear()
            vars(weight.quant_state).update(fields)
        for layer in layers:
            layer.support_avx512bf16_for_cpu = True


def checkpoint_without_dropout(model: nn.Module) -> dict[nn.Module, Any]:
    """Make layers with gradient checkpointing recompute themselves, with dropout off in both passes.

    transformers recomputes a layer only in training mode. So the layer itself says that it is training, its children do
    not, and while its forward runs it does not either.

    Returns:
        The layers and their own checkpointing functions, to be put back.
    """
    layers = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    functions: dict[nn.Module, Any] = {}
    for layer in layers:
        if isinstance(layer, GradientCheckpointingLayer):
            functions[layer] = layer._gradient_checkpointing_func
            layer._gradient_checkpointing_func = partial(_checkpointed, layer, functions[layer])
            layer.training = True
    if layers and not functions:
        logger.warning(
            "%s checkpoints gradients in a way that needs dropout to be active, so its layers are not recomputed and "
            "need their full memory. Lower the batch size instead.",
            type(model).__name__,
        )
    return functions


def _checkpointed(layer: nn.Module, checkpoint: Callable[..., Any], forward: Callable[..., Any], *args: Any) -> Any:
    def without_dropout(*inputs: Any) -> Any:
        layer.training = False
        try:
            return forward(*inputs)
        finally:
            layer.training = True

    return checkpoint(without_dropout, *args)
