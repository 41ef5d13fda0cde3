"""What a model writes at some strengths: fill-in words (masked models) or greedy continuations (causal models)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from gradiend_hub.artifact.files import SLOT
from gradiend_hub.data import Row
from gradiend_hub.errors import DataError
from gradiend_hub.gradients.directional import evaluating
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import Objective

from .report import Completion

STRENGTHS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
TEXTS_PER_CLASS = 3
WORDS = 5
"""Fill-in words of a masked model."""
NEW_TOKENS = 16
"""Length of a causal model's continuation."""

_FEWEST_WORDS = 4
_MOST_CHARACTERS = 160


def complete(
    model: GradiendModel, objective: Objective, rows: Sequence[Row], strengths: Sequence[float] = STRENGTHS
) -> list[Completion]:
    """What the model writes at the slots of a few short rows of each class; the strength in force is kept.

    Rows are taken in their order; each has some words on the left of its slot. There may be none.
    """
    texts = [row.masked for row in _chosen(rows)]
    if not texts:
        return []
    base: Any = model.get_base_model()
    masked = objective.name == "masked_lm"
    if not masked:
        texts = [text.partition(SLOT)[0].rstrip() for text in texts]
    found: dict[str, list[Any]] = {}
    for strength in strengths:
        with model.strength_at(strength), evaluating(base), torch.inference_mode():
            written = _fill_ins(base, objective, texts) if masked else _continuations(base, objective, texts)
        found[str(float(strength))] = written
    return [Completion(text, {s: written[i] for s, written in found.items()}) for i, text in enumerate(texts)]


def _chosen(rows: Sequence[Row]) -> list[Row]:
    """Short rows with different beginnings, alternately of each class."""
    groups: dict[str, list[Row]] = {}
    seen: set[str] = set()
    for row in rows:
        before = row.masked.partition(SLOT)[0]
        usable = len(before.split()) >= _FEWEST_WORDS and len(row.masked) <= _MOST_CHARACTERS and before not in seen
        group = groups.setdefault(row.factual_class, [])
        if usable and len(group) < TEXTS_PER_CLASS:
            seen.add(before)
            group.append(row)
    turns = range(max(map(len, groups.values()), default=0))
    return [group[turn] for turn in turns for group in groups.values() if turn < len(group)]


def _fill_ins(base: nn.Module, objective: Objective, texts: Sequence[str]) -> list[list[list[str | float]]]:
    """The likeliest tokens at each slot, with their probabilities."""
    tokenizer = objective.tokenizer
    slots = objective.collate([_slot(objective, text) for text in texts]).to(next(base.parameters()).device)
    top = objective.log_probs(base, slots)[:, 0].exp().topk(WORDS, dim=-1)
    return [
        [[tokenizer.decode([token]).strip(), round(p, 4)] for token, p in zip(tokens, chances, strict=True)]
        for tokens, chances in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def _slot(objective: Objective, text: str) -> Any:
    """The slot of a masked text; what fills it does not matter, so any token of the text will do as a filler."""
    words = [word for word in text.replace(SLOT, " ").split() if word.isalpha()]
    for word in words:
        try:
            return objective.tokenize(text, word, word).factual
        except DataError:
            continue
    raise DataError(f"No word of {text!r} is a token of its own, so the text cannot be tokenised with a slot.")


def _continuations(base: Any, objective: Objective, texts: Sequence[str]) -> list[str]:
    """Greedy continuations of prompts, generated together with padding on the left."""
    prompts = [objective.tokenizer(text).input_ids for text in texts]
    longest = max(map(len, prompts))
    device = next(base.parameters()).device
    ids = torch.tensor([[objective.pad_token_id] * (longest - len(p)) + p for p in prompts], device=device)
    attended = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    written = base.generate(
        input_ids=ids, attention_mask=attended, max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1,
        pad_token_id=objective.pad_token_id,
    )  # fmt: skip
    return [objective.tokenizer.decode(row[longest:], skip_special_tokens=True).strip() for row in written.tolist()]
