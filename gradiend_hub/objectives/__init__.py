"""How an example becomes a slot with two losses."""

from __future__ import annotations

from typing import Any

from torch import nn

from gradiend_hub.errors import BaseModelError, ConfigError

from .base import Batch, Example, Objective, PairBatch, Sample, slot_logits, slot_nll
from .causal_lm import CausalLMObjective
from .examples import neutral_examples, other_examples, tokenize_rows
from .masked_lm import MaskedLMObjective

__all__ = [
    "OBJECTIVES",
    "Batch",
    "CausalLMObjective",
    "Example",
    "MaskedLMObjective",
    "Objective",
    "PairBatch",
    "Sample",
    "make_objective",
    "neutral_examples",
    "objective_name",
    "other_examples",
    "slot_logits",
    "slot_nll",
    "tokenize_rows",
]

OBJECTIVES: dict[str, type[Objective]] = {cls.name: cls for cls in (MaskedLMObjective, CausalLMObjective)}

_HEADS = {
    "ForMaskedLM": "masked_lm",
    "ForPreTraining": "masked_lm",
    "ForCausalLM": "causal_lm",
    "LMHeadModel": "causal_lm",
}


def objective_name(model: nn.Module, configured: str | None = None) -> str:
    """The configured objective, or the one that the model's head stands for."""
    if configured is not None:
        if configured not in OBJECTIVES:
            raise ConfigError(f"Unknown objective {configured!r}; expected one of {sorted(OBJECTIVES)}.")
        return configured
    name = type(model).__name__
    for ending, objective in _HEADS.items():
        if name.endswith(ending):
            return objective
    raise BaseModelError(
        f"{name} has no language-modelling head that an objective is known for (names ending in {sorted(_HEADS)}). "
        "Load the base with AutoModelForMaskedLM or AutoModelForCausalLM, or name the objective in GradiendConfig."
    )


def make_objective(
    model: nn.Module, tokenizer: Any, *, name: str | None = None, max_length: int | None = None
) -> Objective:
    """The objective of `model` with its tokenizer; inputs never exceed what tokenizer and model can read."""
    config = getattr(model, "config", None)
    limits = [int(tokenizer.model_max_length), _most_positions(model), max_length]
    longest = min(limit for limit in limits if limit)
    label = getattr(config, "name_or_path", "") or type(model).__name__
    return OBJECTIVES[objective_name(model, name)](tokenizer, max_length=longest, name_or_path=label)


def _most_positions(model: nn.Module) -> int | None:
    """Longest input that the model has positions for; `None` if its config names none.

    RoBERTa and its kin count from padding_idx + 1, so that many of the config's positions are never used.
    """
    limit: int | None = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.num_embeddings - module.padding_idx - 1
    return limit
