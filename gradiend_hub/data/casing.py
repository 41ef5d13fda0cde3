"""Upper and lower case of words: when two spellings are one word, and how the words of a class are written at a slot.

Case counts only where two classes are told apart by it (German "Sie" and "sie"). Everywhere else "They", "THEY" and
"they" are one word, and the words that are read at a slot follow the case of the word that stood there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from .row import Row

Case = Callable[[str], str]


def begins_sentence(before: str) -> bool:
    """Return whether a sentence begins after a text."""
    return before.rstrip(" \t\"'“‘„«([*_")[-1:] in ("", ".", "!", "?", "…", "\n")


def capitalised(word: str) -> str:
    """Return a word with a capital, the other letters as they are."""
    return word[:1].upper() + word[1:]


def case_of(word: str, listed: str) -> Case | None:
    """Return what makes the spelling `word` of the listed one: capitals, a capital or small letters, or `None`."""
    if word == listed:
        return None
    if len(word) > 1 and word.isupper():
        return str.upper
    if word[:1].isupper() and not listed[:1].isupper():
        return capitalised
    return str.lower if word.islower() else None


class Casing:
    """The spellings of the classes' words.

    Args:
        fillers: words by class, each in the spelling that it has within a sentence, as in `GradiendConfig.fillers`.
    """

    def __init__(self, fillers: Mapping[str, Iterable[str]] | None = None) -> None:
        self._by_class = {name: {word.lower(): word for word in words} for name, words in (fillers or {}).items()}
        self._spellings: dict[str, set[str]] = {}
        for words in self._by_class.values():
            for folded, word in words.items():
                self._spellings.setdefault(folded, set()).add(word)

    def key(self, word: str) -> str:
        """Return what is compared of a word: the listed spelling if there is one, the word itself where there are two."""
        spellings = self._spellings.get(word.lower(), {word.lower()})
        return word if len(spellings) > 1 else next(iter(spellings))

    def of_row(self, row: Row, before: str = "-") -> Case:
        """Return the function that writes listed words in the case of a row's words.

        The factual word decides, because it stood in the text. Where it is spelled as it is listed ("I", a German noun) or
        has one letter, the alternative word decides, and the text `before` the slot, if a sentence begins there.
        """
        listed, other = (
            self._by_class.get(name, {}).get(word.lower())
            for word, name in ((row.factual, row.factual_class), (row.alternative, row.alternative_class))
        )
        if listed is None and other is None:
            listed = row.factual.lower()
        case = None if listed is None else case_of(row.factual, listed)
        if (case is None or len(row.factual) == 1) and other is not None:
            case = case_of(row.alternative, other) or case
        if case is None and row.factual[:1].isupper() and begins_sentence(before):
            case = capitalised
        return case or str


def listed_words(forms: Mapping[str, Mapping[str, Counter[str]]]) -> dict[str, dict[str, str]]:
    """Return the spelling of every word within a sentence, by class and lower-case word.

    That is lower case, unless the class never has it so: a name, a German noun.

    Args:
        forms: class → lower-case word → how often each of its spellings occurs.
    """
    return {
        name: {word: word if word in spellings else spellings.most_common(1)[0][0] for word, spellings in words.items()}
        for name, words in forms.items()
    }
