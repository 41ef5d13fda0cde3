"""Tokens of words: how many tokens each takes, in a text and at its beginning."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gradiend_hub.artifact.files import SLOT
from gradiend_hub.data import TextRow
from gradiend_hub.data.casing import capitalised
from gradiend_hub.errors import DataError

from .slots import TextObjective


@dataclass(frozen=True)
class FillerTokens:
    """A word as its tokenizer writes it.

    Attributes:
        word: the word.
        inside: tokens after another word, none if it cannot be read there.
        first: tokens at the beginning of a text, with a capital, none if it cannot be read there.
        unknown: whether the tokenizer cannot write it.
        problem: why it cannot be read in one of the places; empty if it can.
    """

    word: str
    inside: tuple[str, ...]
    first: tuple[str, ...]
    unknown: bool = False
    problem: str = ""

    @property
    def usable(self) -> bool:
        """True if it can be read within a text, where most slots are."""
        return bool(self.inside)

    @property
    def split(self) -> bool:
        """True if one of the forms takes several tokens."""
        return len(self.inside) > 1 or len(self.first) > 1

    @property
    def verdict(self) -> str:
        """Meaning of the tokens for a direction, in a few words."""
        if self.unknown:
            return "unknown to the tokenizer"
        if not self.inside and not self.first:
            return "shares a token with what stands beside it"
        if not self.inside:
            return "at the beginning of a text only"
        count = max(len(self.inside), len(self.first))
        tokens = "one token" if count == 1 else f"{count} tokens"
        return tokens if self.first else f"{tokens}, not at the beginning of a text"


def word_tokens(objective: TextObjective, words: Iterable[str]) -> list[FillerTokens]:
    """Return the tokens of every word. Words of several tokens work, at the cost of a forward pass of their own."""
    found = []
    for word in words:
        inside, problem = _tokens(objective, f"a {SLOT}", word)
        first, at_first = _tokens(objective, SLOT, capitalised(word))
        ids = objective.tokenizer(word, add_special_tokens=False, verbose=False).input_ids
        unknown = not inside and (not ids or objective.tokenizer.unk_token_id in ids)
        found.append(FillerTokens(word, inside, first, unknown, problem or at_first))
    return found


def _tokens(objective: TextObjective, masked: str, word: str) -> tuple[tuple[str, ...], str]:
    """Return a word's tokens in the slot of a text, or none and the reason."""
    try:
        sample = objective.sample(TextRow(masked, word, word, "", ""), word)
    except DataError as error:
        return (), str(error)
    return tuple(objective.tokenizer.convert_ids_to_tokens(list(sample.labels))), ""
