"""Greedy text of a generating model, many prompts at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from .samples import Sample


def greedy(
    model: Any, prompts: Sequence[Sequence[int]], *, tokens: int, pad: int, batch_size: int = 32, apart: bool = False
) -> list[list[int]]:
    """Continue each prompt by the likeliest next token, up to and including the token that ends a text.

    Whatever the model's own generation config asks for beside that (sampling, beams, penalties) is left out: they would hide
    what an edit does to the model.

    Args:
        model: A causal language model of transformers.
        prompts: Token ids of each, at least one; they are padded on the left.
        tokens: Most new tokens.
        pad: Id that is padded with.
        batch_size: Most prompts in a batch.
        apart: Run prompts of different lengths apart, for a model whose output depends on the padding.

    Returns:
        Ids of the new tokens of each prompt.
    """
    if tokens < 1 or not prompts:
        return [[] for _ in prompts]
    config = GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        pad_token_id=pad,
    )
    ends = model.generation_config.eos_token_id
    ends = {*ends} if isinstance(ends, list) else {ends}
    device = next(model.parameters()).device
    written: list[list[int]] = [[] for _ in prompts]
    lengths = [len(prompt) for prompt in prompts]
    alike = [[i for i in range(len(prompts)) if lengths[i] == n] for n in sorted({*lengths})] if apart else []
    groups = alike or [sorted(range(len(prompts)), key=lambda i: lengths[i])]
    for chosen in (group[i : i + batch_size] for group in groups for i in range(0, len(group), batch_size)):
        longest = max(lengths[i] for i in chosen)
        rows = [[pad] * (longest - lengths[i]) + list(prompts[i]) for i in chosen]
        attended = [[0] * (longest - lengths[i]) + [1] * lengths[i] for i in chosen]
        found = model.generate(
            input_ids=torch.tensor(rows, device=device),
            attention_mask=torch.tensor(attended, device=device),
            generation_config=config,
        )
        for i, row in zip(chosen, found[:, longest:].tolist(), strict=True):
            end = next((place for place, token in enumerate(row) if token in ends), len(row))
            written[i] = row[: end + 1]
    return written


def continuation(prompt: Sequence[int], written: Sequence[int]) -> Sample:
    """Return the tokens that were written after a prompt as labels, each read from the token before it."""
    ids = (*prompt, *written[:-1])
    positions = tuple(range(len(prompt) - 1, len(prompt) - 1 + len(written)))
    return Sample({"input_ids": ids}, positions, tuple(written), len(ids))
