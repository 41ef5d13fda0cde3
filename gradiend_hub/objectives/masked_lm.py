"""Masked language modelling: the slot is as many mask tokens as its filler has tokens, read with both contexts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from gradiend_hub.errors import BaseModelError, DataError

from .base import Example, Objective, Sample

MASKED_SHARE = 0.15
"""Share of a neutral text's tokens that are masked together when the language-modelling score is read."""


class MaskedLMObjective(Objective):
    """The slot holds one mask token for each token of its filler.

    Factual and alternative fillers of equally many tokens differ in their labels only and share one forward pass.
    """

    name = "masked_lm"

    def __init__(self, tokenizer: Any, **kwargs: Any) -> None:
        super().__init__(tokenizer, **kwargs)
        if tokenizer.mask_token_id is None:
            raise BaseModelError(
                f"The tokenizer of {self.name_or_path} has no mask token, which the objective 'masked_lm' needs. "
                "Use objective='causal_lm' for a causal language model, or a masked language model as the base."
            )

    def slots(self, masked: str, fillers: Sequence[Sequence[int]]) -> list[Sample]:
        before, after = self.split_at_slot(masked)
        # the space before the slot belongs to the filler's token, so the mask stands for both
        mask = self.tokenizer.mask_token_id
        ids = self.tokenizer(before.rstrip() + self.tokenizer.mask_token + after, verbose=False).input_ids
        position = ids.index(mask)
        longest = len(ids) - 1 + max(map(len, fillers))
        if longest > self.max_length:
            raise DataError(
                f"The row has {longest} tokens and its slot is token {position}, but {self.name_or_path} reads "
                f"{self.max_length}: truncation could cut the slot off. Shorten the text around the slot: {masked[:80]!r}."
            )
        inputs = {n: (*ids[:position], *[mask] * n, *ids[position + 1 :]) for n in set(map(len, fillers))}
        return [
            Sample(inputs[len(word)], tuple(range(position, position + len(word))), tuple(word)) for word in fillers
        ]

    def neutral_example(self, text: str, rng: random.Random) -> Example | None:
        ids, content = self._content(text)
        if not content:
            return None
        slots = self._masked(ids, [rng.choice(content)])
        return Example(slots, slots)

    def scored_text(self, text: str, rng: random.Random, draws: int = 1) -> list[Sample]:
        ids, content = self._content(text)
        if not content:
            return []
        count = max(1, round(MASKED_SHARE * len(content)))
        chosen = rng.sample(content, min(count * draws, len(content)))
        return [self._masked(ids, sorted(chosen[i : i + count])) for i in range(0, len(chosen), count)]

    def _content(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids cut to the longest input, and the positions that are not special tokens."""
        encoded = self.tokenizer(
            text, return_special_tokens_mask=True, truncation=True, max_length=self.max_length, verbose=False
        )
        return encoded.input_ids, [i for i, special in enumerate(encoded.special_tokens_mask) if not special]

    def _masked(self, ids: list[int], positions: list[int]) -> Sample:
        masked = list(ids)
        for position in positions:
            masked[position] = self.tokenizer.mask_token_id
        return Sample(tuple(masked), tuple(positions), tuple(ids[p] for p in positions))
