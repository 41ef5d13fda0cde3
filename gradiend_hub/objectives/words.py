"""What a tokenizer makes of the words: how many tokens each takes, in a text and at its beginning."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gradiend_hub.artifact.files import SLOT
from gradiend_hub.errors import DataError

from .slots import TextObjective


@dataclass(frozen=True)
class FillerTokens:
    """A word as its tokenizer writes it.

    Attributes:
        inside: tokens after a space.
        first: tokens at the beginning of a text, with a capital.
        unknown: whether the tokenizer cannot write it; then there are no tokens.
    """

    word: str
    inside: tuple[str, ...]
    first: tuple[str, ...]
    unknown: bool = False

    @property
    def split(self) -> bool:
        """Whether one of the forms takes several tokens."""
        return len(self.inside) > 1 or len(self.first) > 1


def word_tokens(objective: TextObjective, words: Iterable[str]) -> list[FillerTokens]:
    """The tokens of every word. Words of several tokens work, at the cost of a forward pass of their own."""
    found = []
    for word in words:
        try:
            inside = objective.fill(f"a {SLOT}", word).word
            first = objective.fill(SLOT, word[:1].upper() + word[1:]).word
        except DataError:
            found.append(FillerTokens(word, (), (), unknown=True))
            continue
        names = objective.tokenizer.convert_ids_to_tokens
        found.append(FillerTokens(word, tuple(names(list(inside))), tuple(names(list(first)))))
    return found
