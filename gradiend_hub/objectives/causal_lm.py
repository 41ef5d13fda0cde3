"""Causal language modelling: the slot is what comes next after the text on its left."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from gradiend_hub.errors import DataError

from .base import Example, Objective, Sample


class CausalLMObjective(Objective):
    """The slot is predicted from the text before it; what follows the slot is not read.

    The filler's first token is the one that continues the prefix, so " he", "▁he" and "he" are each right for their
    tokenizer; each further token is predicted from the ones before it. A prefix that is too long loses its beginning,
    never the slot.
    """

    name = "causal_lm"

    def __init__(self, tokenizer: Any, **kwargs: Any) -> None:
        super().__init__(tokenizer, **kwargs)
        bare = tokenizer("a", add_special_tokens=False).input_ids
        full = tokenizer("a").input_ids
        self._start = tuple(
            full[: full.index(bare[0])]
        )  # what the tokenizer puts before a text, usually BOS or nothing

    def slots(self, masked: str, fillers: Sequence[Sequence[int]]) -> list[Sample]:
        ids = self.text_ids(self.split_at_slot(masked)[0].rstrip())
        if not self._start and not ids:
            raise DataError(
                f"The slot is the first word, and the tokenizer of {self.name_or_path} has no start token that it could "
                f"be predicted from. Leave such rows out or give them left context: {masked[:80]!r}."
            )
        room = self.max_length - len(self._start) - max(map(len, fillers)) + 1  # the last token is never read
        prefix = (*self._start, *ids[max(0, len(ids) - room) :])
        last = len(prefix) - 1
        return [Sample((*prefix, *word[:-1]), tuple(range(last, last + len(word))), tuple(word)) for word in fillers]

    def neutral_example(self, text: str, rng: random.Random) -> Example | None:
        ids = (*self._start, *self._kept_ids(text))
        if len(ids) < 2:
            return None
        position = rng.randrange(len(self._start) or 1, len(ids))
        slots = Sample(ids[:position], (position - 1,), (ids[position],))
        return Example(slots, slots)

    def scored_text(self, text: str, rng: random.Random, draws: int = 1) -> list[Sample]:
        ids = (*self._start, *self._kept_ids(text))
        first = len(self._start) or 1
        if len(ids) <= first:
            return []
        return [Sample(ids, tuple(range(first - 1, len(ids) - 1)), ids[first:])]

    def _kept_ids(self, text: str) -> list[int]:
        """Token ids of the beginning of a text that the model can read."""
        return self.text_ids(text)[: self.max_length - len(self._start)]
