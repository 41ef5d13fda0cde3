"""Classifiers of the words of a text: parts of speech, named entities and the like."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import AutoModelForTokenClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES

from gradiend_hub.errors import BaseModelError, DataError

from .labels import log_softmax, place_of
from .logits import at_positions
from .samples import Batch
from .text_labels import TextClassificationObjective

_MARKED = re.compile(r"(?<!\S)\[([^\s\]]+)\]")
"""The word of a text that a user marks; punctuation behind it is a word of its own."""


@dataclass(frozen=True)
class Word:
    """A word in its text.

    Attributes:
        tokens: Words of the text.
        index: Number of the word.
    """

    tokens: tuple[str, ...]
    index: int

    def __str__(self) -> str:
        """Return the text with brackets around the word."""
        return " ".join(f"[{word}]" if i == self.index else word for i, word in enumerate(self.tokens))


class TokenClassificationObjective(TextClassificationObjective):
    """A label direction of a classifier of words: the same word in the same text, another label.

    A word's label is read at its first token, as such models are trained. Records have the text's words as `tokens`, as data
    sets of parts of speech and entities do, and the number of the word as `index`.
    """

    name = "token_classification"
    task = "token-classification"
    asks = "'TEXT WITH ONE [WORD] MARKED'"
    auto_class = AutoModelForTokenClassification
    heads = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES
    columns: ClassVar[tuple[str, ...]] = ("tokens", "index", "label")
    column = "tokens"
    read_name = "the label of the word"

    @classmethod
    def traits(cls, model: nn.Module, processor: Any, max_length: int | None) -> dict[str, Any]:
        """Return the labels, the longest input, and whether padding matters.

        Raises:
            BaseModelError: The head gives no one label of several, or the tokenizer does not say which word a token is of.
        """
        try:
            known = processor(["a", "b"], is_split_into_words=True).word_ids()
        except (AssertionError, AttributeError, TypeError, ValueError) as error:
            name = type(processor).__name__
            raise BaseModelError(
                f"{name} does not say which word a token is of: {error} Use a fast tokenizer, which reads words when it is "
                "loaded with add_prefix_space=True if it works on bytes."
            ) from error
        if {*known} - {None} != {0, 1}:
            raise BaseModelError(f"{type(processor).__name__} makes the tokens of words {known} of two words.")
        return super().traits(model, processor, max_length)

    # -- rows -----------------------------------------------------------------------------------------------------------

    def input_of(self, record: Mapping[str, Any]) -> Word:
        """Make a word of the columns `tokens` and `index`."""
        tokens, index = record[self.column], record.get("index")
        if isinstance(tokens, str) or not isinstance(tokens, Sequence):
            raise DataError(f"'tokens' must be a list of the text's words, found {tokens!r:.80}.")
        if faulty := [word for word in tokens if not isinstance(word, str) or not word.strip()]:
            raise DataError(f"'tokens' must hold non-empty words, found {faulty[0]!r:.80}.")
        number = place_of(index)
        if not 0 <= number < len(tokens):
            raise DataError(f"'index' must be the number of a word, from 0 to {len(tokens) - 1}, found {index!r:.80}.")
        return Word(tuple(tokens), number)

    def input_columns(self, value: Word) -> dict[str, Any]:
        """Return the columns that `input_of` reads back."""
        return {self.column: [*value.tokens], "index": value.index}

    def read_input(self, value: Any) -> Word:  # type: ignore[override]
        """Make a word of a text that has one word in brackets, `The [dog] barked .`"""
        if isinstance(value, Word):
            return value
        found = [*_MARKED.finditer(value)] if isinstance(value, str) else []
        if len(found) != 1:
            raise DataError(f"expected a text with one word in brackets, 'The [dog] barked .', found {value!r:.80}.")
        before, after = value[: found[0].start()].split(), value[found[0].end() :].split()
        return Word((*before, found[0][1], *after), len(before))

    def prepared(self, value: Word) -> tuple[dict[str, Any], int]:  # type: ignore[override]
        """Return the token ids, and the place of the word's first token.

        Raises:
            DataError: The word is cut off, or has no token.
        """
        options: dict[str, Any] = {"is_split_into_words": True, "verbose": False}
        encoded = self.processor(list(value.tokens), truncation=True, max_length=self.max_length, **options)
        place = next((i for i, word in enumerate(encoded.word_ids()) if word == value.index), None)
        if place is None:
            raise DataError(
                f"the word {value.tokens[value.index]!r} of {str(value)[:80]!r} has no token within the {self.max_length} "
                f"that {self.name_or_path} reads. Shorten the text before it."
            )
        ids = tuple(encoded.input_ids)
        return {"input_ids": ids, "place": place}, len(ids)

    def position(self, inputs: Mapping[str, Any]) -> int:
        """Return the place of the word's first token."""
        return int(inputs["place"])

    # -- batches --------------------------------------------------------------------------------------------------------

    def log_probs_together(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return log-probabilities of the labels at the word: [B, 1, V], fp32 or wider."""
        return log_softmax(at_positions(model(**batch.inputs).logits, batch.positions))

    # -- for people -----------------------------------------------------------------------------------------------------

    def named(self, inputs: Mapping[str, Any]) -> str:
        """Return the text as the model reads it, with brackets before the word's first token."""
        ids, place = list(inputs["input_ids"]), int(inputs["place"])
        before, word, after = (
            self.processor.decode(part, skip_special_tokens=True)
            for part in (ids[:place], ids[place : place + 1], ids[place + 1 :])
        )
        return f"{before} [{word}] {after}".strip()
