"""Logits of a language model at a few positions, without the vocabulary head's work at all others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .samples import Batch


def position_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return logits at the positions of a batch: [B, S, V] in fp32. The head sees these positions only."""
    backbone = getattr(model, getattr(model, "base_model_prefix", "") or "-", None)
    if not isinstance(backbone, nn.Module) or backbone is model:
        logits = at_positions(vocabulary_logits(model(**batch.inputs)), batch.positions)
    else:
        with _only_positions_leave(backbone, batch.positions) as calls:
            logits = vocabulary_logits(model(**batch.inputs))
        # OPT reads the decoder within its backbone, past the backbone itself: its logits are those of every position
        logits = logits if calls else at_positions(logits, batch.positions)
    return logits if logits.dtype == torch.float64 else logits.float()


def vocabulary_logits(output: Any) -> Tensor:
    """Return the vocabulary logits of a model's output; models "for pre-training" call them otherwise."""
    logits: Tensor = output.logits if "logits" in output else output.prediction_logits
    return logits


def at_positions(sequence: Tensor, positions: Tensor) -> Tensor:
    """Select rows of [B, T, H] at [B, S] → [B, S, H]."""
    return sequence.gather(1, positions.to(sequence.device).unsqueeze(-1).expand(-1, -1, sequence.shape[-1]))


@contextmanager
def _only_positions_leave(backbone: nn.Module, positions: Tensor) -> Iterator[list[nn.Module]]:
    """Inside, the backbone's last hidden state holds these positions only, so whatever head follows does no other work.

    Yields the list of calls that this happened in.
    """
    calls: list[nn.Module] = []

    def keep(module: nn.Module, _args: Any, output: Any) -> Any:
        calls.append(module)
        hidden = at_positions(output[0], positions)
        if isinstance(output, Mapping):  # transformers' ModelOutput; written to a copy, callers may keep the original
            return type(output)(**{**output, "last_hidden_state": hidden})
        return (hidden, *output[1:])

    handle = backbone.register_forward_hook(keep)
    try:
        yield calls
    finally:
        handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, every module is in eval mode (no dropout); afterwards each is as it was."""
    modes: dict[Any, bool] = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
