"""Guess of a text's language by the commonest function words; it tells gross mistakes, no more."""

from __future__ import annotations

from collections.abc import Mapping

from gradiend_hub.errors import DataError

# common words of each; a few are shared, and so the best language has to be far ahead of the next one
_WORDS = {
    "English": ("en", "the of and to that was for with this from are not have which by"),
    "German": ("de", "der und das ist nicht ein eine mit auf dem sich auch wird zu von"),
    "French": ("fr", "les des est et une dans pour qui sur pas avec du cette sont aux"),
    "Spanish": ("es", "los las el y del por con una para como su pero más este está"),
    "Italian": ("it", "di il che per della sono gli dei nel alla delle con una più anche"),
    "Portuguese": ("pt", "os não com uma para por mais dos foi são ao pela também das em"),
    "Dutch": ("nl", "het een van dat niet zijn voor met aan ook naar wordt deze bij maar"),
}
_FEWEST = 200
"""Words from which on a text is judged."""

_SHARE = 0.1
"""Share of function words that makes a language evident (of running text it is 0.15 to 0.35)."""


def language_code(name: str) -> str:
    """The language of "en-US", "en_US" or "EN": "en"."""
    return name.strip().lower().replace("_", "-").partition("-")[0]


def told_language(words: Mapping[str, int]) -> str | None:
    """The name and code of the language that words are evidently in, or `None`.

    Args:
        words: lower-case words and how often each occurs.
    """
    total = sum(words.values())
    shares = {name: sum(words.get(w, 0) for w in found.split()) / (total or 1) for name, (_, found) in _WORDS.items()}
    best, second = sorted(shares, key=lambda name: -shares[name])[:2]
    if total < _FEWEST or shares[best] < max(_SHARE, 3 * shares[second]):
        return None
    return f"{best} ({_WORDS[best][0]})"


def check_language(words: Mapping[str, int], expected: str | None) -> None:
    """Refuse text that is evidently not in the expected language; one that is not known here is never refused.

    Raises:
        DataError: it is in another one.
    """
    code = language_code(expected or "")
    if code not in {code for code, _ in _WORDS.values()}:
        return
    told = told_language(words)
    if told is not None and not told.endswith(f"({code})"):
        raise DataError(
            f"language is {expected!r}, but the texts look like {told}. Name the right source, or correct `language`."
        )
