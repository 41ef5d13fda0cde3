"""Facts about how a language model reads, found by running it on a few tokens, not by its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from gradiend_hub.errors import BaseModelError
from gradiend_hub.scope import packed_parameters

from .logits import evaluating, vocabulary_logits

SHORT, LONG = 5, 9
"""Tokens of the two rows that a model is tried on."""

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference of two logits, relative to the largest one, that is put down to rounding: other shapes and other
routes through a mixture of experts take other kernels."""

QUANTIZED = 1e-1
"""The same of a model with quantised layers: those of 8 bits may round a row by what stands in the others, or behind."""

POSITION_LIMITS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_seq_length",
    "max_sequence_length",
    "n_ctx",
    "seq_length",
    "max_target_positions",
)
"""Names by which configurations call the longest input."""


@dataclass(frozen=True)
class Behaviour:
    """Facts about how a language model reads its input.

    Attributes:
        looks_ahead: Its output at a token depends on later tokens, by more than rounding.
        reads_left_only: It does not at all, to the bit.
        padding_matters: Its output for a row depends on the padding that a longer row beside it brings.
    """

    looks_ahead: bool
    reads_left_only: bool
    padding_matters: bool


_known: WeakKeyDictionary[nn.Module, Behaviour] = WeakKeyDictionary()


def behaviour_of(model: nn.Module) -> Behaviour | None:
    """Try a model on a few tokens; each model once. `None` if it has no values in memory, so that it cannot run.

    Raises:
        BaseModelError: Its output is no vocabulary at each position.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return None
    if model not in _known:
        with evaluating(model), torch.no_grad():
            _known[model] = _tried(model)
    return _known[model]


def _tried(model: nn.Module) -> Behaviour:
    device = next(model.parameters()).device
    size = _vocabulary(model)
    # spread over the vocabulary, away from its first entries, which are mostly special
    ids = torch.tensor([[(size // 3 + 7 * i) % size for i in range(LONG)]], device=device)
    long = _logits(model, ids, torch.ones_like(ids), size)
    changed = ids.clone()
    changed[0, SHORT:] = (ids[0, SHORT:] + size // 2) % size
    ahead = _logits(model, changed, torch.ones_like(ids), size)
    alone = _logits(model, ids[:, :SHORT], torch.ones_like(ids[:, :SHORT]), size)
    pair = torch.cat([ids, torch.cat([ids[:, :SHORT], ids.new_zeros(1, LONG - SHORT)], 1)])
    mask = torch.ones_like(pair)
    mask[1, SHORT:] = 0
    padded = _logits(model, pair, mask, size)
    packed = any(packed_parameters(module) for module in model.modules())
    tolerance = QUANTIZED if packed else TOLERANCES.get(long.dtype, 1e-1)
    return Behaviour(
        looks_ahead=not _same(long[0, :SHORT], ahead[0, :SHORT], tolerance),
        reads_left_only=torch.equal(long[0, :SHORT], ahead[0, :SHORT]),
        padding_matters=not _same(alone[0], padded[1, :SHORT], tolerance),
    )


def _same(first: Tensor, second: Tensor, tolerance: float) -> bool:
    allowed = tolerance * float(first.abs().max())
    return float((first.float() - second.float()).abs().max()) <= allowed


def _vocabulary(model: Any) -> int:
    embeddings = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    size = getattr(embeddings, "num_embeddings", None) or getattr(getattr(model, "config", None), "vocab_size", None)
    if not isinstance(size, int) or size < 2:
        raise BaseModelError(
            f"{type(model).__name__} has no vocabulary: expected a model that reads token ids, found no input embeddings. "
            "Load the base with AutoModelForMaskedLM or AutoModelForCausalLM."
        )
    return size


def _logits(model: nn.Module, ids: Tensor, mask: Tensor, size: int) -> Tensor:
    name = type(model).__name__
    try:
        logits = vocabulary_logits(model(input_ids=ids, attention_mask=mask))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BaseModelError(
            f"{name} cannot be read as a language model: given token ids, it fails with {error!r}. Load the base with "
            "AutoModelForMaskedLM or AutoModelForCausalLM."
        ) from error
    if logits.ndim != 3 or logits.shape[:2] != ids.shape or logits.shape[2] < size // 2:
        raise BaseModelError(
            f"{name} predicts no words: expected logits of shape [rows, tokens, vocabulary] with a vocabulary of {size}, "
            f"found {list(logits.shape)}. Load the base with AutoModelForMaskedLM or AutoModelForCausalLM."
        )
    return logits


def longest_input(model: nn.Module) -> int | None:
    """Return the longest input that a model has positions for; `None` if nothing limits it.

    RoBERTa and its kin count from padding_idx + 1, so that many of the config's positions are never used.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.num_embeddings - module.padding_idx - 1
    config = getattr(model, "config", None)
    parts = [config, config.get_text_config()] if isinstance(config, PreTrainedConfig) else [config]
    limits = [getattr(part, name, None) for part in parts for name in POSITION_LIMITS]
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)


def most_tokens(model: nn.Module, tokenizer: Any, wanted: int | None = None) -> int:
    """Return the longest input that model and tokenizer can both read, or what is wanted if that is less."""
    return min(limit for limit in (int(tokenizer.model_max_length), longest_input(model), wanted) if limit)
